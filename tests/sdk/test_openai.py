"""OpenAI's SDK: what `tests/http/test_sdk.py` does not try of chats."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.sdk.conftest import SGLANG_METADATA, TOOL_PARAMETERS
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer

USER: Any = [{"role": "user", "content": "Say something."}]
ASK_TOOL: Any = [{"role": "user", "content": "/tool"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": TOOL_PARAMETERS, "strict": True},
}


class Reply(BaseModel):
    """What the model is to say."""

    answer: str
    score: int


@pytest.fixture
def client(base: str, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base, api_key=secret, max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture
async def aclient(base: str, secret: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base, api_key=secret, max_retries=0) as opened:
        yield opened


@SGLANG_METADATA
def test_structured_output(client: OpenAI) -> None:
    got = client.chat.completions.parse(model="sim", messages=USER, response_format=Reply)
    assert isinstance(got.choices[0].message.parsed, Reply)


def test_structured_output_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="sim", messages=USER, response_format=Reply
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done", "chunk"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Reply)


def test_a_cut_structured_output_raises(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="sim", messages=USER, response_format=Reply, max_tokens=1
        )


def test_tools_and_back(client: OpenAI) -> None:
    """A call, its result, and the answer to that."""
    got = client.chat.completions.create(model="sim", messages=ASK_TOOL, tools=[TOOL])
    message = got.choices[0].message
    assert got.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    after = [
        *ASK_TOOL,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
    ]
    last = client.chat.completions.create(model="sim", messages=after, tools=[TOOL])
    assert last.choices[0].message.content


def test_tools_stream(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=ASK_TOOL, tools=[TOOL])
    with client.chat.completions.stream(model="sim", messages=ASK_TOOL, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    calls = final.choices[0].message.tool_calls
    expected = whole.choices[0].message.tool_calls
    assert calls is not None
    assert expected is not None
    assert expected[0].type == "function"
    assert calls[0].function.arguments == expected[0].function.arguments


async def test_async_stream_helper(aclient: AsyncOpenAI) -> None:
    async with aclient.chat.completions.stream(model="sim", messages=USER) as stream:
        text = "".join([event.delta async for event in stream if event.type == "content.delta"])
        final = await stream.get_final_completion()
    assert text == final.choices[0].message.content


@SGLANG_METADATA
async def test_async_structured_output(aclient: AsyncOpenAI) -> None:
    got = await aclient.chat.completions.parse(model="sim", messages=USER, response_format=Reply)
    assert isinstance(got.choices[0].message.parsed, Reply)


def test_several_choices(client: OpenAI) -> None:
    got = client.chat.completions.create(model="sim", messages=USER, n=3, max_tokens=4)
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    stream = client.chat.completions.create(
        model="sim", messages=USER, n=3, max_tokens=4, stream=True
    )
    texts = {0: "", 1: "", 2: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in got.choices]


def test_with_streaming_response(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="sim", messages=USER, max_tokens=4, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"


def test_a_failure_is_tried_again(base: str, secret: str, upstream: ScriptedUpstream) -> None:
    """The SDK's own retry, after a failure that the gateway could not hide."""

    def script(connection: Connection, _: Received) -> None:
        if len(upstream.requests) == 1:
            connection.json({"error": "x"}, 500)
        else:
            connection.json(answer())

    upstream.script = script
    with OpenAI(base_url=base, api_key=secret, max_retries=2) as client:
        got = client.chat.completions.with_raw_response.create(model="plain", messages=USER)
    assert got.parse().choices[0].message.content == "ok"
    assert got.retries_taken + len(upstream.requests) >= 2


def test_a_client_s_own_timeout(gateway: Gateway, base: str, upstream: ScriptedUpstream) -> None:

    def script(connection: Connection, _: Received) -> None:
        connection.hung_up()
        connection.close()

    upstream.script = script
    key = gateway.key()
    with (
        OpenAI(base_url=base, api_key=key.secret, max_retries=0, timeout=0.3) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(model="plain", messages=USER)
    assert gateway.usage(1, key_id=key.id)[0]["outcome"] == "client_closed"


def test_a_wrong_address(gateway: Gateway, secret: str) -> None:
    with (
        OpenAI(base_url=gateway.url + "/v2", api_key=secret, max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.chat.completions.create(model="sim", messages=USER)
    assert caught.value.code == "unknown_url"


async def test_async_rate_limit(gateway: Gateway, base: str) -> None:
    key: Key = gateway.key(rpm=60, rpm_burst=1)
    async with AsyncOpenAI(base_url=base, api_key=key.secret, max_retries=1) as client:
        began = time.monotonic()
        for _ in range(2):
            await client.chat.completions.create(model="sim", messages=USER, max_tokens=1)
    assert 0.8 < time.monotonic() - began < 3

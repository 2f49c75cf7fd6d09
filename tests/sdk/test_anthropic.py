"""Anthropic's SDK on an engine that speaks OpenAI's chats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic import Anthropic, AsyncAnthropic

from tests.sdk.conftest import TOOL_PARAMETERS
from tests.support.processes import Gateway
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta

USER: Any = [{"role": "user", "content": "Say something."}]
ASK_TOOL: Any = [{"role": "user", "content": "/tool"}]
TOOL: Any = {"name": "get_weather", "input_schema": TOOL_PARAMETERS}


@pytest.fixture
def client(gateway: Gateway, secret: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=gateway.url, api_key=secret, max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture
async def aclient(gateway: Gateway, secret: str) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=gateway.url, api_key=secret, max_retries=0) as opened:
        yield opened


def said(content: Any) -> str:
    """The text of a message."""
    return "".join(block.text for block in content if block.type == "text")


def test_create(client: Anthropic) -> None:
    got = client.messages.create(model="sim", max_tokens=50, messages=USER, system="Be brief.")
    assert got.role == "assistant"
    assert said(got.content)
    assert got.stop_reason == "end_turn"
    assert got.usage.input_tokens > 0
    assert got.usage.output_tokens > 0


def test_the_cap_is_told(client: Anthropic) -> None:
    got = client.messages.create(
        model="sim", max_tokens=3, messages=[{"role": "user", "content": "/words 50"}]
    )
    assert got.stop_reason == "max_tokens"
    assert got.usage.output_tokens == 3


def test_stream(client: Anthropic) -> None:
    whole = client.messages.create(model="sim", max_tokens=50, messages=USER)
    with client.messages.stream(model="sim", max_tokens=50, messages=USER) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == said(whole.content) == said(final.content)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_raw_events(client: Anthropic) -> None:
    events = [
        event.type
        for event in client.messages.create(model="sim", max_tokens=50, messages=USER, stream=True)
    ]
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]
    assert events.count("content_block_start") == events.count("content_block_stop") == 1


def test_tools_and_back(client: Anthropic) -> None:
    got = client.messages.create(model="sim", max_tokens=90, messages=ASK_TOOL, tools=[TOOL])
    assert got.stop_reason == "tool_use"
    (call,) = (block for block in got.content if block.type == "tool_use")
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
    after: Any = [
        *ASK_TOOL,
        {"role": "assistant", "content": [block.model_dump() for block in got.content]},
        {"role": "user", "content": [result]},
    ]
    last = client.messages.create(model="sim", max_tokens=50, messages=after, tools=[TOOL])
    assert said(last.content)


def test_tools_stream(client: Anthropic) -> None:
    with client.messages.stream(
        model="sim", max_tokens=90, messages=ASK_TOOL, tools=[TOOL]
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert parts
    (call,) = (block for block in final.content if block.type == "tool_use")
    assert call.input == {"city": "Paris"}


def test_thinking_comes_apart(client: Anthropic) -> None:
    ask: Any = [{"role": "user", "content": "/think"}]
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    got = client.messages.create(model="sim", max_tokens=2000, messages=ask, thinking=thinking)
    assert [block.type for block in got.content] == ["thinking", "text"]
    with client.messages.stream(
        model="sim", max_tokens=2000, messages=ask, thinking=thinking
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert said(final.content) == said(got.content)


def test_count_tokens(client: Anthropic) -> None:
    got = client.messages.count_tokens(model="sim", messages=USER)
    assert got.input_tokens > 0


async def test_async(aclient: AsyncAnthropic) -> None:
    whole = await aclient.messages.create(model="sim", max_tokens=50, messages=USER)
    async with aclient.messages.stream(model="sim", max_tokens=50, messages=USER) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    assert text == said(whole.content)


def test_errors(gateway: Gateway, client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(model="sim", max_tokens=-1, messages=USER)
    assert "max_tokens" in str(bad.value)
    assert bad.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nope", max_tokens=5, messages=USER)
    with (
        Anthropic(base_url=gateway.url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        stranger.messages.create(model="sim", max_tokens=5, messages=USER)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "authentication_error"


def test_a_forbidden_model(gateway: Gateway) -> None:
    key = gateway.key(models=["tiny"])
    with (
        Anthropic(base_url=gateway.url, api_key=key.secret, max_retries=0) as client,
        pytest.raises(anthropic.PermissionDeniedError),
    ):
        client.messages.create(model="sim", max_tokens=5, messages=USER)


def test_retries_wait_as_told(gateway: Gateway) -> None:
    key = gateway.key(rpm=60, rpm_burst=1)
    with Anthropic(base_url=gateway.url, api_key=key.secret, max_retries=1) as client:
        for _ in range(2):
            got = client.messages.with_raw_response.create(model="sim", max_tokens=1, messages=USER)
    assert got.retries_taken == 1


def test_a_bearer_token_will_do(gateway: Gateway, secret: str) -> None:
    with Anthropic(base_url=gateway.url, auth_token=secret, api_key=None) as client:
        assert client.messages.create(model="sim", max_tokens=5, messages=USER).content


def test_a_broken_stream_raises(client: Anthropic, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.close()

    upstream.script = script
    with (
        pytest.raises(anthropic.APIError),
        client.messages.stream(model="tiny", max_tokens=5, messages=USER) as stream,
    ):
        list(stream)

"""The official `openai` SDK against the gateway, with its own exception classes."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta
from tests.support.wire import chat

USER: Any = [{"role": "user", "content": "Say something."}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def client(gateway: Gateway, key: Key) -> Iterator[OpenAI]:
    with connect(gateway, key.secret) as opened:
        yield opened


@pytest_asyncio.fixture
async def aclient(gateway: Gateway, key: Key) -> AsyncIterator[AsyncOpenAI]:
    base = gateway.url + "/v1"
    async with AsyncOpenAI(base_url=base, api_key=key.secret, max_retries=0) as opened:
        yield opened


def connect(gateway: Gateway, secret: str, max_retries: int = 0) -> OpenAI:
    return OpenAI(base_url=gateway.url + "/v1", api_key=secret, max_retries=max_retries)


# What works


def test_chat(client: OpenAI) -> None:
    got = client.chat.completions.create(model="sim", messages=USER, max_tokens=8)
    assert got.choices[0].message.content
    assert got.usage is not None
    assert 0 < got.usage.completion_tokens <= 8
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_stream_without_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=USER, max_tokens=8)
    chunks = list(
        client.chat.completions.create(model="sim", messages=USER, max_tokens=8, stream=True)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="sim",
            messages=USER,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 8
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_is_metered_either_way(gateway: Gateway, client: OpenAI) -> None:
    rows = []
    both: list[Any] = [{}, {"stream_options": {"include_usage": True}}]
    for options in both:
        raw = client.chat.completions.with_raw_response.create(
            model="sim", messages=USER, max_tokens=8, stream=True, **options
        )
        list(raw.parse())
        rows.append(gateway.usage(1, request_id=raw.headers["x-request-id"])[0])
    first, second = rows
    for name in ("prompt_tokens", "completion_tokens", "outcome", "finish_reason", "source"):
        assert first[name] == second[name], name
    assert first["outcome"] == "ok"
    assert first["source"] == "reported"
    assert first["completion_tokens"] > 0
    assert first["ttft_ms"] > 0
    assert first["model_asked"] == "sim"
    assert first["upstream"] == "sim"


def test_completions(client: OpenAI) -> None:
    got = client.completions.create(model="sim", prompt="Once upon", max_tokens=6)
    assert got.choices[0].text
    stream = client.completions.create(model="sim", prompt="Once upon", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == got.choices[0].text


def test_embeddings(client: OpenAI) -> None:
    """The SDK asks for base64 by itself and decodes it."""
    got = client.embeddings.create(model="sim-embed", input=["one", "two"])
    assert [len(item.embedding) for item in got.data] == [64, 64]
    assert all(isinstance(value, float) for value in got.data[0].embedding)
    assert got.data[0].embedding != got.data[1].embedding
    floats = client.embeddings.create(model="sim-embed", input="one", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(got.data[0].embedding, rel=1e-5)


def test_models(client: OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == sorted(listed)
    assert {"tiny", "also-tiny", "sim", "sim-embed"} <= set(listed)
    assert client.models.retrieve("sim").id == "sim"
    assert client.models.retrieve("sim").object == "model"


def test_tools_pass_through(client: OpenAI, upstream: ScriptedUpstream) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }

    def script(connection: Connection, _: Received) -> None:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        connection.json({**delta(""), "object": "chat.completion", "choices": [choice]})

    upstream.script = script
    got = client.chat.completions.create(
        model="tiny", messages=USER, tools=TOOLS, tool_choice="auto"
    )
    calls = got.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].model_dump() == call
    received = upstream.only().json()
    assert received["tools"] == TOOLS
    assert received["tool_choice"] == "auto"


async def test_async_all(aclient: AsyncOpenAI) -> None:
    whole = await aclient.chat.completions.create(model="sim", messages=USER, max_tokens=5)
    stream = await aclient.chat.completions.create(
        model="sim", messages=USER, max_tokens=5, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content
    got = await aclient.completions.create(model="sim", prompt="x", max_tokens=3)
    assert got.usage is not None
    vector = await aclient.embeddings.create(model="sim-embed", input="one")
    assert len(vector.data[0].embedding) == 64
    assert "sim" in [model.id async for model in aclient.models.list()]


async def test_async_stream_closed_early(gateway: Gateway, aclient: AsyncOpenAI) -> None:
    raw = await aclient.chat.completions.with_raw_response.create(
        model="sim", messages=USER, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    stream = raw.parse()
    async for _ in stream:
        break
    await stream.close()
    row = gateway.usage(1, request_id=raw.headers["x-request-id"])[0]
    assert row["outcome"] == "client_closed"
    assert row["completion_tokens"] < 4000


# What fails


def test_authentication_error(gateway: Gateway) -> None:
    with (
        connect(gateway, "sk-wrong") as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model="sim", messages=USER)
    assert caught.value.status_code == 401
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


def test_permission_denied_error(gateway: Gateway) -> None:
    key = gateway.key(models=["tiny"])
    with (
        connect(gateway, key.secret) as client,
        pytest.raises(openai.PermissionDeniedError) as caught,
    ):
        client.chat.completions.create(model="sim", messages=USER)
    assert caught.value.code == "model_not_allowed"
    assert caught.value.param == "model"


def test_not_found_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=USER)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"extra_body": {"stream": "yes"}}, "stream"),
        ({"messages": [{"role": "bogus", "content": "x"}]}, "messages[0]"),
        ({"temperature": -1}, None),
    ],
)
def test_bad_request_error(client: OpenAI, fields: dict[str, Any], param: str | None) -> None:
    """From the gateway or from the engine: always 400, never 422."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "sim", "messages": USER, **fields})
    assert caught.value.status_code == 400
    assert caught.value.param == param


def test_too_large(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**chat("sim", content="x" * 11_000_000))
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


def test_rate_limit_error(gateway: Gateway) -> None:
    key = gateway.key(rpm=6, rpm_burst=1)
    with connect(gateway, key.secret) as client:
        client.chat.completions.create(model="sim", messages=USER, max_tokens=1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="sim", messages=USER, max_tokens=1)
    headers = caught.value.response.headers
    assert headers["retry-after"] in ("9", "10")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.code == "rate_limit_exceeded"


def test_retry_after_is_honoured(gateway: Gateway) -> None:
    """The SDK waits as long as told, then succeeds at its first retry."""
    key = gateway.key(rpm=60, rpm_burst=1)
    with connect(gateway, key.secret, max_retries=1) as client:
        started = time.monotonic()
        for _ in range(2):
            got = client.chat.completions.with_raw_response.create(
                model="sim", messages=USER, max_tokens=1
            )
        took = time.monotonic() - started
    assert got.retries_taken == 1
    assert 0.8 < took < 3


def test_no_retry_where_none_helps(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(tpm=10, tpm_burst=10)
    with connect(gateway, key.secret, max_retries=5) as client:
        started = time.monotonic()
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt=list(range(50)), max_tokens=1)
    # Five retries back off for more than ten seconds.
    assert time.monotonic() - started < 5
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert upstream.requests == []


def test_engine_errors(client: OpenAI, upstream: ScriptedUpstream) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="gone", messages=USER)
    assert caught.value.status_code == 503
    upstream.script = lambda c, _: c.json({"error": "x"}, 500)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=USER)
    assert caught.value.status_code == 502


def test_a_broken_stream_raises(client: OpenAI, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.close()

    upstream.script = script
    stream = client.chat.completions.create(model="tiny", messages=USER, stream=True)
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "upstream_error"

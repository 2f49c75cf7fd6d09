"""Anthropic's SDK against the gateway, on models that speak OpenAI's dialect."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message

from tests.support.processes import Gateway, Key
from tests.support.upstream import (
    Connection,
    Received,
    ScriptedUpstream,
    delta,
    finish,
    plain,
    usage,
)
from tests.support.wire import Answer, chat

MESSAGES = "/v1/messages"
USER: Any = [{"role": "user", "content": "Say something."}]
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
}


def connect(gateway: Gateway, secret: str, max_retries: int = 0) -> Anthropic:
    return Anthropic(base_url=gateway.url, api_key=secret, max_retries=max_retries)


@pytest.fixture
def client(gateway: Gateway, key: Key) -> Iterator[Anthropic]:
    with connect(gateway, key.secret) as opened:
        yield opened


@pytest_asyncio.fixture
async def aclient(gateway: Gateway, key: Key) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=gateway.url, api_key=key.secret, max_retries=0) as opened:
        yield opened


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 16, "messages": USER, **fields}


def post(gateway: Gateway, key: Key, body: Any, path: str = MESSAGES, **options: Any) -> Answer:
    return gateway.call(path, body, headers=[("x-api-key", key.secret)], **options)


def chunk(**fields: Any) -> dict[str, Any]:
    """A chunk with this delta."""
    made = delta("")
    made["choices"][0]["delta"] = fields
    return made


def stream_of(*chunks: Any) -> Any:
    """The script of an engine that streams these chunks, and its usage."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for item in chunks:
            connection.event(item)
        connection.event({**delta(""), "choices": [], "usage": usage(11, 7)})
        connection.event("[DONE]")
        connection.end()

    return script


def named(body: bytes) -> list[tuple[str, Any]]:
    """The events of a stream: each one's name, which its data repeat, and its data."""
    found = []
    for event in body.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append((value["type"], value))
    return found


# What works


def test_a_message(gateway: Gateway, client: Anthropic) -> None:
    got = client.messages.create(model="sim", max_tokens=8, messages=USER, system="Be brief.")
    assert got.type == "message"
    assert got.role == "assistant"
    assert got.model == "sim"
    assert got.id.startswith("msg_")
    assert got.content[0].type == "text"
    assert got.content[0].text
    assert got.stop_reason == "max_tokens"
    assert 0 < got.usage.output_tokens <= 8
    assert got.usage.input_tokens > 0
    row = gateway.usage(1, request_id=got._request_id or "")[0]
    assert row["prompt_tokens"] == got.usage.input_tokens
    assert row["completion_tokens"] == got.usage.output_tokens


def test_it_costs_what_chat_costs(gateway: Gateway, key: Key) -> None:
    """The same decision, the same tokens, the same row but for its times."""
    rows = []
    fields = {"model": "sim", "messages": USER, "stream": True}
    for path, body in (
        (MESSAGES, {**fields, "max_tokens": 9}),
        ("/v1/chat/completions", {**fields, "max_completion_tokens": 9}),
    ):
        rows.append(gateway.usage_of(post(gateway, key, body, path)))
    messages, plain = rows
    for name in (
        "prompt_tokens",
        "completion_tokens",
        "model_served",
        "upstream",
        "front",
        "endpoint",
        "outcome",
        "finish_reason",
        "source",
        "stream",
    ):
        assert messages[name] == plain[name], name
    assert messages["source"] == "reported"


def test_a_stream(client: Anthropic) -> None:
    whole = client.messages.create(model="sim", max_tokens=8, messages=USER)
    with client.messages.stream(model="sim", max_tokens=8, messages=USER) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text  # type: ignore[union-attr]
    assert last.stop_reason == whole.stop_reason
    assert last.usage.output_tokens == whole.usage.output_tokens
    assert last.usage.input_tokens == whole.usage.input_tokens


async def test_all_of_it_asynchronously(aclient: AsyncAnthropic) -> None:
    whole = await aclient.messages.create(model="sim", max_tokens=8, messages=USER)
    raw = await aclient.messages.create(model="sim", max_tokens=8, messages=USER, stream=True)
    names = [event.type async for event in raw]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    async with aclient.messages.stream(model="sim", max_tokens=8, messages=USER) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    assert text == whole.content[0].text  # type: ignore[union-attr]
    counted = await aclient.messages.count_tokens(model="sim", messages=USER)
    assert counted.input_tokens == whole.usage.input_tokens


def test_events_in_their_order(gateway: Gateway, key: Key, upstream: ScriptedUpstream) -> None:
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":'},
    }
    rest = {"index": 0, "function": {"arguments": ' "Oslo"}'}}
    upstream.script = stream_of(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="Hm."),
        chunk(content="I "),
        chunk(content="look."),
        chunk(tool_calls=[call]),
        chunk(tool_calls=[rest]),
        finish("tool_calls"),
    )
    got = post(gateway, key, message(stream=True, tools=[WEATHER]))
    assert got.status == 200
    assert got.header("content-type") == "text/event-stream"
    events = named(got.body)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    blocks = [value["content_block"] for name, value in events if name == "content_block_start"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
    assert blocks[2] == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}
    end = events[-2][1]
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"]["input_tokens"] == 11
    assert end["usage"]["output_tokens"] == 7
    received = upstream.only().json()
    assert received["stream_options"]["include_usage"] is True
    assert received["max_completion_tokens"] == 16


def test_tools_there_and_back(client: Anthropic, upstream: ScriptedUpstream) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }

    def script(connection: Connection, received: Received) -> None:
        said: Any = {"role": "assistant", "content": "It rains."}
        reason = "stop"
        if received.json()["messages"][-1]["role"] == "user":
            said, reason = (
                {"role": "assistant", "content": None, "tool_calls": [call]},
                "tool_calls",
            )
        choice = {"index": 0, "message": said, "finish_reason": reason}
        answer = {**delta(""), "object": "chat.completion", "choices": [choice]}
        connection.json({**answer, "usage": usage(5, 5)})

    upstream.script = script
    talk: Any = [{"role": "user", "content": "Does it rain in Oslo?"}]
    first = client.messages.create(model="tiny", max_tokens=64, messages=talk, tools=[WEATHER])
    assert first.stop_reason == "tool_use"
    use = first.content[0]
    assert use.type == "tool_use"
    assert use.input == {"city": "Oslo"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    talk += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(model="tiny", max_tokens=64, messages=talk, tools=[WEATHER])
    assert second.content[0].text == "It rains."  # type: ignore[union-attr]
    sent = upstream.requests[1].json()
    assert sent["messages"][1]["tool_calls"] == [
        {**call, "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    ]
    assert sent["messages"][2] == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "rain",
    }
    assert "cache_control" not in json.dumps(sent)


def test_thoughts_there_and_back(client: Anthropic, upstream: ScriptedUpstream) -> None:
    upstream.script = stream_of(
        chunk(reasoning_content="Let me "),
        chunk(reasoning_content="see."),
        chunk(content="Yes."),
        finish(),
    )
    thinking: Any = {"type": "enabled", "budget_tokens": 2048}
    with client.messages.stream(
        model="tiny", max_tokens=4096, messages=USER, thinking=thinking
    ) as stream:
        got = stream.get_final_message()
    assert [block.type for block in got.content] == ["thinking", "text"]
    assert got.content[0].thinking == "Let me see."  # type: ignore[union-attr]
    assert got.stop_reason == "end_turn"
    talk: Any = [*USER, {"role": "assistant", "content": got.content}, *USER]
    upstream.script = plain
    client.messages.create(model="tiny", max_tokens=16, messages=talk)
    first, second = upstream.requests
    assert first.json()["reasoning_effort"] == "medium"
    assert second.json()["messages"][1] == {
        "role": "assistant",
        "reasoning_content": "Let me see.",
        "content": "Yes.",
    }


def test_a_stop_sequence_is_told(client: Anthropic, upstream: ScriptedUpstream) -> None:
    ended = finish()
    ended["choices"][0]["matched_stop"] = "END"
    upstream.script = stream_of(chunk(content="a"), ended)
    with client.messages.stream(
        model="tiny", max_tokens=9, messages=USER, stop_sequences=["END"]
    ) as stream:
        got = stream.get_final_message()
    assert (got.stop_reason, got.stop_sequence) == ("stop_sequence", "END")
    assert upstream.only().json()["stop"] == ["END"]


def test_a_schema(client: Anthropic, upstream: ScriptedUpstream) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client.messages.create(
        **message(output_config={"format": {"type": "json_schema", "schema": schema}})
    )
    sent = upstream.only().json()["response_format"]
    assert sent["json_schema"]["schema"] == schema


def test_what_coding_tools_send(gateway: Gateway, key: Key, upstream: ScriptedUpstream) -> None:
    """Fields and headers of a request as Claude Code makes it."""
    system = [
        {"type": "text", "text": "You are a tool.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief."},
    ]
    body = message(
        system=system,
        tools=[WEATHER],
        metadata={"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s" * 36})},
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        service_tier="auto",
        mcp_servers=[],
        container=None,
        top_k=5,
        temperature=1,
    )
    got = gateway.call(
        MESSAGES + "?beta=true",
        body,
        headers=[
            ("authorization", f"Bearer {key.secret}"),
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "claude-code-20250219,context-management-2025-06-27"),
        ],
    )
    assert got.status == 200, got.body
    received = upstream.only()
    assert received.header("anthropic-beta") is None
    sent = received.json()
    assert sent["messages"][0] == {
        "role": "system",
        "content": [{"type": "text", "text": block["text"]} for block in system],
    }
    assert set(sent) <= {
        "model",
        "messages",
        "max_completion_tokens",
        "temperature",
        "top_k",
        "tools",
        "rid",
    }


def test_a_key_as_either_header(gateway: Gateway, key: Key) -> None:
    for headers in ([("x-api-key", key.secret)], [("authorization", f"Bearer {key.secret}")]):
        for path, body in ((MESSAGES, message(model="sim")), ("/v1/chat/completions", chat("sim"))):
            assert gateway.call(path, body, headers=headers).status == 200
    assert gateway.call("/v1/models", headers=[("x-api-key", key.secret)]).status == 200


def test_headers(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=600, rpm_burst=10, tpm=100_000)
    got = post(gateway, key, message())
    assert got.header("request-id") == got.header("x-request-id")
    assert got.header("anthropic-ratelimit-requests-limit") == "600"
    assert got.header("anthropic-ratelimit-requests-remaining") == "9"
    assert got.header("anthropic-ratelimit-tokens-limit") == "100000"
    reset = got.header("anthropic-ratelimit-requests-reset") or ""
    began = time.strptime(reset, "%Y-%m-%dT%H:%M:%SZ")
    assert began.tm_year >= 2026
    assert got.header("x-ratelimit-limit-requests") == "600"
    assert got.header("x-forebay-upstream") == "raw"


# Counting


def test_an_engine_counts(gateway: Gateway, client: Anthropic) -> None:
    raw = client.messages.with_raw_response.count_tokens(
        model="sim", messages=USER, system="Be brief.", tools=[WEATHER]
    )
    assert raw.headers["x-forebay-upstream"] == "sim"
    assert "x-forebay-estimated" not in raw.headers
    got = client.messages.create(
        model="sim", max_tokens=1, messages=USER, system="Be brief.", tools=[WEATHER]
    )
    assert raw.parse().input_tokens == got.usage.input_tokens
    assert raw.headers["request-id"]


def test_what_no_engine_counts_is_estimated(gateway: Gateway, key: Key) -> None:
    body = message(messages=[{"role": "user", "content": "word " * 400}])
    del body["max_tokens"]
    got = post(gateway, key, body, MESSAGES + "/count_tokens")
    assert got.status == 200, got.body
    assert got.header("x-forebay-estimated") == "true"
    assert 100 < got.json()["input_tokens"] < 2000


def test_counting_is_a_request_without_usage(gateway: Gateway) -> None:
    key = gateway.key(rpm=6, rpm_burst=2, tpm=1000)
    with connect(gateway, key.secret) as client:
        for left in ("1", "0"):
            raw = client.messages.with_raw_response.count_tokens(model="sim", messages=USER)
            assert raw.headers["anthropic-ratelimit-requests-remaining"] == left
            assert raw.headers["anthropic-ratelimit-tokens-remaining"] == "1000"
        with pytest.raises(anthropic.RateLimitError):
            client.messages.count_tokens(model="sim", messages=USER)
    gateway.usage(0, 0.3, key_id=key.id)


def test_counting_is_refused_as_answers_are(gateway: Gateway, key: Key) -> None:
    path = MESSAGES + "/count_tokens"
    limited = gateway.key(models=["tiny"])
    for secret, body, status, kind in (
        ("sk-wrong", message(), 401, "authentication_error"),
        (limited.secret, message(model="sim"), 403, "permission_error"),
        (key.secret, message(model="nope"), 404, "not_found_error"),
        (key.secret, message(messages=[]), 400, "invalid_request_error"),
        (key.secret, {"model": "sim"}, 400, "invalid_request_error"),
    ):
        got = post(gateway, Key("", secret), body, path)
        assert (got.status, got.json()["error"]["type"]) == (status, kind), got.body


# What fails


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": None}, "max_tokens: is missing."),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: is missing."),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages.0.content.0.source: is missing.",
        ),
        ({"temperature": 3}, "temperature: "),
        ({"container": "c_1"}, "container: "),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools.0.type: ",
        ),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers: "),
        ({"stop_sequences": [1]}, "stop_sequences.0: "),
    ],
)
def test_a_bad_request(
    client: Anthropic, upstream: ScriptedUpstream, fields: dict[str, Any], text: str
) -> None:
    body = {**message(), **fields}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.post(MESSAGES, body=body, cast_to=Message)
    error: Any = caught.value.body
    assert set(error) == {"type", "error", "request_id"}
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(text), error
    assert error["request_id"] == caught.value.request_id
    assert upstream.requests == []


def test_what_an_engine_refuses_is_told_in_the_clients_names(
    gateway: Gateway, key: Key, upstream: ScriptedUpstream
) -> None:
    said = {
        "object": "error",
        "message": "max_completion_tokens is too large",
        "type": "BadRequestError",
        "param": "max_completion_tokens",
        "code": 400,
    }
    upstream.script = lambda connection, _: connection.json(said, 400)
    got = post(gateway, key, message())
    assert got.status == 400
    assert got.json()["error"]["message"] == "max_tokens: max_tokens is too large"


def test_each_kind_has_its_exception(
    gateway: Gateway, client: Anthropic, upstream: ScriptedUpstream
) -> None:
    with connect(gateway, "sk-wrong") as other, pytest.raises(anthropic.AuthenticationError):
        other.messages.create(**message())
    limited = gateway.key(models=["tiny"])
    with connect(gateway, limited.secret) as other, pytest.raises(anthropic.PermissionDeniedError):
        other.messages.create(**message(model="sim"))
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**message(model="nope"))
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.APIStatusError) as large:
        client.messages.create(**message(system="x" * 11_000_000))
    assert (large.value.status_code, large.value.type) == (413, "request_too_large")
    with pytest.raises(anthropic.InternalServerError) as down:
        client.messages.create(**message(model="gone"))
    assert (down.value.status_code, down.value.type) == (503, "overloaded_error")
    upstream.script = lambda connection, _: connection.json({"error": "x"}, 500)
    with pytest.raises(anthropic.InternalServerError) as broken:
        client.messages.create(**message())
    assert (broken.value.status_code, broken.value.type) == (502, "api_error")
    upstream.script = lambda connection, _: time.sleep(1)
    with pytest.raises(anthropic.InternalServerError) as late:
        client.messages.create(**message(model="quick"))
    assert (late.value.status_code, late.value.type) == (504, "timeout_error")


def test_a_limit_is_waited_for(gateway: Gateway) -> None:
    """The SDK waits as long as told, then succeeds at its first retry."""
    key = gateway.key(rpm=60, rpm_burst=1)
    with connect(gateway, key.secret, max_retries=1) as client:
        client.messages.create(**message(model="sim"))
        began = time.monotonic()
        got = client.messages.with_raw_response.create(**message(model="sim"))
    assert got.retries_taken == 1
    assert 0.7 < time.monotonic() - began < 3


def test_a_limit_refuses(gateway: Gateway) -> None:
    key = gateway.key(rpm=6, rpm_burst=1)
    with connect(gateway, key.secret) as client:
        client.messages.create(**message(model="sim"))
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**message(model="sim"))
    headers = caught.value.response.headers
    assert headers["retry-after"] in ("9", "10")
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert caught.value.type == "rate_limit_error"


@pytest.mark.parametrize("how", ["close", "error", "end"])
def test_an_engine_that_dies_is_told_in_the_stream(
    gateway: Gateway, key: Key, upstream: ScriptedUpstream, how: str
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        if how == "error":
            connection.event({"error": {"message": "/secret/path died", "code": 500}})
        if how != "close":
            connection.end()
        else:
            connection.close()

    upstream.script = script
    got = post(gateway, key, message(stream=True))
    assert got.status == 200
    events = named(got.body)
    assert [name for name, _ in events][:3] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
    ]
    name, value = events[-1]
    assert name == "error"
    assert value["error"]["type"] == "api_error"
    assert value["request_id"] == got.header("request-id")
    assert b"secret" not in got.body
    assert gateway.usage_of(got)["outcome"] == "upstream_cut"
    with (
        connect(gateway, key.secret) as client,
        client.messages.stream(**message()) as stream,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        stream.get_final_message()
    assert caught.value.type == "api_error"


async def test_a_client_that_hangs_up(
    gateway: Gateway, aclient: AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    gone: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        gone.append(connection.hung_up())

    upstream.script = script
    async with aclient.messages.stream(**message()) as stream:
        request_id = stream.request_id or ""
        async for _ in stream:
            break
    row = gateway.usage(1, request_id=request_id)[0]
    assert row["outcome"] == "client_closed"
    assert (row["prompt_tokens"], row["completion_tokens"]) == (4, 1)
    assert gone


def test_the_input_is_told_where_the_message_starts(
    gateway: Gateway, key: Key, upstream: ScriptedUpstream
) -> None:
    """By engines that count with every chunk; else it is 0 there, and told at the end."""
    for said, told in ({"usage": usage(4, 1)}, 4), ({}, 0):
        first = {**chunk(content="a"), **said}
        upstream.script = stream_of(chunk(role="assistant", content=""), first, finish())
        events = named(post(gateway, key, message(stream=True)).body)
        assert events[0][1]["message"]["usage"]["input_tokens"] == told
        assert events[-2][1]["usage"]["input_tokens"] == 11
    sent = upstream.requests[0].json()["stream_options"]
    assert sent == {"include_usage": True, "continuous_usage_stats": True}


def test_other_methods_and_bodies(gateway: Gateway, key: Key) -> None:
    got = gateway.call(MESSAGES, key=key.secret)
    assert (got.status, got.json()["error"]["type"]) == (405, "invalid_request_error")
    for body in (b"", b"[]", b"{", b'{"model":1}', b"\xff{}"):
        got = post(gateway, key, body)
        assert got.status == 400, body
        assert got.json()["type"] == "error"
    got = post(gateway, key, message(), content_type="text/plain")
    assert (got.status, got.json()["error"]["type"]) == (400, "invalid_request_error")

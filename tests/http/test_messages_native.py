"""Messages to upstreams that speak Messages: sent and answered as they are."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import Message
from forebay.store import EmbeddedPostgres

from tests.support.databases import create_database
from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer, delta, usage
from tests.support.wait import until
from tests.support.wire import Answer

MESSAGES = "/v1/messages"
USER: Any = [{"role": "user", "content": "Say something."}]
PROVIDER = "sk-ant-provider"
SIGNED = "c2lnbmVk"


@pytest.fixture(scope="module")
def claude_sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A simulated Anthropic."""
    options = ("--kind", "anthropic", "--model", "claude-sim", "--decode-rate", "2000")
    engine = Engine(tmp_path_factory.mktemp("claude"), *options, "--api-key", PROVIDER)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedUpstream]:
    """Speaks what its script says, for Anthropic and for SGLang."""
    started = ScriptedUpstream(models=("claude-x", "tiny"))
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def door(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: EmbeddedPostgres,
    claude_sim: Engine,
    sim: Engine,
    engine: ScriptedUpstream,
) -> Iterator[Gateway]:
    """The gateway."""
    url = create_database(postgres, "door")
    raw = {"upstream": "raw", "model": "claude-x"}
    config = {
        "upstreams": {
            "claude": {"kind": "anthropic", "url": claude_sim.url, "api_key": PROVIDER},
            "raw": {
                "kind": "anthropic",
                "url": engine.url,
                "api_key": PROVIDER,
                "headers": {"anthropic-beta": "configured-1"},
                "outlier": None,
            },
            "open": {"kind": "sglang", "url": engine.url, "outlier": None},
            "lax": {"kind": "openai_compatible", "url": engine.url, "drop_params": True},
            "sim": {"kind": "sglang", "url": sim.url},
            "drops": {"kind": "sglang", "url": engine.url, "outlier": None, "drop_params": True},
        },
        "models": {
            "claude": {"targets": [{"upstream": "claude", "model": "claude-sim"}]},
            "raw": {"targets": [raw]},
            "claude-x": {"targets": [raw]},
            "to-sim": {"targets": [raw, {"upstream": "sim", "model": "sim", "tier": 1}]},
            "to-claude": {
                "targets": [
                    {"upstream": "open", "model": "tiny"},
                    {"upstream": "claude", "model": "claude-sim", "tier": 1},
                ]
            },
            "open-first": {"targets": [{"upstream": "open", "model": "tiny"}, {**raw, "tier": 1}]},
            "lax": {"targets": [{"upstream": "lax", "model": "tiny"}]},
            "sim": {"targets": [{"upstream": "sim"}]},
            "drops-first": {
                "targets": [{"upstream": "drops", "model": "tiny"}, {"upstream": "sim", "tier": 1}],
                "resume": True,
            },
        },
    }
    gateway = Gateway(tmp_path_factory.mktemp("door"), config, url)
    gateway.start()
    until(lambda: gateway.health()["checks"]["upstream:raw"] == "ok", "the upstream")
    until(lambda: gateway.health()["checks"]["upstream:claude"] == "ok", "the provider")
    yield gateway
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()


@pytest.fixture(scope="module")
def own_key(door: Gateway) -> Key:
    return door.key()


@pytest.fixture(autouse=True)
def _fresh(engine: ScriptedUpstream) -> Iterator[None]:
    engine.wait_idle()
    engine.reset()
    yield
    engine.wait_idle()
    assert not engine.failures, engine.failures


@pytest.fixture
def client(door: Gateway, own_key: Key) -> Iterator[Anthropic]:
    with Anthropic(base_url=door.url, api_key=own_key.secret, max_retries=0) as opened:
        yield opened


def post(door: Gateway, key: Key, body: Any, *headers: tuple[str, str]) -> Answer:
    return door.call(MESSAGES, body, headers=[("x-api-key", key.secret), *headers])


def whole_input(got: Message) -> int:
    """The input's tokens, those of a cache too."""
    usage = got.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return usage.input_tokens + cached


def event(name: str, **fields: Any) -> bytes:
    """An event, with blanks as Anthropic does not write them: they are to stay."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}  \n\n".encode()


START = event(
    "message_start",
    message={
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 2,
            "cache_read_input_tokens": 3,
            "output_tokens": 1,
            "cache_creation": {"ephemeral_5m_input_tokens": 2},
        },
    },
)
THOUGHT = [
    event(
        "content_block_start",
        index=0,
        content_block={"type": "thinking", "thinking": "", "signature": ""},
    ),
    event("ping"),
    event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
    event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": SIGNED}),
    event("content_block_stop", index=0),
]
TEXT = [
    event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=1, delta={"type": "text_delta", "text": "Yes."}),
    event("news_of_2030", index=1),
    event("content_block_stop", index=1),
]
END = [
    event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": 9},
    ),
    event("message_stop"),
]
WHOLE = b"".join([START, *THOUGHT, *TEXT, *END])
MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": SIGNED},
        {"type": "text", "text": "Yes.", "citations": None},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "stop_details": None,
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 9, "speed": "fast"},
}


def say(data: bytes) -> Any:
    """The script of an engine that streams these bytes and ends."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.chunk(data)
        connection.end()

    return script


def asked(**fields: Any) -> bytes:
    """A body with blanks and an order of its own, and with what only Anthropic knows."""
    body = {
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}],
        "model": "raw",
        "mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}],
        "max_tokens": 32,
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    {"type": "text", "text": "ok"},
                ],
            },
            {"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]},
        ],
        **fields,
    }
    return json.dumps(body, indent=1).encode()


def test_a_request_goes_as_it_came(door: Gateway, own_key: Key, engine: ScriptedUpstream) -> None:
    engine.script = lambda connection, _: connection.json(MESSAGE)
    body = asked()
    beta = ("anthropic-beta", "mcp-client-2025-04-04")
    got = post(door, own_key, body, beta, ("anthropic-version", "1999-01-01"))
    assert got.status == 200, got.body
    received = engine.only()
    assert received.body == body.replace(b'"model": "raw"', b'"model": "claude-x"')
    assert received.header("anthropic-beta") == "configured-1,mcp-client-2025-04-04"
    assert received.header("anthropic-version") == "2023-06-01"
    assert received.header("x-api-key") == PROVIDER
    assert received.header("authorization") is None
    assert own_key.secret not in str(received.headers)


def test_a_key_changes_nothing(door: Gateway, own_key: Key, engine: ScriptedUpstream) -> None:
    engine.script = lambda connection, _: connection.json(MESSAGE)
    beta = ("anthropic-beta", "mcp-client-2025-04-04")
    assert post(door, own_key, asked(), beta, ("idempotency-key", "beta")).status == 200
    assert engine.only().header("anthropic-beta") == "configured-1,mcp-client-2025-04-04"


def test_model_and_price_are_the_gateways_to_say(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = lambda connection, _: connection.json(MESSAGE)
    body = json.loads(asked())
    more = {
        "fallbacks": [{"model": "claude-opus"}],
        "speed": "fast",
        "service_tier": "auto",
        "billing_policy": {},
        "workspace_id": "w",
        "fallback_credit_token": "t",
    }
    assert post(door, own_key, {**more, **body}).status == 200
    assert engine.only().json() == {**body, "model": "claude-x"}


def test_a_member_that_is_there_twice_is_refused(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    refused = post(door, own_key, asked().replace(b"{", b'{"max_tokens": 9, ', 1))
    assert refused.status == 400
    assert refused.json()["error"]["message"].startswith("max_tokens: ")
    assert not engine.requests


def test_the_models_own_name_changes_nothing(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = lambda connection, _: connection.json(MESSAGE)
    body = asked(model="claude-x")
    assert post(door, own_key, body).status == 200
    assert engine.only().body == body
    assert engine.only().header("anthropic-beta") == "configured-1"


def test_an_answer_comes_as_it_was(door: Gateway, own_key: Key, engine: ScriptedUpstream) -> None:
    theirs = ("request-id: req_theirs", "anthropic-ratelimit-requests-limit: 1", "x-more: 1")
    engine.script = lambda connection, _: connection.json(MESSAGE, headers=theirs)
    got = post(door, own_key, asked())
    assert got.json() == MESSAGE
    assert got.header("request-id") == got.header("x-request-id") != "req_theirs"
    assert got.header("anthropic-ratelimit-requests-limit") is None
    assert got.header("x-more") == "1"
    row = door.usage_of(got)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (8, 9)
    assert row["cached_tokens"] == 3
    assert (row["outcome"], row["source"]) == ("ok", "reported")


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_stream_comes_as_it_was(
    door: Gateway, own_key: Key, engine: ScriptedUpstream, size: int
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for at in range(0, len(WHOLE), size):
            connection.chunk(WHOLE[at : at + size])
        connection.end()

    engine.script = script
    got = post(door, own_key, asked(stream=True))
    assert got.status == 200
    assert got.body == WHOLE
    assert got.header("content-type") == "text/event-stream; charset=utf-8"
    row = door.usage_of(got)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (10, 9)
    assert (row["outcome"], row["finish_reason"]) == ("ok", "stop")


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        (event("error", error={"type": "overloaded_error", "message": "Over"}), "overloaded_error"),
        (event("error", error={"type": "api_error", "message": "/srv/x"}), "api_error"),
        (b"", "api_error"),
        (b"data: {", "api_error"),
        (b'event: x\ndata: {"no": 1}\n\n', "api_error"),
        (b'event: message_stop\ndata: {"type": "message_stop"}\n\n', "api_error"),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error_of_ours(
    door: Gateway, own_key: Key, engine: ScriptedUpstream, tail: bytes, kind: str
) -> None:
    before = b"".join([START, *THOUGHT, *TEXT])
    engine.script = say(before + tail)
    got = post(door, own_key, asked(stream=True))
    assert got.status == 200
    assert got.body.startswith(before)
    rest = got.body[len(before) :].decode()
    assert rest.startswith("event: error\ndata: ")
    value = json.loads(rest.removeprefix("event: error\ndata: "))
    assert value["error"]["type"] == kind
    assert value["request_id"] == got.header("request-id")
    assert "/srv" not in rest
    assert door.usage_of(got)["outcome"] == "upstream_cut"


def test_a_last_event_may_lack_its_blank_line(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = say(WHOLE[:-1])
    assert post(door, own_key, asked(stream=True)).body == WHOLE


def test_thoughts_and_their_signatures_survive(client: Anthropic, door: Gateway) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with client.messages.stream(
        model="claude", max_tokens=2000, messages=USER, thinking=thinking
    ) as stream:
        got = stream.get_final_message()
    talk: Any = [*USER, {"role": "assistant", "content": got.content}, *USER]
    again = client.messages.create(model="claude", max_tokens=20, messages=talk)
    assert again.model == "claude-sim"
    row = door.usage(1, request_id=again._request_id or "")[0]
    assert row["prompt_tokens"] == whole_input(again)
    assert row["completion_tokens"] == again.usage.output_tokens
    assert row["upstream"] == "claude"


def test_the_provider_counts(client: Anthropic) -> None:
    raw = client.messages.with_raw_response.count_tokens(model="claude", messages=USER)
    assert raw.headers["x-forebay-upstream"] == "claude"
    got = client.messages.create(model="claude", max_tokens=2, messages=USER)
    assert raw.parse().input_tokens == whole_input(got)


# Other targets


@pytest.mark.parametrize("stream", [False, True])
def test_from_a_native_target_to_another(
    door: Gateway, own_key: Key, engine: ScriptedUpstream, stream: bool
) -> None:
    """Nothing of a native answer that failed early reaches the client."""

    def script(connection: Connection, _: Received) -> None:
        if stream:
            say(event("error", error={"type": "api_error", "message": "x"}))(connection, _)
        else:
            connection.json({"type": "error", "error": {"type": "api_error"}}, 500)

    engine.script = script
    body = {"model": "to-sim", "max_tokens": 8, "messages": USER, "stream": stream}
    got = post(door, own_key, body)
    assert got.status == 200, got.body
    assert engine.only().path == MESSAGES
    assert got.header("x-forebay-upstream") == "sim"
    assert got.header("x-forebay-attempts") == "2"
    if stream:
        assert got.body.startswith(b"event: message_start\n")
        assert got.body.count(b"message_start") == 2
    else:
        assert got.json()["model"] == "to-sim"
    row = door.usage_of(got)
    assert (row["upstream"], row["outcome"]) == ("sim", "ok")


@pytest.mark.parametrize("stream", [False, True])
def test_from_another_target_to_a_native_one(
    door: Gateway, own_key: Key, engine: ScriptedUpstream, stream: bool
) -> None:
    engine.script = lambda connection, _: connection.json({"error": "x"}, 500)
    body = {"model": "to-claude", "max_tokens": 8, "messages": USER, "stream": stream}
    got = post(door, own_key, body)
    assert got.status == 200, got.body
    assert engine.only().path == "/v1/chat/completions"
    assert got.header("x-forebay-upstream") == "claude"
    assert b"claude-sim" in got.body
    assert door.usage_of(got)["completion_tokens"] > 0


def test_what_only_a_native_target_takes_goes_there(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = lambda connection, _: connection.json(MESSAGE)
    got = post(door, own_key, asked(model="open-first"))
    assert got.status == 200, got.body
    assert engine.only().path == MESSAGES
    refused = post(door, own_key, asked(model="sim"))
    assert refused.status == 400
    assert refused.json()["error"]["message"].startswith("messages.1.content.0.type: ")


def test_parameters_may_be_dropped_but_no_parts(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = lambda connection, _: connection.json(answer())
    body = {"model": "lax", "max_tokens": 8, "messages": USER, "container": "c"}
    assert post(door, own_key, body).status == 200
    assert "container" not in engine.only().json()
    assert post(door, own_key, asked(model="lax")).status == 400


def test_a_native_stream_is_not_carried_on_in_other_words(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = say(b"".join([START, *THOUGHT]))
    body = {"model": "to-sim", "max_tokens": 8, "messages": USER, "stream": True}
    got = post(door, own_key, body)
    assert got.body.startswith(START)
    assert got.body.rstrip().rpartition(b"\n\n")[2].startswith(b"event: error\n")


def test_what_was_delivered_is_owed_though_the_next_engine_cannot_be_asked(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    """It has no words for a parameter that the first one had dropped."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event({**delta("Some"), "usage": usage(9, 1)})
        connection.event({**delta(" text"), "usage": usage(9, 2)})
        connection.close()

    engine.script = script
    name = "owed-though-it-ends"
    body = {"model": "drops-first", "max_tokens": 8, "messages": USER, "stream": True}
    got = post(door, own_key, {**body, "container": "c"}, ("x-request-id", name))
    assert b"Some" in got.body
    assert b"event: error\n" in got.body
    (row,) = door.usage(1, request_id=name)
    assert (row["outcome"], row["upstream"]) == ("upstream_cut", "drops")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (9, 2)
    assert row["cost"] is None, "it has no price, and was served"


def test_a_failure_told_as_an_answer_is_owed_nothing(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    error = {"type": "api_error", "message": "Something went wrong. " * 100}
    engine.script = lambda connection, _: connection.json({"type": "error", "error": error})
    for name, path in (("failed-natively", MESSAGES), ("failed-in-chat", "/v1/chat/completions")):
        body = {"model": "raw", "max_tokens": 8, "messages": USER}
        headers = [("authorization", f"Bearer {own_key.secret}"), ("x-request-id", name)]
        assert door.call(path, body, headers=headers).status == 502
        (row,) = door.usage(1, request_id=name)
        assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("error", 0, 0)


def test_openai_clients_see_nothing_of_this(
    door: Gateway, own_key: Key, engine: ScriptedUpstream
) -> None:
    engine.script = say(WHOLE)
    body = {"model": "raw", "messages": USER, "stream": True}
    got = door.call("/v1/chat/completions", body, key=own_key.secret)
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert b"message_start" not in got.body
    assert delta("")["object"].encode() in got.body


def test_typed_errors(client: Anthropic, engine: ScriptedUpstream) -> None:
    said = {"type": "error", "error": {"type": "invalid_request_error", "message": "Too odd"}}
    engine.script = lambda connection, _: connection.json(said, 400)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="raw", max_tokens=3, messages=USER)
    body: Any = caught.value.body
    assert body["error"]["message"] == "Too odd"
    over = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    engine.script = lambda connection, _: connection.json(over, 529)
    with pytest.raises(anthropic.InternalServerError) as busy:
        client.messages.create(model="raw", max_tokens=3, messages=USER)
    assert (busy.value.status_code, busy.value.type) == (503, "overloaded_error")

"""Realtime sessions: relayed as they are, admitted before the upgrade, each response billed."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.server import Server, ServerConnection, serve

from tests.support.admin import Admin
from tests.support.databases import create_database
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway, Key
from tests.support.sockets import Socket, open_socket
from tests.support.wait import until

PATH = "/v1/realtime?model="
PRICE = {"input": "1", "output": "2"}
CREATE = {"type": "response.create"}
HEARS = {"type": "session.update", "session": {"turn_detection": {"type": "server_vad"}}}
"""The provider hears a turn end by itself."""


class Provider:
    """A provider whose sessions do what a test says. seen: the path and key of each handshake."""

    def __init__(self) -> None:
        self.script: Callable[[ServerConnection], None] = lambda connection: None
        self.seen: list[tuple[str, str | None]] = []
        self.server: Server = serve(self._handle, "127.0.0.1", 0, max_size=None)
        self.url = "http://{}:{}".format(*self.server.socket.getsockname())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handle(self, connection: ServerConnection) -> None:
        request = connection.request
        assert request is not None
        self.seen.append((request.path, request.headers.get("authorization")))
        with contextlib.suppress(ConnectionClosed):
            self.script(connection)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A scripted provider."""
    provider = Provider()
    yield provider
    provider.server.shutdown()


@pytest.fixture(scope="module")
def relaying(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres, provider: Provider
) -> Iterator[Gateway]:
    """A gateway in front of a simulated and a scripted provider."""
    folder = tmp_path_factory.mktemp("realtime")
    for part in ("engine", "gateway"):
        (folder / part).mkdir()
    options = ("--kind", "openai", "--model", "rt", "--api-key", "sk-rt", "--decode-rate", "500")
    engine = Engine(folder / "engine", *options)
    engine.start()
    url = create_database(postgres, "realtime")
    config = {
        "upstreams": {
            "sim": {"kind": "openai", "url": engine.url, "api_key": "sk-rt"},
            "locked": {"kind": "openai", "url": engine.url, "api_key": "sk-wrong"},
            "scripted": {"kind": "openai", "url": provider.url, "api_key": "sk-scripted"},
            "narrow": {
                "kind": "openai",
                "url": engine.url,
                "api_key": "sk-rt",
                "max_concurrency": 1,
                "queue": {"timeout": 0.2},
            },
            "gone": {"kind": "openai", "url": f"http://127.0.0.1:{closed_port()}", "api_key": "k"},
            "none": {"kind": "sglang", "url": engine.url},
        },
        "models": {
            "rt": {"targets": [{"upstream": "sim"}], "price": PRICE, "aliases": ["also rt"]},
            "scripted": {"targets": [{"upstream": "scripted", "model": "org/m"}]},
            "fallback": {
                "targets": [
                    {"upstream": "gone", "model": "rt"},
                    {"upstream": "sim", "model": "rt", "tier": 1},
                ],
            },
            "gone": {"targets": [{"upstream": "gone"}]},
            "locked": {"targets": [{"upstream": "locked", "model": "rt"}]},
            "narrow": {"targets": [{"upstream": "narrow", "model": "rt"}]},
            "none": {"targets": [{"upstream": "none"}]},
        },
        "limits": {"websocket_idle_s": 60},
    }
    process = Gateway(folder / "gateway", config, url)
    process.start()
    yield process
    assert process.stop() == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()
    engine.stop()


@pytest.fixture
def own(relaying: Gateway) -> Key:
    """A key without limits, for one test."""
    return relaying.key()


@contextlib.contextmanager
def session(gateway: Gateway, key: Key, model: str = "rt", **options: Any) -> Iterator[Socket]:
    """A session that has said hello."""
    with open_socket(gateway, key.secret, PATH + model, **options) as client:
        assert client.next()["type"] == "session.created"
        yield client


def say(text: str) -> dict[str, Any]:
    """An event that adds a user's message."""
    content = [{"type": "input_text", "text": text}]
    item = {"type": "message", "role": "user", "content": content}
    return {"type": "conversation.item.create", "item": item}


def read_until(client: Socket, kind: str) -> list[dict[str, Any]]:
    """The events up to one of that type."""
    events = [client.next()]
    while events[-1]["type"] != kind:
        events.append(client.next())
    return events


def refused(gateway: Gateway, key: Key, query: str) -> tuple[int, str]:
    """The status and the code of a handshake that is refused."""
    with (
        pytest.raises(InvalidStatus) as raised,
        open_socket(gateway, key.secret, f"/v1/realtime{query}"),
    ):
        pass
    response = raised.value.response
    return response.status_code, json.loads(response.body or b"")["error"]["code"]


def test_a_response_and_its_row(relaying: Gateway, own: Key) -> None:
    with session(relaying, own, "also%20rt") as client:
        client.say(say("hello"))
        client.say(CREATE)
        events = read_until(client, "response.done")
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["conversation.item.added", "conversation.item.done", "response.created"]
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert text == " Hello there, this is a scripted answer."
    used = events[-1]["response"]["usage"]
    (row,) = relaying.usage(1, key_id=own.id)
    assert (row["front"], row["endpoint"], row["outcome"]) == ("ws", "realtime", "ok")
    assert (row["model_asked"], row["model_served"]) == ("also rt", "rt")
    assert (row["upstream"], row["finish_reason"], row["source"]) == ("sim", "stop", "reported")
    assert row["prompt_tokens"] == used["input_tokens"]
    assert row["completion_tokens"] == used["output_tokens"]
    assert row["cached_tokens"] == used["input_token_details"]["cached_tokens"]
    # A dollar and two for 10^6 tokens.
    assert row["cost"] == (used["input_tokens"] + 2 * used["output_tokens"]) * Decimal("0.000001")


def test_each_response_is_a_row_and_a_turn_that_the_provider_heard_end_too(
    relaying: Gateway, own: Key
) -> None:
    with session(relaying, own) as client:
        client.say(HEARS)
        for _ in range(2):
            client.say({"type": "input_audio_buffer.append", "audio": "AAAA" * 1000})
            client.say({"type": "input_audio_buffer.commit"})
            read_until(client, "response.done")
        bounded = {**CREATE, "response": {"max_output_tokens": 2}}
        client.say(bounded)
        assert read_until(client, "response.done")[-1]["response"]["status"] == "incomplete"
    rows = relaying.usage(3, key_id=own.id)
    assert [row["finish_reason"] for row in rows] == ["stop", "stop", "length"]
    assert all(row["completion_tokens"] > 0 for row in rows)


def test_a_response_that_the_client_cancels(relaying: Gateway, own: Key) -> None:
    with session(relaying, own) as client:
        client.say(say("/loop"))
        client.say(CREATE)
        read_until(client, "response.output_text.delta")
        client.say({"type": "response.cancel"})
        assert read_until(client, "response.done")[-1]["response"]["status"] == "cancelled"
    (row,) = relaying.usage(1, key_id=own.id)
    assert (row["outcome"], row["finish_reason"]) == ("ok", "cancelled")


def test_a_create_that_the_provider_refuses_costs_nothing(relaying: Gateway, own: Key) -> None:
    with session(relaying, own) as client:
        client.say(say("/loop"))
        client.say(CREATE)
        read_until(client, "response.output_text.delta")
        client.say({**CREATE, "event_id": "second"})
        error = read_until(client, "error")[-1]["error"]
        assert error["code"] == "conversation_already_has_active_response"
        assert error["event_id"] == "second"
        client.say({"type": "response.cancel"})
        read_until(client, "response.done")
    rows = relaying.usage(2, key_id=own.id)
    assert [row["outcome"] for row in rows] == ["ok", "error"]
    assert rows[1]["completion_tokens"] == 0


@pytest.mark.parametrize("who", ["client", "provider"])
def test_a_session_that_breaks_off_books_its_last_response(
    relaying: Gateway, own: Key, who: str
) -> None:
    with session(relaying, own) as client:
        client.say(say("/loop" if who == "client" else "/loop /cut"))
        client.say(CREATE)
        if who == "client":
            for _ in range(3):
                read_until(client, "response.output_text.delta")
        else:
            assert read_until(client, "error")[-1]["error"]["code"] == "upstream_error"
            assert client.closed()[0] == 1011
    (row,) = relaying.usage(1, key_id=own.id)
    assert row["outcome"] == {"client": "client_closed", "provider": "upstream_cut"}[who]
    assert (row["source"], row["completion_tokens"] >= 3) == ("estimated", True)


# Limits


def test_a_request_too_many_is_refused_in_the_session(relaying: Gateway) -> None:
    key = relaying.key(rpm=1, rpm_burst=1)
    with session(relaying, key) as client:
        client.say(CREATE)
        read_until(client, "response.done")
        client.say({**CREATE, "event_id": "mine"})
        error = client.next()
        assert error["type"] == "error"
        assert error["error"]["code"] == "rate_limit_exceeded"
        assert error["error"]["event_id"] == "mine"
        # The provider knows nothing of it, and the session goes on.
        client.say({"type": "input_audio_buffer.clear"})
        assert client.next()["type"] == "input_audio_buffer.cleared"
    assert len(relaying.usage(1, key_id=key.id)) == 1


def test_a_turn_over_the_limit_is_stopped_and_billed(relaying: Gateway) -> None:
    key = relaying.key(rpm=1, rpm_burst=1)
    with session(relaying, key) as client:
        client.say(CREATE)
        read_until(client, "response.done")
        client.say(HEARS)
        client.say(say("x"))
        client.say({"type": "input_audio_buffer.append", "audio": "/loop"})
        client.say({"type": "input_audio_buffer.commit"})
        events = read_until(client, "response.done")
        errors = [event["error"]["code"] for event in events if event["type"] == "error"]
        assert errors == ["rate_limit_exceeded"]
    assert len(relaying.usage(2, key_id=key.id)) == 2


def test_a_session_holds_a_permit_while_it_lasts(relaying: Gateway) -> None:
    key = relaying.key(concurrency=1)
    with session(relaying, key) as client:
        assert refused(relaying, key, "?model=rt") == (429, "rate_limit_exceeded")
        # Its own responses need no second one.
        client.say(CREATE)
        read_until(client, "response.done")
    until(lambda: opens(relaying, key), "the permit")


def opens(gateway: Gateway, key: Key) -> bool:
    """Whether a session can be had."""
    try:
        with session(gateway, key):
            return True
    except InvalidStatus:
        return False


def test_a_session_holds_a_place_at_its_upstream(relaying: Gateway, own: Key) -> None:
    with session(relaying, own, "narrow"):
        assert refused(relaying, own, "?model=narrow")[0] == 503
    until(lambda: opens(relaying, own), "the place")


def test_money(relaying: Gateway) -> None:
    admin = Admin(relaying)
    key = admin.make(budget="0.000001", budget_period="total")
    with session(relaying, key) as client:
        client.say(CREATE)
        code = client.next()["error"]["code"]
        assert code in ("insufficient_quota", "rate_limit_exceeded")


def test_a_key_that_is_revoked_ends_its_session(relaying: Gateway, own: Key) -> None:
    with session(relaying, own) as client:
        relaying.with_keys(lambda keys: keys.revoke(own.id))
        assert client.next()["error"]["code"] == "api_key_revoked"
        assert client.closed()[0] == 1008


# Before the upgrade


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "missing_required_parameter"),
        ("?model=nowhere", 404, "model_not_found"),
        ("?model=rt&call_id=x", 400, "unsupported_parameter"),
        ("?model=none", 400, "unsupported_endpoint"),
        ("?model=gone", 503, "service_unavailable"),
        ("?model=locked", 502, "upstream_error"),
    ],
)
def test_what_cannot_be_had_is_told_over_http(
    relaying: Gateway, own: Key, query: str, status: int, code: str
) -> None:
    assert refused(relaying, own, query) == (status, code)


def test_a_key_may_be_kept_from_a_model(relaying: Gateway) -> None:
    key = relaying.key(models=["scripted"])
    assert refused(relaying, key, "?model=rt") == (403, "model_not_allowed")


def test_without_an_upgrade_there_is_nothing(relaying: Gateway, own: Key) -> None:
    for method in ("GET", "POST"):
        answer = relaying.call(
            "/v1/realtime?model=rt", {} if method == "POST" else None, key=own.secret, method=method
        )
        assert answer.status == 426
        assert answer.header("upgrade") == "websocket"


def test_a_provider_that_is_away_is_passed_over(relaying: Gateway, own: Key) -> None:
    with session(relaying, own, "fallback") as client:
        client.say(CREATE)
        read_until(client, "response.done")
    assert relaying.usage(1, key_id=own.id)[0]["upstream"] == "sim"


# The relay


def test_all_that_is_said_passes_as_it_is(relaying: Gateway, provider: Provider, own: Key) -> None:
    messages: list[str | bytes] = ['{"type": "x",  "a": 1}', b"\x00\xff", "", "no JSON", "ü" * 99]

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    provider.script = echo
    offered = ["realtime", f"openai-insecure-api-key.{own.secret}"]
    with open_socket(relaying, None, PATH + "scripted", subprotocols=offered) as client:
        assert client.connection.subprotocol == "realtime"
        for message in messages:
            client.connection.send(message)
            assert client.connection.recv(5) == message
    # The model's own name, and our key there.
    assert provider.seen[-1] == ("/v1/realtime?model=org%2Fm", "Bearer sk-scripted")


def test_many_messages_at_once_pass_in_order(
    relaying: Gateway, provider: Provider, own: Key
) -> None:
    count = 300

    def script(connection: ServerConnection) -> None:
        heard = [connection.recv(5) for _ in range(count)]
        for message in heard:
            connection.send(message)
        connection.close()

    provider.script = script
    sent = [json.dumps({"type": "x", "at": n, "pad": "p" * (n % 97)}) for n in range(count)]
    with open_socket(relaying, own.secret, PATH + "scripted") as client:
        for message in sent:
            client.connection.send(message)
        # What was said before the close comes before it.
        assert [client.connection.recv(5) for _ in range(count)] == sent


def test_open_sessions_are_counted(relaying: Gateway, own: Key) -> None:
    names = ("forebay_websockets", "forebay_realtime_sessions")

    def are(count: int) -> bool:
        return all(relaying.metric(name) == count for name in names)

    until(lambda: are(0), "no session is open")
    with session(relaying, own), session(relaying, own):
        until(lambda: are(2), "two are open")
    until(lambda: are(0), "both have ended")


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4401])
def test_closes_are_passed_on_both_ways(
    relaying: Gateway, provider: Provider, own: Key, code: int
) -> None:
    provider.script = lambda connection: connection.close(code, "because")
    with open_socket(relaying, own.secret, PATH + "scripted") as client:
        assert client.closed() == (code, "because")

    heard: list[int] = []

    def listen(connection: ServerConnection) -> None:
        try:
            connection.recv()
        except ConnectionClosed as closed:
            heard.append(closed.rcvd.code if closed.rcvd else 0)

    provider.script = listen
    with open_socket(relaying, own.secret, PATH + "scripted") as client:
        client.connection.close(code if code != 1001 else 1000)
    until(lambda: heard != [], "the close")
    assert heard == [code if code != 1001 else 1000]


def test_a_side_that_does_not_read_slows_the_other(
    relaying: Gateway, provider: Provider, own: Key
) -> None:
    sent = 0
    go = threading.Event()

    def pour(connection: ServerConnection) -> None:
        nonlocal sent
        go.wait(10)
        while True:
            connection.send("x" * 100_000)
            sent += 100_000

    provider.script = pour
    rss = relaying.rss_bytes()
    options = {"max_queue": 1}
    with open_socket(relaying, own.secret, PATH + "scripted", **options) as client:
        go.set()
        last = -1
        while sent != last:
            last = sent
            time.sleep(0.5)
        assert last < 40 << 20
        assert relaying.rss_bytes() - rss < 16 << 20
        # It goes on where it was, once it is read.
        for _ in range(20):
            assert len(client.text()) == 100_000
        until(lambda: sent > last, "more")


def test_a_long_event_passes(relaying: Gateway, provider: Provider, own: Key) -> None:
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    provider.script = echo
    with open_socket(relaying, own.secret, PATH + "scripted") as client:
        long = "y" * 5_000_000
        client.connection.send(long)
        assert client.text() == long
        client.connection.send("z" * (10 * 1024 * 1024 + 1))
        assert client.closed()[0] == 1009

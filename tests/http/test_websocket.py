"""Chat over WebSockets: requests one after another, each admitted and booked as over HTTP."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.processes import Gateway, Key
from tests.support.sockets import RawSocket, frame, open_socket
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer, delta, finish
from tests.support.upstream import usage as usage_of
from tests.support.wait import until
from tests.support.wire import CHAT, call, chat

HANDSHAKE = [
    "host: gateway.test",
    "upgrade: websocket",
    "connection: Upgrade",
    "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
]


@pytest.fixture(autouse=True)
def idle(gateway: Gateway) -> Iterator[None]:
    """After each test nothing is left in flight."""
    yield
    gateway.wait_idle()


def handshake(*changed: str, path: str = CHAT, without: str = "") -> bytes:
    """A handshake with some headers in place of others, or without one."""
    names = {line.partition(":")[0] for line in (*changed, without)}
    kept = [line for line in HANDSHAKE if line.partition(":")[0] not in names]
    return "\r\n".join([f"GET {path} HTTP/1.1", *kept, *changed]).encode() + b"\r\n\r\n"


def streams(*contents: str, prompt: int = 7) -> Any:
    """A script that streams these."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for content in contents:
            connection.event(delta(content))
        connection.event(finish())
        connection.event({**delta(""), "choices": [], "usage": usage_of(prompt, len(contents))})
        connection.event("[DONE]")
        connection.end()

    return script


def contents(messages: list[str]) -> list[str]:
    """What the chunks of an answer say."""
    chunks = [json.loads(message) for message in messages if message != "[DONE]"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


# The handshake


def test_the_handshake_of_rfc_6455(gateway: Gateway, key: Key) -> None:
    client = RawSocket(gateway.port, key.secret, key="dGhlIHNhbXBsZSBub25jZQ==")
    assert "sec-websocket-accept: " + "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".lower() in client.head
    assert not any(line.startswith("sec-websocket-protocol") for line in client.head)
    client.close()


@pytest.mark.parametrize(
    ("changed", "without", "status", "code"),
    [
        ((), "authorization", 401, "missing_api_key"),
        (("authorization: Bearer fb-no",), "", 401, "invalid_api_key"),
        (("sec-websocket-version: 8",), "", 426, "upgrade_required"),
        ((), "sec-websocket-version", 426, "upgrade_required"),
        (("sec-websocket-key: short",), "", 400, "bad_handshake"),
        ((), "sec-websocket-key", 400, "bad_handshake"),
        (("connection: keep-alive",), "", 400, "bad_handshake"),
        ((), "host", 400, "bad_framing"),
    ],
)
def test_who_may_not_come_in_is_told_over_http(
    gateway: Gateway, key: Key, changed: tuple[str, ...], without: str, status: int, code: str
) -> None:
    known = () if without == "authorization" else (f"authorization: Bearer {key.secret}",)
    if any(line.startswith("authorization") for line in changed):
        known = ()
    answer = call(gateway.port, handshake(*known, *changed, without=without))
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    if status == 426:
        assert answer.header("sec-websocket-version") == "13"
        assert answer.header("upgrade") == "websocket"


def test_an_admin_key_opens_nothing(gateway: Gateway) -> None:
    admin = gateway.new_key(kind="admin")
    until(lambda: gateway.call("/admin/v1/keys", key=admin.secret).status == 200, "the key")
    with pytest.raises(InvalidStatus) as refused, open_socket(gateway, admin.secret):
        pass
    assert refused.value.response.status_code == 403


def test_a_get_without_an_upgrade_is_as_before(gateway: Gateway, key: Key) -> None:
    head = (
        f"GET {CHAT} HTTP/1.1\r\nhost: gateway.test\r\nauthorization: Bearer {key.secret}\r\n\r\n"
    )
    assert call(gateway.port, head.encode()).status == 405


@pytest.mark.parametrize("how", ["x-api-key", "subprotocol"])
def test_other_ways_to_bring_a_key(gateway: Gateway, key: Key, how: str) -> None:
    options: dict[str, Any] = {"headers": {"x-api-key": key.secret}}
    if how == "subprotocol":
        offered = ["realtime", f"openai-insecure-api-key.{key.secret}"]
        options = {"subprotocols": offered}
    with open_socket(gateway, None, **options) as client:
        client.say(chat("sim", max_tokens=2))
        assert client.answer()[-1] == "[DONE]"
        # A key is never said back.
        chosen = "realtime" if how == "subprotocol" else None
        assert client.connection.subprotocol == chosen


# Answers


def test_each_event_is_a_message(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    upstream.script = streams("a", "b", "c")
    with open_socket(gateway, key.secret) as client:
        client.say(chat())
        messages = client.answer()
        assert contents(messages) == ["a", "b", "c"]
        assert messages[-1] == "[DONE]"
        # Streamed is the default; one message where it is not.
        assert upstream.requests[0].json()["stream"] is True
        upstream.script = lambda connection, _: connection.json(answer())
        client.say(chat(stream=False))
        assert client.next()["choices"][0]["message"]["content"] == "ok"


def test_an_event_arrives_before_the_next_is_sent(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    seen = [threading.Event() for _ in range(5)]

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for index, event in enumerate(seen):
            connection.event(delta(f"t{index}"))
            assert event.wait(5), f"event {index} was held back"
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with open_socket(gateway, key.secret) as client:
        client.say(chat())
        for index, event in enumerate(seen):
            assert f'"t{index}"' in client.text()
            event.set()
        assert client.answer()[-1] == "[DONE]"


def test_requests_wait_for_each_other(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    go = threading.Event()

    def script(connection: Connection, received: Received) -> None:
        connection.begin()
        said = received.json()["messages"][0]["content"]
        connection.event(delta(said))
        assert go.wait(5)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with open_socket(gateway, key.secret) as client:
        client.say(chat(content="q0"))
        assert '"q0"' in client.text()
        for n in range(1, 10):
            client.say(chat(content=f"q{n}"))
        # Eight wait; the one too many is told so at once.
        refused = client.next()
        assert (refused["status"], refused["error"]["code"]) == (429, "queue_full")
        go.set()
        client.answer()
        answers = [contents(client.answer()) for _ in range(8)]
    assert answers == [[f"q{n}"] for n in range(1, 9)]


def test_usage_says_what_front_it_was(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key()
    upstream.script = streams("a", "b")
    with open_socket(gateway, key.secret, headers={"x-forebay-tags": "team=ws"}) as client:
        client.say(chat())
        client.answer()
        client.say(chat())
        client.answer()
    rows = gateway.usage(2, key_id=key.id)
    assert [row["front"] for row in rows] == ["ws", "ws"]
    assert [row["completion_tokens"] for row in rows] == [2, 2]
    assert len({row["request_id"] for row in rows}) == 2
    assert all("team" in str(row["tags"]) for row in rows)


# Errors


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("not JSON", 400, "invalid_json"),
        ("[]", 400, "invalid_json"),
        ("", 400, "invalid_json"),
        (json.dumps({"model": "tiny"}), 400, "missing_required_parameter"),
        (json.dumps(chat("nowhere")), 404, "model_not_found"),
        (json.dumps(chat("gone")), 503, "service_unavailable"),
    ],
)
def test_an_error_is_a_message_and_the_socket_stays(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, message: str, status: int, code: str
) -> None:
    with open_socket(gateway, key.secret) as client:
        client.say(message)
        said = client.next()
        assert (said["status"], said["error"]["code"]) == (status, code)
        upstream.script = streams("a")
        client.say(chat())
        assert contents(client.answer()) == ["a"]


def test_limits_are_those_of_http(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=1, rpm_burst=1)
    upstream.script = streams("a")
    with open_socket(gateway, key.secret) as client:
        client.say(chat())
        assert client.answer()[-1] == "[DONE]"
        client.say(chat())
        said = client.next()
        assert (said["status"], said["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < said["retry_after_ms"] <= 60_000
        assert said["request_id"].startswith("req_")


def test_an_engine_that_dies_ends_the_answer_with_an_error(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.close()

    upstream.script = script
    with open_socket(gateway, key.secret) as client:
        client.say(chat("plain"))
        messages = client.answer()
        assert json.loads(messages[-1])["error"]["code"] == "upstream_error"
        upstream.script = streams("b")
        client.say(chat())
        assert contents(client.answer()) == ["b"]


def test_a_key_that_is_revoked_ends_its_sockets(gateway: Gateway) -> None:
    key = gateway.key()
    with open_socket(gateway, key.secret) as client:
        client.say(chat("sim", max_tokens=1))
        client.answer()
        gateway.with_keys(lambda keys: keys.revoke(key.id))
        until(lambda: gateway.call("/v1/models", key=key.secret).status == 401, "the revocation")
        client.say(chat("sim", max_tokens=1))
        said = client.next()
        assert (said["status"], said["error"]["code"]) == (401, "api_key_revoked")
        assert client.closed() == (1008, "the API key is no longer valid")


def test_a_binary_message_is_not_taken(gateway: Gateway, key: Key) -> None:
    with open_socket(gateway, key.secret) as client:
        client.connection.send(json.dumps(chat("sim")).encode())
        assert client.closed()[0] == 1003


def test_a_message_over_the_limit_closes_the_socket(gateway: Gateway, key: Key) -> None:
    with open_socket(gateway, key.secret) as client:
        client.say("x" * (10 * 1024 * 1024 + 1))
        assert client.closed()[0] == 1009


# Leaving


def endless(connection: Connection, stopped: threading.Event) -> None:
    """Streams until the gateway hangs up."""
    connection.begin()
    try:
        while True:
            connection.event(delta("x" * 1000))
    except OSError:
        stopped.set()
        connection.close()


def test_a_cancel_stops_the_engine_and_not_the_socket(
    gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    key = gateway.key()
    stopped = threading.Event()
    upstream.script = lambda connection, _: endless(connection, stopped)
    with open_socket(gateway, key.secret) as client:
        client.say(chat())
        client.text()
        client.say({"type": "cancel"})
        assert stopped.wait(5)
        assert json.loads(client.answer()[-1])["error"]["code"] == "client_closed_request"
        # Where nothing runs it does nothing.
        client.say({"type": "cancel"})
        upstream.script = streams("b")
        client.say(chat())
        assert contents(client.answer()) == ["b"]
    outcomes = [row["outcome"] for row in gateway.usage(2, key_id=key.id)]
    assert sorted(outcomes) == ["client_closed", "ok"]


@pytest.mark.parametrize("how", ["close", "fin", "reset"])
def test_a_client_that_leaves_stops_the_engine(
    gateway: Gateway, upstream: ScriptedUpstream, how: str
) -> None:
    key = gateway.key()
    stopped = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.hung_up()
        stopped.set()

    upstream.script = script
    client = RawSocket(gateway.port, key.secret)
    client.send(frame(json.dumps(chat()).encode()))
    client.frame()
    if how == "close":
        client.send(frame((1000).to_bytes(2, "big"), opcode=8))
    elif how == "fin":
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.close(reset=True)
    assert stopped.wait(5)
    if how == "close":
        assert client.close_code() == 1000
    client.close()
    (row,) = gateway.usage(1, key_id=key.id)
    assert row["outcome"] == "client_closed"


def test_a_client_that_does_not_read_stops_the_reading_of_its_engine(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    sent = 0
    stopped = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        nonlocal sent
        connection.begin()
        try:
            while True:
                connection.event(delta("x" * 10_000))
                sent += 10_000
        except OSError:
            stopped.set()

    upstream.script = script
    client = RawSocket(gateway.port, key.secret)
    client.send(frame(json.dumps(chat()).encode()))
    client.frame()
    last = -1
    while sent != last:
        last = sent
        time.sleep(0.3)
    # What the system's own buffers hold, and ours.
    assert last < 40 << 20
    # A cancel is heard all the same.
    client.send(frame(b'{"type":"cancel"}'))
    assert stopped.wait(5)
    client.close()

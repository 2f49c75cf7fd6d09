"""Engines that are down, stall, break off or send nonsense: a clear error, never a silent end."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import (
    Connection,
    Received,
    ScriptedUpstream,
    answer,
    delta,
    finish,
)
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, chat

UNAVAILABLE = (503, "service_unavailable_error", "service_unavailable", None)
FAILED = (502, "server_error", "upstream_error", None)
LATE = (504, "timeout_error", "upstream_timeout", None)
Script = Callable[[Connection, Received], None]


def ask(gateway: Gateway, key: Key, model: str = "tiny", **fields: Any) -> Answer:
    got = gateway.call(CHAT, chat(model, **fields), key=key.secret)
    assert got.complete
    shown = (got.body.decode(errors="replace") + repr(got.headers)).lower()
    assert "127.0.0.1" not in shown
    assert "/opt/" not in shown
    return got


def broken_stream(got: Answer, events: int, code: str) -> None:
    """The stream has so many events, then one error event and no end marker."""
    assert got.status == 200
    data = got.data()
    assert len(data) == events + 1, data
    error = json.loads(data[-1])["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    assert b"[DONE]" not in got.body


# Down


def test_down(gateway: Gateway, key: Key) -> None:
    for stream in (False, True):
        got = ask(gateway, key, "gone", stream=stream)
        assert got.brief() == UNAVAILABLE
        assert got.header("retry-after") == "1"
    row = gateway.usage_of(got)
    assert (row["outcome"], row["error_kind"], row["status"]) == ("error", "unavailable", 503)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)


def test_down_and_back(gateway: Gateway, flaky: ScriptedUpstream, key: Key) -> None:
    """Without a restart, and at the first request after it is back."""
    assert ask(gateway, key, "flaky").status == 200
    flaky.stop()
    # A request already written to a dying connection may be a 502; after that it is a 503.
    until(lambda: ask(gateway, key, "flaky").brief() == UNAVAILABLE, "refusal", 2)
    flaky.start()
    assert ask(gateway, key, "flaky").status == 200


def test_an_idle_connection_that_the_engine_closed_is_not_used(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.json(answer())
        connection.close()

    upstream.script = script
    statuses = []
    for _ in range(30):
        statuses.append(ask(gateway, key).status)
        time.sleep(0.02)
    assert statuses == [200] * 30


# Stalls


@pytest.mark.parametrize("stream", [False, True])
def test_no_first_byte(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, stream: bool
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.hung_up()

    upstream.script = script
    started = time.monotonic()
    got = ask(gateway, key, "quick", stream=stream)
    assert got.brief() == LATE
    assert 0.35 < time.monotonic() - started < 5
    assert gateway.usage_of(got)["error_kind"] == "upstream_timeout"


def test_a_head_but_no_event(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.hung_up()

    upstream.script = script
    assert ask(gateway, key, "quick", stream=True).brief() == LATE


def test_a_stream_that_stalls(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.event(delta("b"))
        connection.hung_up()

    upstream.script = script
    started = time.monotonic()
    got = ask(gateway, key, "quick", stream=True)
    broken_stream(got, 2, "upstream_timeout")
    assert 0.35 < time.monotonic() - started < 5
    row = gateway.usage_of(got)
    assert (row["outcome"], row["error_kind"]) == ("upstream_cut", "upstream_timeout")


def test_an_answer_that_stalls(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        connection.hung_up()

    upstream.script = script
    assert ask(gateway, key, "quick").brief() == LATE


def test_a_slow_stream_is_no_stall(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    """Each event comes within the idle time-out; together they take longer."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for _event in range(6):
            connection.event(delta("a"))
            time.sleep(0.12)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    assert ask(gateway, key, "quick", stream=True).data()[-1] == "[DONE]"


# Breaks off, or sends nonsense


def raw(data: bytes) -> Script:
    def script(connection: Connection, _: Received) -> None:
        connection.send(data)
        connection.close()

    return script


UNARY: dict[str, Script] = {
    "nothing": raw(b""),
    "no http": raw(b"\xff\xfe\x00garbage\r\n\r\n"),
    "half a head": raw(b"HTTP/1.1 200 OK\r\ncontent-"),
    "half a body": raw(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"id":'),
    "no json": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
    "half json": raw(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{"a":'),
    "empty body": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    "an array": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"),
    "reset": lambda connection, _: connection.reset(),
    "500": lambda connection, _: connection.json({"error": "File /opt/x/y.py failed"}, 500),
    "500 text": raw(b"HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nTraceback"),
    "401": lambda connection, _: connection.json({"error": "Unauthorized"}, 401),
    "403": lambda connection, _: connection.json({"error": "no"}, 403),
    "a redirect": raw(
        b"HTTP/1.1 302 X\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_that_is_one(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, stream: bool
) -> None:
    upstream.script = UNARY[name]
    got = ask(gateway, key, stream=stream)
    assert got.brief() == FAILED
    row = gateway.usage_of(got)
    assert (row["outcome"], row["error_kind"]) == ("error", "upstream_error")


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
AFTER: dict[str, Callable[[Connection], None]] = {
    "closes": lambda c: c.close(),
    "resets": lambda c: c.reset(),
    "closes in an event": lambda c: c.last(b'data: {"choices":[{"ind', whole=False),
    "ends without finish": lambda c: c.end(),
    "ends in an event": lambda c: c.last(EVENT[:30]),
    "done without finish": lambda c: c.last(b"data: [DONE]\n\n"),
    "no json": lambda c: c.last(b"data: hello\n\n"),
    "half json": lambda c: c.last(b'data: {"choices":[\n\n'),
    "garbage": lambda c: c.last(b"\xff\xfe\x00" * 100 + b"\n\n"),
    "bad chunk size": lambda c: c.send(b"zz\r\n"),
    "endless event": lambda c: c.last(b"data: " + b"x" * 1_100_000),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_stream_that_goes_wrong(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str
) -> None:
    delivered = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.chunk(EVENT)
        connection.chunk(EVENT)
        delivered.wait(0.05)  # a reset must not overtake what came before it
        AFTER[name](connection)

    upstream.script = script
    got = ask(gateway, key, stream=True)
    broken_stream(got, 2, "upstream_error")
    assert gateway.usage_of(got)["outcome"] == "upstream_cut"
    assert gateway.usage_of(got)["completion_tokens"] == 2


@pytest.mark.parametrize("name", AFTER)
def test_a_stream_that_is_wrong_from_the_start(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        AFTER[name](connection)

    upstream.script = script
    assert ask(gateway, key, stream=True).brief() == FAILED


@pytest.mark.parametrize(
    ("code", "expected"), [(503, "service_unavailable"), (500, "upstream_error")]
)
def test_an_error_event(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, code: int, expected: str
) -> None:
    error = {"error": {"message": "See /opt/engine/a.py at 10.0.0.5:30000.", "code": code}}

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.event(error)
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    got = ask(gateway, key, stream=True)
    broken_stream(got, 1, expected)
    assert b"10.0.0.5" not in got.body


def test_a_finished_stream_lacks_only_its_end_marker(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    """Nothing is missing of the answer: it is mended."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.event(finish())
        connection.end()

    upstream.script = script
    got = ask(gateway, key, stream=True)
    assert got.data()[-1] == "[DONE]"
    assert len(got.data()) == 3
    assert gateway.usage_of(got)["outcome"] == "ok"


SIM = [
    ("cut:3", 200, "upstream_error"),
    ("cut-mid-event:3", 200, "upstream_error"),
    ("garbage:2", 200, "upstream_error"),
    ("garbage-json:2", 200, "upstream_error"),
    ("error-event:2", 200, None),
    ("no-finish", 200, "upstream_error"),
    ("error-event:0", 502, "upstream_error"),
    ("garbage:0", 502, "upstream_error"),
    ("empty", 502, "upstream_error"),
    ("status:500", 502, "upstream_error"),
    ("status:503:9", 503, "service_unavailable"),
    ("status:429", 429, "rate_limit_exceeded"),
    ("loading", 503, "service_unavailable"),
]


@pytest.mark.parametrize(("fault", "status", "code"), SIM)
def test_the_simulators_faults(
    gateway: Gateway, sim: Engine, key: Key, fault: str, status: int, code: str | None
) -> None:
    got = ask(gateway, key, "sim", stream=True, max_tokens=50, sim_fault=fault)
    if status == 200:
        assert got.status == 200
        error = json.loads(got.data()[-1])["error"]
        assert b"[DONE]" not in got.body
    else:
        assert got.status == status
        error = got.error()
    if code is not None:
        assert error["code"] == code

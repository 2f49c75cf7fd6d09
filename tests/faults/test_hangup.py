"""Clients that leave an upstream that bills all the same: it is read to its end, within bounds."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.processes import Gateway, Key
from tests.support.upstream import (
    Connection,
    Received,
    ScriptedUpstream,
    answer,
    delta,
    finish,
    usage,
)
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request

Leave = Callable[[str, bool], None]


@pytest.fixture
def leave(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> Leave:
    """Sends a request of this name, streamed or not, and leaves: after a stream's first token."""

    def run(name: str, stream: bool) -> None:
        client = Client(gateway.port)
        headers = [("x-request-id", name), ("x-forebay-tags", "test=hangup")]
        body = chat("billed", stream=stream)
        client.send(request(CHAT, body, key=key.secret, headers=headers))
        if stream:
            head, got = client.head(), b""
            for _, data in client.body(head):
                got += data
                if b"data: " in got:
                    break
        else:
            until(lambda: upstream.active == 1, "the request arrives")
            time.sleep(0.06)  # later than a gateway may take to begin to watch the client
        client.socket.close()

    return run


def row(gateway: Gateway, name: str, tokens: tuple[int, int], source: str) -> dict[str, Any]:
    """The one usage row of this request: its client left, and it cost this."""
    gateway.wait_idle()
    found = gateway.usage(1, request_id=name)[0]
    assert (found["outcome"], found["error_kind"]) == ("client_closed", "client_closed")
    assert (found["prompt_tokens"], found["completion_tokens"]) == tokens
    assert found["source"] == source
    return found


def test_a_stream_is_billed_whole(
    gateway: Gateway, upstream: ScriptedUpstream, leave: Leave
) -> None:
    go_on = threading.Event()

    def script(connection: Connection, received: Received) -> None:
        assert "x-forebay-tags" not in dict(received.headers)
        connection.begin()
        connection.event(delta("a"))
        assert go_on.wait(10)
        for _ in range(4):
            connection.event(delta("b"))
        connection.event(finish())
        connection.event({**finish(), "choices": [], "usage": usage(9, 5)})
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    leave("drained", True)
    time.sleep(0.3)
    assert upstream.active == 1, "it is not stopped"
    assert gateway.metric("forebay_requests_in_flight") == 1
    go_on.set()
    assert row(gateway, "drained", (9, 5), "reported")["status"] == 200


def test_a_unary_answer_is_billed_whole(
    gateway: Gateway, upstream: ScriptedUpstream, leave: Leave
) -> None:
    go_on = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        assert go_on.wait(10)
        connection.json(answer(8, 6))

    upstream.script = script
    leave("drained-unary", False)
    time.sleep(0.3)
    assert upstream.active == 1, "it is not stopped"
    go_on.set()
    assert row(gateway, "drained-unary", (8, 6), "reported")["status"] == 499


def test_a_key_s_permit_is_back_at_once(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(concurrency=1)
    go_on = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        if len(upstream.requests) == 1:
            assert go_on.wait(10)
        connection.json(answer())

    upstream.script = script
    client = Client(gateway.port)
    client.send(request(CHAT, chat("billed"), key=key.secret))
    until(lambda: upstream.active == 1, "the request arrives")
    assert gateway.call(CHAT, chat("billed"), key=key.secret).status == 429
    time.sleep(0.06)
    client.socket.close()
    until(
        lambda: gateway.call(CHAT, chat("billed"), key=key.secret).status == 200,
        "the permit is back",
    )
    assert gateway.metric("forebay_requests_in_flight") == 1
    go_on.set()
    gateway.wait_idle()
    rows = gateway.usage(2, key_id=key.id)
    assert [found["outcome"] for found in rows] == ["client_closed", "ok"]


@pytest.mark.parametrize("stream", [True, False])
def test_it_takes_no_longer_than_it_may(
    gateway: Gateway, upstream: ScriptedUpstream, leave: Leave, stream: bool
) -> None:
    noticed: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        if stream:
            connection.begin()
            connection.event(delta("a"))
        noticed.append(connection.hung_up())

    upstream.script = script
    name = f"cut-{stream}"
    before = gateway.metric("forebay_client_hangups_total", upstream="billed", then="cut")
    leave(name, stream)
    left = time.monotonic()
    upstream.wait_idle()
    assert 1.5 < noticed[0] - left < 5
    gateway.wait_idle()
    found = gateway.usage(1, request_id=name)[0]
    assert (found["outcome"], found["source"]) == ("client_closed", "estimated")
    assert found["prompt_tokens"] > 0
    assert found["completion_tokens"] == int(stream)
    after = gateway.metric("forebay_client_hangups_total", upstream="billed", then="cut")
    assert after == before + 1


def test_no_more_is_read_than_may_be(
    gateway: Gateway, upstream: ScriptedUpstream, leave: Leave
) -> None:
    sent = [0]

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        time.sleep(0.3)
        while True:
            connection.event(delta("x" * 10_000))
            sent[0] += 1

    upstream.script = script
    leave("flood", True)
    upstream.wait_idle()
    gateway.wait_idle()
    found = gateway.usage(1, request_id="flood")[0]
    assert (found["outcome"], found["source"]) == ("client_closed", "estimated")
    assert 5 <= found["completion_tokens"] <= 12, "100,000 bytes of events of 10,000"


@pytest.mark.parametrize("how", ["close", "reset", "error"])
def test_an_engine_that_fails_meanwhile(
    gateway: Gateway, upstream: ScriptedUpstream, leave: Leave, how: str
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(7, 1)))
        time.sleep(0.3)
        if how == "error":
            connection.event({"error": {"message": "out of memory", "code": 500}})
            connection.end()
        elif how == "reset":
            connection.reset()
        else:
            connection.close()

    upstream.script = script
    name = f"failed-{how}"
    leave(name, True)
    assert row(gateway, name, (7, 1), "counted")["status"] == 200
    assert len(upstream.requests) == 1

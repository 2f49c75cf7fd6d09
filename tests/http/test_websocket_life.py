"""How long sockets live: idle ones, too many, and those of a gateway that shuts down."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from forebay.store import EmbeddedPostgres
from websockets.exceptions import InvalidStatus

from tests.support.databases import create_database
from tests.support.processes import Gateway
from tests.support.sockets import open_socket
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish
from tests.support.wait import until
from tests.support.wire import CHAT, call, chat

IDLE_S = 1.5


@pytest.fixture(scope="module")
def database_url(postgres: EmbeddedPostgres) -> str:
    """A database of this file's own."""
    return create_database(postgres, "sockets")


@pytest.fixture
def engine() -> Iterator[ScriptedUpstream]:
    """An engine."""
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def short(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, engine: ScriptedUpstream
) -> Iterator[Gateway]:
    """A gateway whose sockets are few and short."""
    config = {
        "upstreams": {"raw": {"kind": "sglang", "url": engine.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "limits": {"websockets": 3, "websocket_idle_s": IDLE_S},
        "drain_s": 5,
    }
    process = Gateway(tmp_path_factory.mktemp("short"), config, database_url)
    process.start()
    until(lambda: process.health()["checks"]["upstream:raw"] == "ok", "the upstream")
    yield process
    process.stop()


def test_an_idle_socket_is_closed_and_one_that_works_is_not(
    short: Gateway, engine: ScriptedUpstream
) -> None:
    key = short.key()

    def slow(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        time.sleep(2 * IDLE_S)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    engine.script = slow
    with open_socket(short, key.secret) as client:
        client.say(chat())
        assert client.answer()[-1] == "[DONE]"
        began = time.monotonic()
        assert client.closed() == (1000, "no request came for too long")
        assert time.monotonic() - began > IDLE_S * 0.8


def test_sockets_are_bounded(short: Gateway) -> None:
    key = short.key()
    with (
        open_socket(short, key.secret),
        open_socket(short, key.secret),
        open_socket(short, key.secret),
    ):
        with pytest.raises(InvalidStatus) as refused, open_socket(short, key.secret):
            pass
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"] == "1"
    until(lambda: opens(short, key.secret), "a place")


def opens(gateway: Gateway, secret: str) -> bool:
    """Whether a socket can be had."""
    try:
        with open_socket(gateway, secret):
            return True
    except InvalidStatus:
        return False


def test_a_drain_ends_idle_sockets_and_lets_answers_end(
    short: Gateway, engine: ScriptedUpstream
) -> None:
    key = short.key()
    go = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        assert go.wait(5)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    engine.script = script
    with open_socket(short, key.secret) as idle, open_socket(short, key.secret) as busy:
        busy.say(chat())
        assert '"a"' in busy.text()
        # One in line is not started.
        busy.say(chat())
        os.kill(short.pid, signal.SIGTERM)
        assert idle.closed() == (1001, "the gateway is shutting down")
        go.set()
        assert busy.answer()[-1] == "[DONE]"
        assert busy.closed()[0] == 1001
    assert short.stop() == 0
    assert len(engine.requests) == 1


def test_what_is_cut_off_at_the_end_gets_an_error(short: Gateway, engine: ScriptedUpstream) -> None:
    key = short.key()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.hung_up(20)

    engine.script = script
    with open_socket(short, key.secret) as client:
        client.say(chat())
        assert '"a"' in client.text()
        os.kill(short.pid, signal.SIGTERM)
        assert '"service_unavailable"' in client.answer()[-1]
        assert client.closed()[0] in (1001, 1006)


def test_granian_has_none(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, engine: ScriptedUpstream
) -> None:
    config = {
        "listen": {"server": "granian"},
        "upstreams": {"raw": {"kind": "sglang", "url": engine.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    process = Gateway(tmp_path_factory.mktemp("granian"), config, database_url)
    process.start()
    try:
        key = process.key()
        head = [
            f"GET {CHAT} HTTP/1.1",
            "host: gateway.test",
            "upgrade: websocket",
            "connection: Upgrade",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            f"authorization: Bearer {key.secret}",
        ]
        answer = call(process.port, "\r\n".join([*head, "", ""]).encode())
        assert answer.status == 405
        assert "listen.server: core" in answer.error()["message"]
    finally:
        process.stop()

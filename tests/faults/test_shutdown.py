"""The end of a gateway: what runs finishes, what is new goes elsewhere, nothing is lost."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import http2
from tests.support.processes import Gateway
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request


@pytest.fixture
def own(
    tmp_path: Path,
    database_url: str,
    upstream: ScriptedUpstream,
    request: pytest.FixtureRequest,
) -> Iterator[Gateway]:
    """A gateway that the test may end; 3 s of drain. Its parameter: `drain_idle_s`."""
    config: dict[str, Any] = {
        "upstreams": {
            "raw": {"kind": "sglang", "url": upstream.url},
            "billed": {"kind": "sglang", "url": upstream.url, "on_disconnect": "drain"},
        },
        "models": {
            "tiny": {"targets": [{"upstream": "raw"}]},
            "billed": {"targets": [{"upstream": "billed", "model": "tiny"}]},
        },
        "drain_s": 3,
        "drain_idle_s": getattr(request, "param", 1),
    }
    process = Gateway(tmp_path / "gateway", config, database_url)
    process.start()
    yield process
    process.stop()


def is_closed(gateway: Gateway) -> bool:
    """Whether it takes no more connections."""
    try:
        Client(gateway.port).__exit__(None, None, None)
    except ConnectionRefusedError:
        return True
    return False


def held(upstream: ScriptedUpstream) -> threading.Event:
    """The engine sends one token, then waits for the event and finishes."""
    go_on = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        if go_on.wait(10):
            connection.event(finish())
            connection.event({"choices": [], "usage": usage(4, 2)})
            connection.event("[DONE]")
            connection.end()

    upstream.script = script
    return go_on


# More than the second after which a dropped SYN comes again.
@pytest.mark.parametrize("own", [2.8], indirect=True)
def test_a_drain(own: Gateway, upstream: ScriptedUpstream) -> None:
    key = own.key()
    go_on = held(upstream)
    assert own.popen is not None
    with Client(own.port) as running, Client(own.port) as waiting:
        running.send(request(CHAT, chat(stream=True), key=key.secret))
        answer = running.head()
        assert waiting.send(request("/healthz")).answer().status == 200
        own.popen.send_signal(signal.SIGTERM)
        until(lambda: is_closed(own), "the door is closed")
        # What comes on a connection that was kept is answered: here, that there is no such model.
        answered = waiting.send(request(CHAT, chat("none"), key=key.secret)).answer()
        assert answered.brief()[:3] == (404, "invalid_request_error", "model_not_found")
        assert answered.header("connection") == "close"
        assert waiting.closed()
        assert own.popen.poll() is None
        go_on.set()
        body = b"".join(data for _, data in running.body(answer))
        assert answer.complete
        assert body.endswith(b"data: [DONE]\n\n")
    assert own.popen.wait(10) == 0
    row = own.usage(1, key_id=key.id)[0]
    assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) == ("ok", 4, 2)
    assert not own.ready_file.exists()
    assert "Traceback (most recent" not in own.log()
    assert len(upstream.requests) == 1


def test_a_notice(tmp_path: Path, database_url: str, upstream: ScriptedUpstream) -> None:
    """Load balancers see first that it leaves; meanwhile it serves."""
    config: dict[str, Any] = {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "drain_notice_s": 3,
    }
    process = Gateway(tmp_path / "notice", config, database_url)
    process.start()
    try:
        key = process.key()
        os.kill(process.pid, signal.SIGTERM)
        until(lambda: process.call("/readyz").status == 503, "not ready")
        assert process.health()["checks"]["gateway"] == "down: draining"
        answer = process.call(CHAT, chat(), key=key.secret)
        assert (answer.status, answer.header("connection")) == (200, "close")
    finally:
        assert process.stop() == 0


def test_idle_connections_do_not_hold_it_up(own: Gateway) -> None:
    with Client(own.port) as client:
        assert client.send(request("/healthz")).answer().status == 200
        started = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - started < 3.0


def test_a_body_over_http2_has_the_whole_drain(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    """Its end comes 6 s after the signal: longer than what is left over gets at the last."""
    config: dict[str, Any] = {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "drain_s": 20,
    }
    process = Gateway(tmp_path / "http2", config, database_url)
    process.start()
    try:
        secret = process.key().secret
        body = json.dumps(chat()).encode()
        with http2.Post(process.port, CHAT, secret, len(body)) as post:
            post.send(body[:10])
            assert not post.read(0.2)
            os.kill(process.pid, signal.SIGTERM)
            until(lambda: is_closed(process), "the door is closed")
            assert not post.read(6.0)
            assert post.told
            post.send(body[10:], end=True)
            assert post.read(10.0)
            assert (post.status, post.complete) == ("200", True)
        assert process.popen is not None
        assert process.popen.wait(10) == 0
        assert process.usage(1)[0]["outcome"] == "ok"
    finally:
        process.stop()


def test_what_does_not_finish_is_cut_and_booked(own: Gateway, upstream: ScriptedUpstream) -> None:
    key = own.key()
    go_on = held(upstream)
    assert own.popen is not None
    with Client(own.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        client.head()
        started = time.monotonic()
        assert own.stop(20) == 0
        assert 2.5 < time.monotonic() - started < 12
    go_on.set()
    row = own.usage(1, key_id=key.id)[0]
    assert row["outcome"] == "gateway_died"
    assert row["completion_tokens"] == 1
    assert "Traceback (most recent" not in own.log()


@pytest.mark.parametrize("finishes", [True, False])
def test_what_is_read_for_a_client_that_left(
    own: Gateway, upstream: ScriptedUpstream, finishes: bool
) -> None:
    """It has as long as any other request."""
    key = own.key()
    go_on = held(upstream)
    assert own.popen is not None
    with Client(own.port) as client:
        client.send(request(CHAT, chat("billed", stream=True), key=key.secret))
        answer = client.head()
        assert next(iter(client.body(answer)))
    time.sleep(0.1)
    started = time.monotonic()
    own.popen.send_signal(signal.SIGTERM)
    until(lambda: is_closed(own), "the door is closed")
    if finishes:
        go_on.set()
    assert own.popen.wait(20) == 0
    assert (time.monotonic() - started < 2.5) == finishes
    go_on.set()
    row = own.usage(1, key_id=key.id)[0]
    assert row["outcome"] == "client_closed"
    assert row["completion_tokens"] == (2 if finishes else 1)
    assert row["source"] == ("reported" if finishes else "counted")


def test_a_second_signal_hurries(own: Gateway, upstream: ScriptedUpstream) -> None:
    key = own.key()
    go_on = held(upstream)
    assert own.popen is not None
    with Client(own.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        client.head()
        started = time.monotonic()
        own.popen.send_signal(signal.SIGTERM)
        until(lambda: is_closed(own), "the door is closed")
        assert own.stop() == 0
        assert time.monotonic() - started < 2.5
    go_on.set()
    assert own.usage(1, key_id=key.id)[0]["outcome"] == "gateway_died"


def test_all_usage_is_written_before_the_end(own: Gateway) -> None:
    key = own.key()
    data = request(CHAT, chat(), key=key.secret)
    with Client(own.port) as client:
        statuses = [client.send(data).answer().status for _ in range(300)]
    assert own.stop() == 0
    assert statuses == [200] * 300
    assert len(own.usage(300, key_id=key.id, timeout_s=0)) == 300


def test_the_address_is_taken(
    own: Gateway, tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    """One clear line, and the running gateway keeps all of its connections."""
    config = {
        "listen": {"http": f"127.0.0.1:{own.port}"},
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    second = Gateway(tmp_path / "second", config, database_url)
    second.arguments.remove("--http")
    second.arguments.remove("127.0.0.1:0")
    second.launch()
    assert second.popen is not None
    assert second.popen.wait(10) == 1
    lines = [line for line in second.log().splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert f"cannot listen on 127.0.0.1:{own.port}" in lines[0]
    assert "in use" in lines[0]
    for _ in range(10):
        assert own.call("/healthz").status == 200

"""The settings for nginx, in front of a real gateway: nothing is held back, nothing is lost."""

import itertools
import statistics
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from tests.support.grpc_calls import begin, channel
from tests.support.grpc_calls import chat as grpc_chat
from tests.support.nginx import Nginx, needs_nginx
from tests.support.processes import Engine, Gateway, Key
from tests.support.sockets import open_socket
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish
from tests.support.wait import until
from tests.support.wire import CHAT, Client, call, chat, request

pytestmark = needs_nginx

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, gateway: Gateway) -> Iterator[Nginx]:
    """nginx in front of the session's gateway."""
    folder = tmp_path_factory.mktemp("nginx")
    http = [f"127.0.0.1:{gateway.port}"]
    with Nginx(folder, http, [gateway.grpc]) as running:
        yield running
        assert "[alert]" not in running.log(), running.log()
        assert "[emerg]" not in running.log(), running.log()


def test_nginx_finds_nothing_wrong(nginx: Nginx) -> None:
    assert "warn" not in nginx.check()


def test_no_event_waits_for_another(nginx: Nginx, upstream: ScriptedUpstream, key: Key) -> None:
    """The engine sends an event only once the one before has come out of nginx."""
    seen = [threading.Event() for _ in range(20)]

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for index, event in enumerate(seen):
            connection.event(delta(f"t{index}"))
            assert event.wait(5), f"event {index} was held back"
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with Client(nginx.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        answer = client.head()
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        body = client.body(answer)
        for index, event in enumerate(seen):
            _, data = next(body)
            assert f'"t{index}"'.encode() in data
            event.set()
        rest = b"".join(data for _, data in body)
    assert answer.complete
    assert rest.endswith(b"data: [DONE]\n\n")


def test_events_keep_the_engines_pace(
    nginx: Nginx, gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    pause_s, count = 0.05, 30

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for index in range(count):
            connection.event(delta(f"t{index}"))
            time.sleep(pause_s)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with Client(nginx.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        came = [at for at, data in client.body(client.head()) if b'"content":"t' in data]
    assert len(came) == count
    gaps = [after - before for before, after in itertools.pairwise(came)]
    assert pause_s * 0.8 < statistics.median(gaps) < pause_s * 1.5, gaps


def test_a_client_that_leaves_stops_the_engine(
    nginx: Nginx, gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    left_at: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        assert connection.hung_up(10)
        left_at.append(time.monotonic())

    upstream.script = script
    with Client(nginx.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        answer = client.head()
        assert next(iter(client.body(answer)))
    left = time.monotonic()
    until(lambda: bool(left_at), "the engine is left")
    assert left_at[0] - left < 1.0
    assert gateway.usage_of(answer)["outcome"] == "client_closed"


def test_websockets(nginx: Nginx, upstream: ScriptedUpstream, key: Key) -> None:
    seen = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        assert seen.wait(5), "held back"
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with open_socket(nginx, key.secret) as client:  # type: ignore[arg-type]
        client.say(chat(stream=True))
        assert '"a"' in client.text()
        seen.set()
        assert client.answer()[-1] == "[DONE]"


def test_grpc(nginx: Nginx, sim: Engine, key: Key) -> None:
    with channel(f"127.0.0.1:{nginx.grpc_port}") as opened:
        for _ in range(3):
            call = begin(opened, "StreamChatCompletion", grpc_chat("sim"), key=key.secret)
            assert len(list(call)) > 2
        refused = begin(opened, "StreamChatCompletion", grpc_chat("sim"), key="fb-wrong")
        with pytest.raises(grpc.RpcError) as told:
            next(refused)
    assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_gateway_that_is_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Nginx(tmp_path_factory.mktemp("away"), ["127.0.0.1:9"]) as alone:
        answer = call(alone.port, request(CHAT, chat()))
        brief = (503, "service_unavailable_error", "service_unavailable", None)
        assert answer.brief() == brief
        assert answer.header("retry-after") == "1"
        with (
            channel(f"127.0.0.1:{alone.grpc_port}") as opened,
            pytest.raises(grpc.RpcError) as told,
        ):
            next(begin(opened, "StreamChatCompletion", grpc_chat("sim"), key="x"))
        assert told.value.code() is grpc.StatusCode.UNAVAILABLE


def test_large_bodies(nginx: Nginx, gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    """Ten MiB pass; what is more is refused by the gateway, or by nginx in the same shape."""

    def script(connection: Connection, received: Received) -> None:
        connection.json({"choices": [], "size": len(received.body)})

    upstream.script = script
    whole = len(request(CHAT, chat(content=""), key=key.secret).partition(b"\r\n\r\n")[2])
    most = 10 * MIB - whole
    answer = call(nginx.port, request(CHAT, chat(content="x" * most), key=key.secret))
    assert answer.status != 413, answer.body
    assert len(upstream.requests[-1].body) >= most
    for more in (most + 1, 129 * MIB):
        with Client(nginx.port) as client:
            length = whole + more
            client.send(
                f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"authorization: Bearer {key.secret}\r\ncontent-length: {length}\r\n\r\n".encode()
            )
            if more < 20 * MIB:
                client.send(b"x" * length)
            answer = client.answer()
        brief = (413, "invalid_request_error", "request_too_large", None)
        assert answer.brief() == brief, more


def test_request_ids_and_errors(nginx: Nginx, gateway: Gateway, key: Key) -> None:
    given = call(
        nginx.port,
        request(CHAT, chat("none"), key=key.secret, headers=[("x-request-id", "my-id.1")]),
    )
    assert given.brief() == (404, "invalid_request_error", "model_not_found", "model")
    assert given.header("x-request-id") == "my-id.1"
    own = call(nginx.port, request(CHAT, chat("none"), key="fb-wrong"))
    assert own.brief() == (401, "invalid_request_error", "invalid_api_key", None)
    made = own.header("x-request-id")
    assert made is not None
    until(lambda: any(line.endswith(made) for line in nginx.access()), "nginx's log has the id")
    missing = call(nginx.port, request("/nothing"))
    assert missing.brief() == (404, "invalid_request_error", "unknown_url", None)


def test_who_may_administer(
    nginx: Nginx, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hidden = ("/admin/v1/keys", "/metrics", "/readyz")
    for path in hidden:
        assert call(nginx.port, request(path)).status != 404, path
    http = [f"127.0.0.1:{gateway.port}"]
    folder = tmp_path_factory.mktemp("outside")
    # Whoever comes from 127.0.0.1 is an outsider here.
    with Nginx(folder, http, replace={"    127.0.0.0/8    0;\n": ""}) as outside:
        for path in hidden:
            answer = call(outside.port, request(path))
            assert answer.brief()[:3] == (404, "invalid_request_error", "unknown_url"), path
        assert call(outside.port, request("/healthz")).status == 200

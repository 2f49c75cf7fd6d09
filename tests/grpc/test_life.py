"""The listener's life: TLS, certificates that change, and the end."""

import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.faults.test_shutdown import held
from tests.support.certificates import Authority
from tests.support.grpc_calls import ask, begin, channel, chat, finish
from tests.support.processes import Gateway
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until

Make = Callable[..., Gateway]


@pytest.fixture
def make(tmp_path: Path, database_url: str, upstream: ScriptedUpstream) -> Iterator[Make]:
    """Makes a gateway with gRPC that the test may end."""
    made: list[Gateway] = []

    def start(listen: dict[str, Any] | None = None, **options: Any) -> Gateway:
        config: dict[str, Any] = {
            "listen": {"grpc": "127.0.0.1:0", **(listen or {})},
            "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
            "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
            "drain_s": 3,
        }
        process = Gateway(tmp_path / "gateway", config, database_url, **options)
        made.append(process)
        process.start()
        return process

    yield start
    for process in made:
        process.stop()
        assert "Traceback (most recent" not in process.log(), process.log()


def check(address: str, credentials: grpc.ChannelCredentials | None = None) -> bool:
    """Whether the gateway says that it serves."""
    with channel(address, credentials) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def serial(address: str) -> str:
    """The serial number of the certificate that the address shows now."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain) as secure,
    ):
        data = secure.getpeercert(binary_form=True)
    assert data is not None
    from cryptography import x509

    return str(x509.load_der_x509_certificate(data).serial_number)


def test_tls_and_a_new_certificate(make: Make, tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.write(tmp_path / "tls", "server")
    gateway = make({"grpc_tls": {"cert": str(cert), "key": str(key)}})
    trusted = grpc.ssl_channel_credentials(authority.pem)
    assert check(gateway.grpc, trusted)
    assert not check(gateway.grpc), "in the clear"
    assert not check(gateway.grpc, grpc.ssl_channel_credentials(Authority().pem))
    secret = gateway.key().secret
    with channel(gateway.grpc, trusted) as opened:
        assert ask(opened, "ChatCompletion", chat(), key=secret).only
        before = serial(gateway.grpc)
        authority.write(tmp_path / "tls", "server")
        assert serial(gateway.grpc) != before
        assert ask(opened, "ChatCompletion", chat(), key=secret).only
    now = serial(gateway.grpc)
    key.write_bytes(b"no key")
    assert serial(gateway.grpc) == now, "files that do not fit change nothing"
    assert check(gateway.grpc, trusted)
    assert "earlier ones stay" in gateway.log()


def test_clients_need_a_certificate(make: Make, tmp_path: Path) -> None:
    authority, other = Authority(), Authority("another")
    cert, key = authority.write(tmp_path / "tls", "server")
    ca = tmp_path / "tls" / "ca.pem"
    ca.write_bytes(authority.pem)
    gateway = make({"grpc_tls": {"cert": str(cert), "key": str(key), "client_ca": str(ca)}})
    mine, my_key = authority.issue("client")
    assert check(gateway.grpc, grpc.ssl_channel_credentials(authority.pem, my_key, mine))
    assert not check(gateway.grpc, grpc.ssl_channel_credentials(authority.pem))
    theirs, their_key = other.issue("client")
    assert not check(gateway.grpc, grpc.ssl_channel_credentials(authority.pem, their_key, theirs))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("missing.pem", "server.key"), "missing.pem"),
        (("server.pem", "other.key"), "another certificate's"),
        (("server.key", "server.key"), "listen.grpc_tls"),
        (("server.pem", "server.key", "server.key"), "client_ca"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, upstream: ScriptedUpstream, files: tuple[str, ...], words: str
) -> None:
    authority = Authority()
    authority.write(tmp_path, "server")
    authority.write(tmp_path, "other")
    names = ("cert", "key", "client_ca")
    tls = {name: str(tmp_path / file) for name, file in zip(names, files, strict=False)}
    config = {
        "listen": {"grpc": "127.0.0.1:0", "grpc_tls": tls},
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    process = Gateway(tmp_path / "gateway", config, "postgresql://nobody@127.0.0.1:1/x")
    process.launch()
    assert process.popen is not None
    assert process.popen.wait(15) != 0
    assert words in process.log()
    assert "Traceback (most recent" not in process.log()


def test_the_end_lets_streams_finish(make: Make, upstream: ScriptedUpstream) -> None:
    gateway = make()
    secret = gateway.key().secret
    go_on = held(upstream)
    assert gateway.popen is not None
    with channel(gateway.grpc) as opened, channel(gateway.grpc, **{"grpc.x": 1}) as other:
        watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call = begin(opened, "StreamChatCompletion", chat(), key=secret)
        assert next(call).choices[0].delta.content == "a"
        gateway.popen.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        until(lambda: not check(gateway.grpc), "nobody new")
        refused = ask(other, "ChatCompletion", chat(), key=secret, timeout_s=1)
        assert refused.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert gateway.popen.poll() is None
        go_on.set()
        told = finish(call)
        assert told.code is grpc.StatusCode.OK, told.message
        assert told.messages[-1].usage.total_tokens == 6
    assert gateway.popen.wait(10) == 0
    assert gateway.usage(1, outcome="ok")[0]["front"] == "grpc"


def test_the_end_cuts_off_what_takes_too_long(make: Make, upstream: ScriptedUpstream) -> None:
    gateway = make()
    secret = gateway.key().secret
    go_on = held(upstream)
    assert gateway.popen is not None
    with channel(gateway.grpc) as opened:
        call = begin(opened, "StreamChatCompletion", chat(), key=secret)
        assert next(call)
        gateway.popen.send_signal(signal.SIGTERM)
        told = finish(call)
        assert told.brief[:2] == ("UNAVAILABLE", "UNAVAILABLE")
    assert gateway.popen.wait(10) == 0
    go_on.set()
    assert len(gateway.usage(1)) == 1


def test_several_workers(make: Make, upstream: ScriptedUpstream) -> None:
    gateway = make(workers=2)
    secret = gateway.key().secret
    failures: list[Any] = []

    def client() -> None:
        with channel(gateway.grpc, **{"grpc.use_local_subchannel_pool": 1}) as opened:
            told = ask(opened, "ChatCompletion", chat(), key=secret)
            if told.code is not grpc.StatusCode.OK:
                failures.append(told)

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert len(gateway.usage(16, front="grpc")) == 16
    assert gateway.stop() == 0

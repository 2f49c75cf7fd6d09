"""Broken and hostile requests on the socket: refused clearly, and nobody else notices."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, Client, call, chat, request

BAD = "invalid_request_error"
BODY = json.dumps(chat()).encode()


@pytest.fixture(autouse=True)
def still_serves(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> Iterator[None]:
    """After each test the gateway answers as before, and nothing is left in flight."""
    yield
    assert gateway.call(CHAT, chat(), key=key.secret).status == 200
    gateway.wait_idle()


def head(key: Key, *lines: str, path: str = CHAT, host: str | None = "host: gateway.test") -> bytes:
    """A POST's head."""
    fixed = [f"POST {path} HTTP/1.1", *([host] if host else [])]
    fixed += [f"authorization: Bearer {key.secret}", "content-type: application/json"]
    return "\r\n".join([*fixed, *lines]).encode("latin-1") + b"\r\n\r\n"


def outcome(gateway: Gateway, data: bytes, *, half_close: bool = False) -> tuple[list[int], bool]:
    """Send bytes; the statuses of all answers, and whether the server then closed."""
    statuses = []
    with Client(gateway.port) as client:
        client.socket.settimeout(3)
        try:
            client.send(data)
            if half_close:
                client.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            while True:
                statuses.append(client.answer().status)
        except ConnectionError:
            return statuses, True
        except TimeoutError:
            return statuses, False


# Framing of the body


@pytest.mark.parametrize(
    "broken",
    [
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"5;" + b"x" * 100_000,
    ],
)
def test_broken_chunks(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, broken: bytes
) -> None:
    answer = call(gateway.port, head(key, "transfer-encoding: chunked") + broken)
    assert answer.status == 400
    assert upstream.requests == []


def test_chunks_that_break_off_in_the_middle(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    good = b"%x\r\n%s\r\n" % (len(BODY), BODY)
    with Client(gateway.port) as client:
        client.send(head(key, "transfer-encoding: chunked") + good)
        time.sleep(0.05)  # so that the good part is read on its own
        answer = client.send(b"nonsense\r\n").answer()
    assert answer.brief() == (400, BAD, "bad_body", None)
    assert upstream.requests == []


def test_good_chunks(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    framed = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\ntrailer: x\r\n\r\n"
    assert call(gateway.port, head(key, "transfer-encoding: chunked") + framed).status == 200
    assert upstream.only().json()["messages"] == chat()["messages"]


def test_content_length_too_short(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    """The rest is another request, and not a good one."""
    short = head(key, f"content-length: {len(BODY) - 5}") + BODY
    statuses, closed = outcome(gateway, short)
    assert statuses in ([400], [400, 400])
    assert closed
    assert upstream.requests == []


def test_content_length_too_long(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    """The client gives up before the body is whole: nothing is forwarded."""
    statuses, closed = outcome(
        gateway, head(key, f"content-length: {len(BODY) + 5}") + BODY, half_close=True
    )
    assert statuses in ([], [400])
    assert closed
    assert upstream.requests == []


@pytest.mark.parametrize("value", ["-1", "1x", "1, 2", "0x10", "99999999999999999999999", "+5"])
def test_bad_content_length(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, value: str
) -> None:
    statuses, closed = outcome(gateway, head(key, f"content-length: {value}") + BODY)
    assert statuses == [400]
    assert closed
    assert upstream.requests == []


def test_an_absurd_content_length_reserves_nothing(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    before = gateway.rss_bytes()
    with Client(gateway.port) as client:
        client.send(head(key, "content-length: 9999999999999"))
        assert gateway.call(CHAT, chat(), key=key.secret).status == 200
        assert gateway.rss_bytes() - before < 32 << 20


def test_slow_bodies_hold_nobody_up(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    slow = [Client(gateway.port) for _ in range(50)]
    try:
        for client in slow:
            client.send(head(key, f"content-length: {len(BODY)}") + BODY[:10])
        started = time.monotonic()
        for _ in range(20):
            assert gateway.call(CHAT, chat(), key=key.secret).status == 200
        assert time.monotonic() - started < 2
        for client in slow:
            assert client.send(BODY[10:]).answer().status == 200
    finally:
        for client in slow:
            client.socket.close()


def test_a_body_byte_by_byte(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    with Client(gateway.port) as client:
        for byte in request(CHAT, chat(), key=key.secret):
            client.send(bytes([byte]))
        assert client.answer().status == 200
    assert upstream.only().json()["messages"] == chat()["messages"]


# Heads


def test_headers_too_large(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    statuses, closed = outcome(
        gateway, head(key, f"x-big: {'x' * 60_000}", f"content-length: {len(BODY)}") + BODY
    )
    assert statuses in ([431], [400])
    assert closed
    assert upstream.requests == []


def test_too_many_headers(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    lines = [f"x-{i}: 1" for i in range(1000)]
    statuses, closed = outcome(gateway, head(key, *lines, f"content-length: {len(BODY)}") + BODY)
    assert statuses in ([431], [400])
    assert closed
    assert upstream.requests == []


def test_a_head_without_end(gateway: Gateway) -> None:
    statuses, closed = outcome(gateway, b"POST / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 1_000_000)
    assert statuses in ([431], [400], [])
    assert closed


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nhost: x\r\n\r\n",
        b"\x00" * 200,
        b"GET /v1/models HTTP/1.1\r\nbad header\r\nhost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx : y\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    ],
)
def test_garbage(gateway: Gateway, garbage: bytes) -> None:
    statuses, closed = outcome(gateway, garbage, half_close=True)
    assert statuses in ([400], [], [505])
    assert closed


@pytest.mark.parametrize("host", [None, "host: a\r\nhost: b", "host: a\r\nhost: a"])
def test_host_exactly_once(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, host: str | None
) -> None:
    """RFC 9112 section 3.2."""
    data = head(key, f"content-length: {len(BODY)}", "connection: close", host=host) + BODY
    assert outcome(gateway, data) == ([400], True)
    assert upstream.requests == []


def test_http_1_0(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    with Client(gateway.port) as client:
        answer = client.send(request(CHAT, chat(), key=key.secret, version="1.0")).answer()
        assert answer.status == 200
        assert answer.complete
        assert answer.header("transfer-encoding") is None
        assert client.closed()


def test_expect_100_continue(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    lines = ("expect: 100-continue", f"content-length: {len(BODY)}")
    with Client(gateway.port) as client:
        client.send(head(key, *lines))
        assert client.socket.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n")
        assert client.send(BODY).answer().status == 200
    assert upstream.only().header("expect") is None


# Smuggling


@pytest.mark.parametrize(
    "lines",
    [
        ("transfer-encoding: chunked, chunked",),
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        ("transfer-encoding: gzip, chunked",),
        ("transfer-encoding: identity", "content-length: 5"),
        ("transfer-encoding: xchunked",),
        ("transfer-encoding: chunked, identity",),
        ("transfer-encoding : chunked", "content-length: 5"),
        ("transfer-encoding: \x0bchunked", "content-length: 5"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: 0, 5",),
    ],
)
def test_ambiguous_framing_is_refused(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, lines: tuple[str, ...]
) -> None:
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    smuggled = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    statuses, closed = outcome(gateway, head(key, *lines) + chunked + smuggled)
    assert statuses == [400]
    assert closed
    assert upstream.requests == []


@pytest.mark.parametrize("order", [0, 1])
def test_length_beside_chunks(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, order: int
) -> None:
    """RFC 9112 section 6.3: refused, or read as chunks and the connection not used again."""
    lines = ["content-length: 4", "transfer-encoding: chunked"]
    if order:
        lines.reverse()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    smuggled = request("/v1/models", key=key.secret)
    statuses, closed = outcome(gateway, head(key, *lines) + chunked + smuggled)
    assert (statuses, closed) in (([400], True), ([200], True))


def test_obsolete_line_folding(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    data = head(key, "x-a: 1\r\n content-length: 5", f"content-length: {len(BODY)}") + BODY
    statuses, _ = outcome(gateway, data)
    assert statuses in ([400], [200])
    if statuses == [200]:  # then it was one value, not a header of its own
        assert upstream.only().json()["messages"] == chat()["messages"]


# Connections


def test_pipelined_requests(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    """All are answered, in order."""
    ids = [f"pipe-{i}" for i in range(8)]
    data = b"".join(
        request(CHAT, chat(), key=key.secret, headers=[("x-request-id", given)]) for given in ids
    )
    with Client(gateway.port) as client:
        client.send(data)
        answers = [client.answer() for _ in ids]
    assert [answer.status for answer in answers] == [200] * len(ids)
    assert [answer.header("x-request-id") for answer in answers] == ids


def test_pipelined_after_a_refusal(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    bad = request(CHAT, b"{", key=key.secret)
    good = request(CHAT, chat(), key=key.secret)
    with Client(gateway.port) as client:
        client.send(bad + good)
        assert client.answer().brief() == (400, BAD, "invalid_json", None)
        assert client.answer().status == 200


def test_half_close_after_the_request(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    """Either reading is allowed (RFC 9112 section 9.6): an answer, or the client counts as gone."""
    data = request(CHAT, chat(), key=key.secret)
    statuses, closed = outcome(gateway, data, half_close=True)
    assert statuses in ([200], [])
    assert closed


def test_many_connections_that_say_nothing(gateway: Gateway, key: Key) -> None:
    idle = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(200)]
    try:
        assert gateway.call("/v1/models", key=key.secret).status == 200
    finally:
        for connection in idle:
            connection.close()


def test_resets_at_every_moment(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    data = request(CHAT, chat(), key=key.secret)
    for size in range(0, len(data) + 1, max(1, len(data) // 40)):
        client = Client(gateway.port)
        client.send(data[:size])
        client.reset()
    until(lambda: upstream.active == 0, "the engine is idle")


def test_head_and_options(gateway: Gateway, key: Key) -> None:
    for method in ("HEAD", "OPTIONS", "TRACE"):
        data = request(CHAT, method=method, key=key.secret, close=True)
        statuses = []
        with Client(gateway.port) as client:
            answer: Answer = client.send(data).head()
            statuses.append(answer.status)
        assert statuses == [405]


def test_http_2_prior_knowledge(gateway: Gateway) -> None:
    """Spoken, or refused: a peer that speaks it gets a SETTINGS frame first (RFC 9113, 3.4)."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    with Client(gateway.port) as client:
        client.send(preface)
        first = client.socket.recv(9)
        assert first.startswith(b"HTTP/1.1 ") or first == b"" or first[3] == 4


def test_a_body_that_nobody_reads_costs_the_next_nothing(gateway: Gateway, key: Key) -> None:
    """The application answers a path that is not there without reading; others are not cut off."""
    for _ in range(20):
        assert gateway.call("/v1/nothing", b"x" * 300_000, key=key.secret).status == 404
        assert gateway.call("/readyz").status == 200

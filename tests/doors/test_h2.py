"""HTTP/2 on the gRPC port, by the book and against it: nobody else notices."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from tests.doors.conftest import Stage
from tests.support.doors.h2_wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    Raw,
    call,
    call_headers,
    frame,
    literal,
    message,
)
from tests.support.memory import anonymous_bytes

CHECK = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
HEAD = literal(call_headers(CHECK))
GROWTH_BYTES = 64 << 20


def opened(stream: int = 1, flags: int = END_HEADERS) -> bytes:
    """The head of a call that is not ended."""
    return frame(HEADERS, flags, stream, HEAD)


@pytest.fixture
def port(stage: Stage) -> int:
    return stage.grpc_port


@pytest.fixture(autouse=True)
def others_are_served(stage: Stage) -> Iterator[None]:
    """After each test, a call of somebody else."""
    before = anonymous_bytes(stage.gateway.pid)
    yield
    got = call(stage.grpc_port, call_headers(CHECK), message(b""))
    assert (got.status, got.data) == (0, message(SERVING)), got
    assert stage.gateway.popen is not None
    assert stage.gateway.popen.poll() is None
    assert anonymous_bytes(stage.gateway.pid) - before < GROWTH_BYTES


def refused(raw: Raw, stream: int | None = 1) -> None:
    """The connection ends or is told to, or the stream is reset or refused, in time."""
    kinds = (GOAWAY, RST) if stream is not None else (GOAWAY,)
    # A HEADERS frame would be an answer without a body, which is gRPC's way to refuse a call.
    assert raw.until_kind(*kinds, HEADERS) or raw.until_closed(0.1), raw.frames()


def test_the_server_speaks_first_and_acknowledges(port: int) -> None:
    with Raw(port) as raw:
        assert raw.until_kind(SETTINGS)
        raw.until_kind(99, within_s=0.3)
        settings = [flags for kind, flags, _, _ in raw.frames() if kind == SETTINGS]
        assert 0 in settings
        assert ACK in settings


def test_pings_are_answered(port: int) -> None:
    with Raw(port) as raw:
        raw.send(frame(PING, payload=b"01234567"))
        assert raw.until_kind(PING)
        assert (PING, ACK, 0, b"01234567") in raw.frames()


def test_a_call_ends_with_trailers(port: int) -> None:
    got = call(port, call_headers(CHECK), message(b""))
    assert got.headers[":status"] == "200"
    assert got.headers["content-type"].startswith("application/grpc")
    assert got.trailers["grpc-status"] == "0"
    assert got.data == message(SERVING)


def test_an_unknown_method_is_told_in_the_head_alone(port: int) -> None:
    got = call(port, call_headers("/forebay.v1.Nothing/At"), message(b""))
    assert got.status == 12, got
    assert got.data == b""


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        PREFACE[:10] + b"\x00" * 100,
        bytes(1000),
    ],
    ids=["http-1", "wrong", "tls", "broken-off", "zeros"],
)
def test_another_preface(port: int, first: bytes) -> None:
    with Raw(port, preface=False) as raw:
        raw.send(first)
        assert raw.until_closed(), raw.data


def test_a_slow_preface_holds_up_nobody(port: int) -> None:
    with Raw(port, preface=False) as raw:
        raw.send(PREFACE[:5])
        got = call(port, call_headers(CHECK), message(b""))
        assert got.status == 0


WRONG: dict[str, Callable[[], bytes]] = {
    "settings-length": lambda: frame(SETTINGS, payload=bytes(5)),
    "settings-ack-with-payload": lambda: frame(SETTINGS, ACK, payload=bytes(6)),
    "settings-on-a-stream": lambda: frame(SETTINGS, 0, 1, b""),
    "settings-window": lambda: frame(SETTINGS, payload=struct.pack(">HI", 4, 1 << 31)),
    "settings-frame-size": lambda: frame(SETTINGS, payload=struct.pack(">HI", 5, 100)),
    "data-too-large": lambda: opened() + frame(DATA, 0, 1, bytes(70_000)),
    "headers-too-large": lambda: frame(HEADERS, END_HEADERS, 1, HEAD + bytes(70_000)),
    "ping-length": lambda: frame(PING, payload=b"123"),
    "window-length": lambda: frame(WINDOW, 0, 0, bytes(3)),
    "continuation-alone": lambda: frame(CONTINUATION, END_HEADERS, 1, HEAD),
    "continuation-of-another": lambda: opened(1, 0) + frame(CONTINUATION, END_HEADERS, 3, b""),
    "headers-broken-off-by-data": lambda: opened(1, 0) + frame(DATA, 0, 1, b""),
    "hpack-index": lambda: frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\x7f"),
    "hpack-noise": lambda: frame(HEADERS, END_HEADERS, 1, bytes(range(256))),
    "hpack-cut": lambda: frame(HEADERS, END_HEADERS, 1, HEAD[:-5]),
    "padding-too-long": lambda: opened() + frame(DATA, 0x8, 1, b"\xff\x00"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_frames_against_the_book(port: int, wrong: str) -> None:
    """What RFC 9113 calls an error of the connection or the stream ends one of the two."""
    with Raw(port) as raw:
        raw.send(WRONG[wrong]())
        refused(raw)


TOLERATED: dict[str, Callable[[], bytes]] = {
    # Errors by RFC 9113, which gRPC's own HTTP/2 passes over.
    "ping-on-a-stream": lambda: frame(PING, 0, 1, bytes(8)),
    "window-overflow": lambda: frame(WINDOW, payload=struct.pack(">I", (1 << 31) - 1)) * 2,
    "data-on-nothing": lambda: frame(DATA, 0, 0, b"x"),
    "headers-on-nothing": lambda: frame(HEADERS, END_HEADERS, 0, HEAD),
    "even-stream": lambda: opened(2),
    "stream-goes-back": lambda: opened(5) + opened(3),
    "unknown-type": lambda: frame(0xBE, 0xFF, 0, b"x" * 100),
    "priority": lambda: frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 16)),
    "unknown-setting": lambda: frame(SETTINGS, payload=struct.pack(">HI", 0xBEEF, 1)),
    "goaway": lambda: frame(GOAWAY, payload=bytes(8)),
    "push": lambda: frame(PUSH, END_HEADERS, 1, struct.pack(">I", 2) + HEAD),
    "reset-of-nothing": lambda: frame(RST, 0, 7, bytes(4)),
    "window-of-nothing": lambda: frame(WINDOW, 0, 0, bytes(4)),
    "self-priority": lambda: frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 16)),
}


@pytest.mark.parametrize("odd", TOLERATED)
def test_odd_frames(port: int, odd: str) -> None:
    """Ignored, or an end of the connection; never more."""
    with Raw(port) as raw:
        raw.send(TOLERATED[odd]())
        raw.send(frame(PING, payload=bytes(8)))
        assert raw.until_kind(PING, GOAWAY) or raw.until_closed(0.1)


def pseudo(*headers: tuple[str, str]) -> bytes:
    """A call of which only the headers are odd."""
    block = literal(list(headers))
    return frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message(b""))


GOOD = call_headers(CHECK)


@pytest.mark.parametrize(
    "headers",
    [
        [item for item in GOOD if item[0] != ":method"],
        [item for item in GOOD if item[0] != ":path"],
        [*GOOD[:3], (":path", "/other"), *GOOD[3:]],
        [*GOOD, (":late", "x")],
        [*GOOD[4:], *GOOD[:4]],
        [(":status", "200"), *GOOD],
        [(k, "" if k == ":path" else v) for k, v in GOOD],
        [(k, "GET" if k == ":method" else v) for k, v in GOOD],
        [(k, "text/html" if k == "content-type" else v) for k, v in GOOD],
        [*GOOD, ("content-length", "99")],
        [*GOOD, ("x-nul", "a\x00b")],
        [*GOOD, ("x-line", "a\r\nb: c")],
    ],
    ids=[
        *("no-method", "no-path", "two-paths", "unknown-pseudo", "pseudo-last", "status"),
        *("empty-path", "get", "html", "wrong-length", "nul", "line-end"),
    ],
)
def test_bad_heads(port: int, headers: list[tuple[str, str]]) -> None:
    """Refused as the protocol has it; or, where that is harmless, not, but it ends."""
    with Raw(port) as raw:
        raw.send(pseudo(*headers))
        refused(raw)


@pytest.mark.parametrize("header", [("Upper", "x"), ("connection", "close"), ("te", "gzip")])
def test_headers_of_another_protocol(port: int, header: tuple[str, str]) -> None:
    with Raw(port) as raw:
        raw.send(pseudo(*GOOD, header))
        refused(raw)


def test_rapid_reset(stage: Stage, port: int) -> None:
    """CVE-2023-44487: calls that are taken back at once cost no more than others."""
    with Raw(port) as raw:
        for first in range(1, 8_001, 400):
            burst = b"".join(
                opened(stream) + frame(RST, 0, stream, struct.pack(">I", 8))
                for stream in range(first, first + 400, 2)
            )
            if not raw.send(burst):
                break
        got = call(port, call_headers(CHECK), message(b""))
        assert got.status == 0


def test_a_flood_of_continuations(port: int) -> None:
    """CVE-2024-27316: a head without an end."""
    more = frame(CONTINUATION, 0, 1, literal([("x-flood", "y" * 16_000)]))
    with Raw(port) as raw:
        raw.send(frame(HEADERS, 0, 1, HEAD))
        for _ in range(600):
            if not raw.send(more):
                break
        raw.send(frame(CONTINUATION, END_HEADERS, 1, b""))
        refused(raw)


def test_a_compressed_bomb(port: int) -> None:
    """One long header in the table, named over and over: a small frame, a large head."""
    name, value = b"x" * 8, b"y" * 4_000
    entry = b"\x40" + bytes((len(name),)) + name + b"\x7f" + bytes(((4_000 - 127) % 128 + 128,))
    entry += bytes(((4_000 - 127) // 128,)) + value
    block = HEAD + entry + b"\xbe" * 12_000
    with Raw(port) as raw:
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        refused(raw)


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, payload=bytes(8)),
        frame(SETTINGS),
        frame(SETTINGS, payload=struct.pack(">HI", 3, 100)),
        frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 1)),
        frame(0xBE, 0, 0, b""),
        frame(WINDOW, 0, 0, struct.pack(">I", 1)),
    ],
    ids=["ping", "empty-settings", "settings", "priority", "unknown", "window"],
)
def test_a_flood_that_nobody_reads(port: int, flood: bytes) -> None:
    """Its sender takes no answers; memory for them is bounded, others are served."""
    with Raw(port) as raw:
        raw.socket.settimeout(1)
        for _ in range(20):
            if not raw.send(flood * 1_000):
                break
        got = call(port, call_headers(CHECK), message(b""))
        assert got.status == 0


def test_more_data_than_the_window(port: int) -> None:
    with Raw(port) as raw:
        raw.send(opened())
        for _ in range(2_000):  # 32 MB: above any window that is offered
            if not raw.send(frame(DATA, 0, 1, bytes(16_384))):
                break
        refused(raw)


def test_a_window_that_never_opens(port: int) -> None:
    """An answer that cannot be sent waits, and costs nobody else anything."""
    with Raw(port, preface=False) as raw:
        raw.send(PREFACE + frame(SETTINGS, payload=struct.pack(">HI", 4, 0)))
        raw.send(opened() + frame(DATA, END_STREAM, 1, message(b"")))
        assert raw.until_kind(HEADERS)
        raw.until_kind(DATA, within_s=0.2)
        assert not [f for f in raw.frames() if f[0] == DATA and f[3]]
        got = call(port, call_headers(CHECK), message(b""))
        assert got.status == 0


def test_many_calls_at_once(port: int) -> None:
    """Opened and left open: more than the server takes are refused, not kept."""
    with Raw(port) as raw:
        for stream in range(1, 4_001, 2):
            if not raw.send(opened(stream)):
                break
        got = call(port, call_headers(CHECK), message(b""))
        assert got.status == 0


def test_many_connections(port: int) -> None:
    idle = [Raw(port) for _ in range(200)]
    try:
        got = call(port, call_headers(CHECK), message(b""))
        assert got.status == 0
    finally:
        for raw in idle:
            raw.socket.close()


@pytest.mark.parametrize(
    "body",
    [
        message(b"", compressed=1),
        message(b"x", length=1_000),
        message(b"x", length=0xFFFFFFFF),
        b"\x00\x00",
        message(b"\xff" * 50),
        b"",
    ],
    ids=["compressed", "cut", "huge", "half-prefix", "noise", "none"],
)
def test_bodies_that_are_no_message(port: int, body: bytes) -> None:
    got = call(port, call_headers(CHECK), body)
    assert got.status not in (None, 0, 2) or got.reset is not None or got.goaway is not None, got


@pytest.mark.parametrize("body", [message(b"", compressed=7), message(b"") * 2])
def test_bodies_that_are_more_than_a_message(port: int, body: bytes) -> None:
    """Of a flag its last bit counts, of two messages the first; or they are refused."""
    assert call(port, call_headers(CHECK), body).status in (0, 3, 12, 13)


@pytest.mark.parametrize("timeout", ["", "x", "1", "99999999999H", "-1S", "1n", "0S"])
def test_odd_deadlines(port: int, timeout: str) -> None:
    """Refused, passed over, or too short; never a hang."""
    got = call(port, call_headers(CHECK, ("grpc-timeout", timeout)), message(b""))
    assert got.status is not None or got.reset is not None or got.closed, got

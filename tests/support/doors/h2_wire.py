"""A client of HTTP/2 that sends what it likes: whole calls by h2, or any frames."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field
from types import TracebackType

import h2.config
import h2.connection
import h2.events

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4
ACK = 0x1

Headers = list[tuple[str, str]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Any frame, allowed or not (RFC 9113, 4.1)."""
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
    return head + payload


def literal(headers: Headers) -> bytes:
    """A header block without the dynamic table and without Huffman's code (RFC 7541, 6.2.2)."""
    block = b""
    for name, value in headers:
        block += b"\x00" + _text(name.encode("latin-1")) + _text(value.encode("latin-1"))
    return block


def _text(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    coded, rest = b"\x7f", size - 127
    while rest >= 128:
        coded += bytes((rest % 128 + 128,))
        rest //= 128
    return coded + bytes((rest,)) + data


def call_headers(path: str, *more: tuple[str, str]) -> Headers:
    """The head of a gRPC call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "gateway.test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def message(data: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(data) if length is None else length) + data


@dataclass
class Answered:
    """What came of a call. reset: the error code of a RST_STREAM. goaway: of a GOAWAY."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    goaway: int | None = None
    closed: bool = False

    @property
    def status(self) -> int | None:
        """The gRPC status; in the head where there is nothing but that."""
        code = self.trailers.get("grpc-status") or self.headers.get("grpc-status")
        return None if code is None else int(code)


class Raw:
    """A connection on which any bytes are sent."""

    def __init__(self, port: int, *, preface: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.data = b""
        if preface:
            self.send(PREFACE + frame(SETTINGS))

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False where the server takes no more."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Type, flags, stream and payload of every frame that has come."""
        found, rest = [], self.data
        while len(rest) >= 9:
            size = int.from_bytes(rest[:3], "big")
            if len(rest) < 9 + size:
                break
            stream = int.from_bytes(rest[5:9], "big") & 0x7FFFFFFF
            found.append((rest[3], rest[4], stream, rest[9 : 9 + size]))
            rest = rest[9 + size :]
        return found

    def until_closed(self, within_s: float = 20.0) -> bool:
        """Read on; True where the server closes in time."""
        return self._read(within_s, None)

    def until_kind(self, *kinds: int, within_s: float = 20.0) -> bool:
        """Read on until a frame of one of these types is there, or the end."""
        self._read(within_s, kinds)
        return any(kind in kinds for kind, _, _, _ in self.frames())

    def _read(self, within_s: float, kinds: tuple[int, ...] | None) -> bool:
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            if kinds is not None and any(kind in kinds for kind, _, _, _ in self.frames()):
                return False
            self.socket.settimeout(left)
            try:
                more = self.socket.recv(262_144)
            except TimeoutError:
                return False
            except OSError:
                return True
            if not more:
                return True
            self.data += more
        return False


def call(port: int, headers: Headers, body: bytes, within_s: float = 5.0) -> Answered:
    """One call by the book on a connection of its own."""
    got = Answered()
    settings = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    with Raw(port, preface=False) as raw:
        connection = h2.connection.H2Connection(settings)
        connection.initiate_connection()
        connection.send_headers(1, headers)
        raw.send(connection.data_to_send())
        for start in range(0, len(body), 16_384):
            # Within the first window of 64 KiB: no call here needs more.
            connection.send_data(1, body[start : start + 16_384])
        connection.end_stream(1)
        raw.send(connection.data_to_send())
        deadline = time.monotonic() + within_s
        raw.socket.settimeout(within_s)
        while time.monotonic() < deadline:
            try:
                data = raw.socket.recv(65_536)
            except OSError:
                break
            if not data:
                got.closed = True
                break
            ended = False
            for event in connection.receive_data(data):
                ended = _note(got, connection, event) or ended
            with contextlib.suppress(OSError):
                raw.socket.sendall(connection.data_to_send())
            if ended:
                break
    return got


def _note(got: Answered, connection: h2.connection.H2Connection, event: h2.events.Event) -> bool:
    """Write an event down; True where it is the last."""
    match event:
        case h2.events.ResponseReceived():
            got.headers = {str(k): str(v) for k, v in event.headers or ()}
        case h2.events.DataReceived():
            got.data += event.data or b""
            connection.acknowledge_received_data(event.flow_controlled_length or 0, 1)
        case h2.events.TrailersReceived():
            got.trailers = {str(k): str(v) for k, v in event.headers or ()}
        case h2.events.StreamReset():
            got.reset = int(event.error_code or 0)
            return True
        case h2.events.ConnectionTerminated():
            got.goaway = int(event.error_code or 0)
            return True
        case h2.events.StreamEnded():
            return True
        case _:
            pass
    return False

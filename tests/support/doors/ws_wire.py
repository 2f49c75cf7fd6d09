"""A client of WebSockets that sends what it likes (RFC 6455)."""

from __future__ import annotations

import base64
import os
import struct
from types import TracebackType

from tests.support.wire import Answer, Client, Headers

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80


def upgrade(path: str, key: str | None, headers: Headers = ()) -> bytes:
    """The request that opens a socket."""
    lines = [
        f"GET {path} HTTP/1.1",
        "host: gateway.test",
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        f"sec-websocket-key: {base64.b64encode(os.urandom(16)).decode()}",
        *([] if key is None else [f"authorization: Bearer {key}"]),
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def ws_frame(
    opcode: int, payload: bytes = b"", *, first: int | None = None, masked: bool = True
) -> bytes:
    """A frame. first: its first byte, where that is not the opcode and FIN."""
    head = bytes((FIN | opcode if first is None else first,))
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes((bit | len(payload),))
    elif len(payload) < 1 << 16:
        head += struct.pack(">BH", bit | 126, len(payload))
    else:
        head += struct.pack(">BQ", bit | 127, len(payload))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    size = len(payload)
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return head + mask + mixed.to_bytes(size, "big")


class Closed(Exception):
    """The server closed. code: of its close frame; 1006 where there was none."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Socket:
    """An open socket, or the HTTP answer that refused it. data: every byte of frames that came."""

    def __init__(
        self, port: int, path: str, key: str | None, headers: Headers = (), timeout_s: float = 10
    ) -> None:
        self._client = Client(port).send(upgrade(path, key, headers))
        self._client.socket.settimeout(timeout_s)
        self.opening: Answer = self._client.head()
        self.refused = self.opening.status != 101
        self.data = bytearray()
        if self.refused:
            for _, piece in self._client.body(self.opening):
                self.opening.body += piece

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._client.send(data)

    def say(self, text: str) -> None:
        """Send a message of text."""
        self.send(ws_frame(TEXT, text.encode("utf-8", "surrogatepass")))

    def hear(self) -> str:
        """The next message of text; pings are answered. Raises: Closed, TimeoutError."""
        whole = b""
        while True:
            first, payload = self._frame()
            opcode = first & 0x0F
            if opcode == PING:
                self.send(ws_frame(PONG, payload))
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                raise Closed(code, payload[2:].decode())
            elif opcode in (0, TEXT):
                whole += payload
                if first & FIN:
                    return whole.decode()
            else:
                assert opcode == PONG, f"a frame of opcode {opcode}"

    def abort(self) -> None:
        """Close the connection without a word."""
        self._client.socket.close()

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._bytes(2)
        assert first & 0x70 == 0, "reserved bits"
        assert second & 0x80 == 0, "servers do not mask"
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(self._bytes(2), "big")
        elif size == 127:
            size = int.from_bytes(self._bytes(8), "big")
        return first, self._bytes(size)

    def _bytes(self, size: int) -> bytes:
        taken = self._client.take(size)
        self.data += taken
        if len(taken) < size:
            raise Closed(1006, "")
        return taken

"""The server's side of WebSockets (RFC 6455), as much as a simulator needs of it."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Protocol

from forebay_engine.sim.wire import Exchange

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR, TOO_LARGE = 1000, 1002, 1009


class Session(Protocol):
    """What speaks over a socket."""

    def opened(self, socket: Socket) -> None:
        """The socket stands."""

    def received(self, data: bytes, opcode: int) -> None:
        """A message has come: `TEXT` or `BINARY`."""

    def closed(self) -> None:
        """Nothing more comes, nor goes."""


def is_wanted(exchange: Exchange) -> bool:
    """Whether a request asks for a WebSocket."""
    upgrade = exchange.header(b"upgrade") or b""
    return (
        exchange.method == "GET"
        and upgrade.lower() == b"websocket"
        and exchange.header(b"sec-websocket-version") == b"13"
        and exchange.header(b"sec-websocket-key") is not None
    )


def frame(data: bytes, opcode: int = TEXT) -> bytes:
    """A whole message in one frame, without a mask."""
    size = len(data)
    if size < 126:
        head = bytes([0x80 | opcode, size])
    elif size < 1 << 16:
        head = bytes([0x80 | opcode, 126]) + struct.pack("!H", size)
    else:
        head = bytes([0x80 | opcode, 127]) + struct.pack("!Q", size)
    return head + data


class Socket:
    """One open socket: `accept` a request that is wanted, then messages go to its session."""

    def __init__(self, exchange: Exchange, session: Session) -> None:
        self._exchange = exchange
        self._session = session
        self._read = bytearray()
        self._message = bytearray()
        self._opcode = 0
        self._closing = False

    def accept(self, headers: bytes = b"") -> None:
        """Answer the handshake. headers: more lines of its answer."""
        key = self._exchange.header(b"sec-websocket-key") or b""
        # The protocol's own use of SHA-1, which protects nothing.
        digest = hashlib.sha1(key + GUID, usedforsecurity=False).digest()
        head = (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-accept: %s\r\n%s\r\n" % (base64.b64encode(digest), headers)
        )
        self._exchange.on_disconnect = self._session.closed
        self._exchange.write(head)
        self._session.opened(self)
        self._exchange.switch(self._received)

    def send(self, text: str) -> None:
        """Send a text message."""
        if not self._closing:
            self._exchange.write(frame(text.encode()))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye, and close."""
        if not self._closing:
            self._exchange.write(frame(code.to_bytes(2, "big") + reason.encode(), CLOSE))
            self._end()

    def cut(self) -> None:
        """Close without a word."""
        self._end()

    def _end(self) -> None:
        if not self._closing:
            self._closing = True
            self._exchange.close()
            self._session.closed()

    def _received(self, data: bytes) -> None:
        self._read += data
        while not self._closing:
            taken = self._frame()
            if taken is None:
                return
            self._handle(*taken)

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """Take the next frame: whether it is final, its opcode, its payload."""
        read = self._read
        if len(read) < 2:
            return None
        size, start = read[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(read) < start:
                return None
            size = int.from_bytes(read[2:start], "big")
        if read[0] & 0x70 or not read[1] & 0x80:
            self.close(PROTOCOL_ERROR)
            return None
        if size > MAX_MESSAGE_BYTES:
            self.close(TOO_LARGE)
            return None
        end = start + 4 + size
        if len(read) < end:
            return None
        mask = bytes(read[start : start + 4])
        masked = bytes(read[start + 4 : end])
        final, opcode = bool(read[0] & 0x80), read[0] & 0x0F
        del read[:end]
        pad = (mask * (size // 4 + 1))[:size]
        plain = int.from_bytes(masked, "big") ^ int.from_bytes(pad, "big")
        return final, opcode, plain.to_bytes(size, "big")

    def _handle(self, final: bool, opcode: int, data: bytes) -> None:
        if opcode == PING:
            self._exchange.write(frame(data, PONG))
        elif opcode == CLOSE:
            code = int.from_bytes(data[:2], "big") if len(data) >= 2 else NORMAL
            self.close(code)
        elif opcode in (TEXT, BINARY, 0):
            if (opcode == 0) == (self._opcode == 0):
                self.close(PROTOCOL_ERROR)
                return
            self._opcode = self._opcode or opcode
            self._message += data
            if len(self._message) > MAX_MESSAGE_BYTES:
                self.close(TOO_LARGE)
            elif final:
                message, kind = bytes(self._message), self._opcode
                self._message.clear()
                self._opcode = 0
                self._session.received(message, kind)
        elif opcode != PONG:
            self.close(PROTOCOL_ERROR)

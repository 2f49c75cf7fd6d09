"""WebSockets to a gateway: a client that behaves, and one that sends any bytes."""

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.processes import Gateway
from tests.support.wire import CHAT

TIMEOUT_S = 10.0
"""Longest wait for a message."""


class Socket:
    """A client's WebSocket whose messages are JSON."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def say(self, message: Any) -> None:
        """Send a message: text as it is, anything else as JSON."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.connection.send(text)

    def text(self, timeout_s: float = TIMEOUT_S) -> str:
        """The next message."""
        message = self.connection.recv(timeout_s)
        assert isinstance(message, str)
        return message

    def next(self, timeout_s: float = TIMEOUT_S) -> Any:
        """The next message, read."""
        return json.loads(self.text(timeout_s))

    def answer(self) -> list[str]:
        """All messages of an answer that is streamed; the last is ``[DONE]``, or an error."""
        messages = []
        while True:
            messages.append(self.text())
            if messages[-1] == "[DONE]" or "error" in json.loads(messages[-1]):
                return messages

    def closed(self, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Read to the end; the code and the reason of the close."""
        with suppress(ConnectionClosed):
            while True:
                self.connection.recv(timeout_s)
        code = self.connection.close_code
        assert code is not None
        return code, self.connection.close_reason or ""


@contextmanager
def open_socket(
    gateway: Gateway, secret: str | None, path: str = CHAT, **options: Any
) -> Iterator[Socket]:
    """A WebSocket with a key in the header ``authorization``."""
    headers = dict(options.pop("headers", {}))
    if secret is not None:
        headers["authorization"] = f"Bearer {secret}"
    options = {"max_size": None, "proxy": None, "open_timeout": TIMEOUT_S, **options}
    url = f"ws://127.0.0.1:{gateway.port}{path}"
    with connect(url, additional_headers=headers, **options) as connection:
        yield Socket(connection)


class Frame(NamedTuple):
    """One frame of a server's."""

    opcode: int
    payload: bytes


class RawSocket:
    """A WebSocket by hand: the handshake is good, what follows is what a test sends.

    key: the handshake's. eager: bytes that go out with it.
    """

    def __init__(
        self,
        port: int,
        secret: str,
        path: str = CHAT,
        *,
        key: str | None = None,
        eager: bytes = b"",
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        key = key or base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nhost: gateway.test\r\nupgrade: websocket\r\n"
            f"connection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n"
            f"authorization: Bearer {secret}\r\n\r\n".encode()
            + eager
        )
        self._read = b""
        self.head = self._until(b"\r\n\r\n").decode("latin-1").lower().split("\r\n")
        assert self.head[0].startswith("http/1.1 101 "), self.head

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def frame(self) -> Frame:
        """The next frame. Raises: ConnectionError at the end."""
        first, second = self._take(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        return Frame(first & 0x0F, self._take(length))

    def close_code(self) -> int | None:
        """Read to the close frame and give its code; None where the connection just ends."""
        try:
            while True:
                frame = self.frame()
                if frame.opcode == 8:
                    return int.from_bytes(frame.payload[:2], "big")
        except ConnectionError:
            return None

    def close(self, *, reset: bool = False) -> None:
        """Close, or with an RST."""
        if reset:
            self.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
        self.socket.close()

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            self._more()
        head, _, self._read = self._read.partition(mark)
        return head

    def _take(self, count: int) -> bytes:
        while len(self._read) < count:
            self._more()
        taken, self._read = self._read[:count], self._read[count:]
        return taken

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed")
        self._read += data


def frame(
    payload: bytes, opcode: int = 1, *, final: bool = True, masked: bool = True, bits: int = 0
) -> bytes:
    """A frame (RFC 6455 §5.2). bits: the reserved ones."""
    first = (0x80 if final else 0) | bits << 4 | opcode
    mask = 0x80 if masked else 0
    length = len(payload)
    if length < 126:
        head = bytes([first, mask | length])
    elif length < 1 << 16:
        head = bytes([first, mask | 126]) + struct.pack("!H", length)
    else:
        head = bytes([first, mask | 127]) + struct.pack("!Q", length)
    # A mask of zeros leaves the payload as it is.
    return head + (bytes(4) if masked else b"") + payload

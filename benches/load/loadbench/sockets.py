"""A thousand sockets in one process: what answers them, and what measures them.

Both sides work on bytes, not on frames: each message holds its time as ``t…t`` (`CLOCK_MONOTONIC`,
nanoseconds, the same for all processes of a machine), and that is all that is looked for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from typing import cast

PACE_S = 0.1
"""Between two messages of a socket, each way."""
PONG_EVERY = 50
"""Messages after which a client shows that it lives: it answers no pings."""
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TIMES = re.compile(rb"t(\d{6,20})t")
PONG = b"\x8a\x80\x00\x00\x00\x00"


def stamp() -> str:
    """The present, as messages hold it."""
    return f"t{time.monotonic_ns()}t"


def masked(text: str) -> bytes:
    """A short text message of a client's; a mask of zeros changes nothing."""
    data = text.encode()
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


class Upstream(asyncio.Protocol):
    """Answers a chat with one event each `PACE_S`, a Realtime session with what it says."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._read = b""
        self._is_socket = False
        self._left = 0
        self._next = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        # uvloop's is no `asyncio.Transport`, though it is one.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._read += data
        if not self._is_socket:
            self._request()
        if self._is_socket:
            self._echo()

    def _request(self) -> None:
        head, mark, rest = self._read.partition(b"\r\n\r\n")
        if not mark or self._transport is None:
            return
        lines = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        if b"upgrade" in lines:
            key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
            digest = hashlib.sha1((key[1] if key else b"") + GUID, usedforsecurity=False).digest()
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"
                b"connection: Upgrade\r\nsec-websocket-accept: %s\r\n\r\n"
                % base64.b64encode(digest)
            )
            self._is_socket, self._read = True, rest
            return
        length = int(lines.get(b"content-length", b"0"))
        if len(rest) < length:
            return
        body, self._read = rest[:length], rest[length:]
        if head.startswith(b"GET"):
            models = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]})
            self._whole(models.encode())
            return
        self._left = int(json.loads(body)["max_tokens"])
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        self._next = asyncio.get_running_loop().time()
        self._event()

    def _whole(self, body: bytes) -> None:
        if self._transport is not None:
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)

    def _event(self) -> None:
        if self._transport is None:
            return
        self._left -= 1
        finish = None if self._left else "stop"
        choice = {"index": 0, "delta": {"content": stamp()}, "finish_reason": finish}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        data = b"data: %s\n\n" % json.dumps({**chunk, "choices": [choice]}).encode()
        if not self._left:
            data += b"data: [DONE]\n\n"
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))
        if not self._left:
            self._transport.write(b"0\r\n\r\n")
            return
        self._next += PACE_S
        asyncio.get_running_loop().call_at(self._next, self._event)

    def _echo(self) -> None:
        read = self._read
        while len(read) >= 6 and self._transport is not None:
            size, is_masked = read[1] & 0x7F, read[1] & 0x80
            start = 6 if is_masked else 2
            if len(read) < start + size:
                break
            if read[0] & 0x0F == 1:
                data = read[start : start + size]
                if is_masked:
                    mask = (read[2:6] * (size // 4 + 1))[:size]
                    number = int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")
                    data = number.to_bytes(size, "big")
                self._transport.write(bytes([0x81, size]) + data)
            read = read[start + size :]
        self._read = read


@dataclass
class Seen:
    """What clients saw. delays: milliseconds from a message's time to its arrival."""

    delays: list[float] = field(default_factory=list)
    failures: int = 0

    def quantile(self, q: float) -> float:
        """A quantile of the delays."""
        ordered = sorted(self.delays)
        return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else float("nan")


class Client(asyncio.Protocol):
    """One client: sends its request, then a message each `PACE_S` if it talks; sees times go by.

    phase: where in each `PACE_S` it talks, 0 to 1; None: wherever it was connected.
    """

    def __init__(
        self, first: bytes, *, talks: bool, seen: Seen, wanted: int, phase: float | None = None
    ) -> None:
        self._first = first
        self._talks = talks
        self._seen = seen
        self._wanted = wanted
        self._phase = phase
        self._sent = 0
        self._tail = b""
        self._transport: asyncio.Transport | None = None
        self._next = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        # uvloop's is no `asyncio.Transport`, though it is one.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._first)
        if self._talks:
            self._next = asyncio.get_running_loop().time() + PACE_S
            if self._phase is not None:
                self._next += (self._phase - self._next / PACE_S) % 1 * PACE_S
            asyncio.get_running_loop().call_at(self._next, self._talk)

    def _talk(self) -> None:
        if self._transport is None or self._sent == self._wanted:
            return
        self._sent += 1
        message = masked(f'{{"type":"x","at":"{stamp()}"}}')
        self._transport.write(message + (PONG if self._sent % PONG_EVERY == 0 else b""))
        self._next += PACE_S
        asyncio.get_running_loop().call_at(self._next, self._talk)

    def data_received(self, data: bytes) -> None:
        """Look for times."""
        now = time.monotonic_ns()
        data = self._tail + data
        end = 0
        for found in TIMES.finditer(data):
            self._seen.delays.append((now - int(found[1])) / 1e6)
            self._wanted -= not self._talks
            end = found.end()
        self._tail = data[max(end, len(data) - 24) :]
        if self._talks and self._sent == self._wanted and not self.done.done():
            asyncio.get_running_loop().call_later(1.0, self._end)
        elif not self._talks and self._wanted <= 0:
            self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def leave(self) -> None:
        """Close."""
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Too early, where there was more to come."""
        self._transport = None
        if not self.done.done():
            self._seen.failures += 1
            self.done.set_result(None)


def handshake(path: str, key: str) -> bytes:
    """The head of a WebSocket's request."""
    nonce = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nhost: bench\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-version: 13\r\nsec-websocket-key: {nonce}\r\n"
        f"authorization: Bearer {key}\r\n\r\n"
    ).encode()

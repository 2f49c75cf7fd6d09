"""A POST over HTTP/2 whose body is sent when the test says so.

By frames: h2 sends nothing more on a connection that has a GOAWAY, which is what is tested.
"""

from __future__ import annotations

import time
from types import TracebackType

import hpack

from tests.support.doors.h2_wire import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    SETTINGS,
    Raw,
    frame,
    literal,
)


class Post:
    """One stream of a connection of its own. An answer in one window of 64 KiB."""

    def __init__(self, port: int, path: str, secret: str, length: int) -> None:
        self._raw = Raw(port)
        self._answered = 0
        block = literal(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "gateway.test"),
                ("authorization", f"Bearer {secret}"),
                ("content-type", "application/json"),
                ("content-length", str(length)),
            ]
        )
        self._raw.send(frame(HEADERS, END_HEADERS, 1, block))

    def __enter__(self) -> Post:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._raw.socket.close()

    @property
    def status(self) -> str | None:
        """The answer's, once its head is there."""
        for kind, _, stream, payload in self._raw.frames():
            if kind == HEADERS and stream == 1:
                return str(dict(hpack.Decoder().decode(payload))[":status"])
        return None

    @property
    def told(self) -> bool:
        """Whether the server has said that the connection ends."""
        return any(kind == GOAWAY for kind, _, _, _ in self._raw.frames())

    @property
    def complete(self) -> bool:
        """Whether the answer has ended as it should."""
        return any(
            kind in (HEADERS, DATA) and stream == 1 and flags & END_STREAM
            for kind, flags, stream, _ in self._raw.frames()
        )

    def send(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body."""
        assert self._raw.send(frame(DATA, END_STREAM if end else 0, 1, data))

    def read(self, within_s: float) -> bool:
        """Read on for so long; True at once when the answer or the connection has ended."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            if self._raw.until_closed(min(left, 0.05)):
                return True
            self._answer()
            if self.complete:
                return True
        return False

    def _answer(self) -> None:
        """Confirm settings and pings that are new."""
        frames = self._raw.frames()
        for kind, flags, _, payload in frames[self._answered :]:
            if kind in (SETTINGS, PING) and not flags & ACK:
                self._raw.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        self._answered = len(frames)

"""HTTP/1.1 connections. Requests are parsed by h11; answers are written as raw bytes, because
faults need to break the framing, and are framed byte for byte as uvicorn's h11 server does.

One request is handled at a time on a connection; pipelined ones wait. A client that shuts down its
sending side has hung up, as for uvicorn.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable
from copy import copy
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast

import h11

KEEP_ALIVE_S = 5.0
MAX_BODY_BYTES = 256 * 1024 * 1024
MAX_PIPELINED_BYTES = 1024 * 1024

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_date: tuple[int, bytes] = (0, b"")


def _common_head(status: int) -> bytes:
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"date: {formatdate(now, usegmt=True)}\r\nserver: uvicorn\r\n".encode())
    return b"HTTP/1.1 %d %s\r\n%s" % (status, _REASONS.get(status, "").encode(), _date[1])


class Line(Protocol):
    """Where an answer goes."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def close(self) -> None:
        """Close after what was written."""

    def exchange_ended(self, close: bool) -> None:
        """The answer is complete."""

    def switched(self, receiver: Callable[[bytes], None]) -> None:
        """From now on what comes is for `receiver`."""


class Exchange:
    """One request and its answer.

    headers: names in lower case, in the order received.
    on_disconnect: called once when the client hangs up before the answer has ended.
    """

    __slots__ = (
        "_chunked",
        "_close",
        "_connection",
        "_origin",
        "body",
        "disconnected",
        "ended",
        "headers",
        "method",
        "on_disconnect",
        "path",
        "query",
        "started",
    )

    def __init__(self, connection: Line, request: h11.Request, body: bytes) -> None:
        self._connection = connection
        self.method = request.method.decode("ascii")
        target = request.target.decode("latin-1")
        self.path, _, self.query = target.partition("?")
        self.headers: list[tuple[bytes, bytes]] = list(request.headers)
        self.body = body
        self.started = self.ended = self.disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        self._chunked = request.http_version >= b"1.1"
        tokens = (self.header(b"connection") or b"").lower()
        self._close = not self._chunked or b"close" in tokens
        self._origin = self.header(b"origin")

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes | None = b"application/json",
        before: bytes = b"",
        *,
        length: int | None = None,
        vary: bool = True,
    ) -> None:
        """Send a whole answer.

        before: header lines to put first. length: a false length. vary: with the headers that
        SGLang's CORS layer adds; what is refused outside that layer lacks them.
        """
        if self.ended or self.disconnected:
            return
        size = len(body) if length is None else length
        head = [_common_head(status), before, b"content-length: %d\r\n" % size]
        if content_type is not None and (body or size):
            head.append(b"content-type: %s\r\n" % content_type)
        head.append(self._tail_head(vary=vary))
        self.started = True
        if self.method != "HEAD":
            head.append(body)
        self._connection.write(b"".join(head))
        if length is None:
            self.end()

    def start_stream(
        self,
        content_type: bytes = b"text/event-stream; charset=utf-8",
        before: bytes = b"",
        *,
        vary: bool = True,
    ) -> bytes:
        """Begin an answer of unknown length. Returns the head, to be sent with the first event.

        before, vary: as `respond` has them.
        """
        self.started = True
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        return b"%s%scontent-type: %s\r\n%s" % (
            _common_head(200),
            before,
            content_type,
            self._tail_head(framing, vary=vary),
        )

    def frame(self, payload: bytes) -> bytes:
        """A payload as one HTTP chunk."""
        return b"%x\r\n%s\r\n" % (len(payload), payload) if self._chunked else payload

    def last_chunk(self) -> bytes:
        """What ends a body of unknown length."""
        return b"0\r\n\r\n" if self._chunked else b""

    def over(self, line: Line) -> Exchange:
        """The same request, to be answered over another line."""
        other = copy(self)
        other._connection = line
        return other

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if not (self.ended or self.disconnected):
            self._connection.write(data)

    @property
    def waiting(self) -> int:
        """Bytes that were written and not yet sent."""
        line = self._connection
        return line.waiting if isinstance(line, Connection) else 0

    def end(self) -> None:
        """The answer is complete; the connection goes on or closes as the request asked."""
        if not (self.ended or self.disconnected):
            self.ended = True
            self._connection.exchange_ended(self._close)

    def switch(self, receiver: Callable[[bytes], None]) -> None:
        """The connection goes on in another protocol: what comes is for `receiver`."""
        self.started = True
        self._connection.switched(receiver)

    def close(self) -> None:
        """Close the connection after what was written, whatever is missing."""
        if not self.disconnected:
            self.ended = True
            self._connection.close()

    def _tail_head(self, framing: bytes = b"", *, vary: bool = True) -> bytes:
        cors = b""
        if self._origin is not None and vary:
            cors = (
                b"access-control-allow-origin: %s\r\naccess-control-allow-credentials: true\r\n"
                % self._origin
            )
        close = b"Connection: close\r\n" if self._close else b""
        return b"%s%s%s%s\r\n" % (cors, b"vary: Origin\r\n" if vary else b"", framing, close)


Handler = Callable[[Exchange], None]


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._loop = asyncio.get_running_loop()
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
        self._transport: asyncio.Transport | None = None
        self._request: h11.Request | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._exchange: Exchange | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._receiver: Callable[[bytes], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is outstanding."""
        return self._exchange is not None

    @property
    def waiting(self) -> int:
        """Bytes that were written and not yet sent."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.ended:
            exchange.disconnected = True
            if exchange.on_disconnect is not None:
                exchange.on_disconnect()

    def data_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver(data)
            return
        if self._exchange is not None:
            self._pending.append(data)
            self._pending_bytes += len(data)
            if self._pending_bytes > MAX_PIPELINED_BYTES and self._transport is not None:
                self._transport.pause_reading()
            return
        self._feed(data)

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was written."""
        self._exchange = None
        if self._transport is not None:
            self._transport.close()

    def switched(self, receiver: Callable[[bytes], None]) -> None:
        """From now on what comes is for `receiver`: what has come already, too."""
        self._receiver = receiver
        early = self._parser.trailing_data[0] + b"".join(self._pending)
        self._pending.clear()
        if early:
            receiver(early)

    def exchange_ended(self, close: bool) -> None:
        """The answer is complete: go on with the next request, or close."""
        if close or self._transport is None:
            self.close()
            return
        self._exchange = None
        self._idle_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_ALIVE_S, self._check_idle)
        rest = self._parser.trailing_data[0]
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
        if self._pending or rest:
            if self._pending_bytes > MAX_PIPELINED_BYTES:
                self._transport.resume_reading()
            data = rest + b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            self._loop.call_soon(self._feed, data)

    def _check_idle(self) -> None:
        self._timer = None
        if self._exchange is not None or self._request is not None or self._transport is None:
            return
        left = self._idle_since + KEEP_ALIVE_S - self._loop.time()
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._check_idle)
        else:
            self._transport.close()

    def _feed(self, data: bytes) -> None:
        if self._exchange is not None:
            self._pending.append(data)
            return
        try:
            self._parser.receive_data(data)
            self._read_events()
        except h11.RemoteProtocolError:
            self.write(
                _common_head(400)
                + b"content-type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
                + b"Invalid HTTP request received."
            )
            self.close()

    def _read_events(self) -> None:
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                self._request = event
                self._body.clear()
                self._body_bytes = 0
                if self._parser.they_are_waiting_for_100_continue:
                    self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._body_bytes += len(event.data)
                if self._body_bytes > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("body too large")
            elif isinstance(event, h11.EndOfMessage):
                if self._request is not None:
                    self._handle(self._request)
                return
            else:
                return

    def _handle(self, request: h11.Request) -> None:
        self._request = None
        exchange = Exchange(self, request, b"".join(self._body))
        self._body.clear()
        self._exchange = exchange
        try:
            self._handler(exchange)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if exchange.started:
                exchange.close()
            else:
                exchange.respond(500, b"Internal Server Error", b"text/plain; charset=utf-8")

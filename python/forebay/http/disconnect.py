"""Noticing that a client has gone.

ASGI tells it through `receive`, and each `receive` that waits costs the server two thread hops,
more than all else that a short request costs. So a request is watched only once it is older than
`GRACE_S`; most unary requests never are.
"""

import asyncio
from collections import deque
from functools import partial

from starlette.types import Receive

from forebay._core import Exchange

GRACE_S = 0.025
"""Seconds before a request is watched. A hang-up is noticed within twice that."""


class Watched:
    """One running request. `done` ends the watch."""

    __slots__ = ("exchange", "receive")

    def __init__(self, receive: Receive, exchange: Exchange) -> None:
        self.receive: Receive | None = receive
        self.exchange: Exchange | None = exchange

    def done(self) -> None:
        """The request has ended; forget it."""
        self.receive = self.exchange = None


class DisconnectWatch:
    """Cancels the exchange of a client that goes away. One timer for all requests."""

    def __init__(self) -> None:
        self._fresh: deque[tuple[float, Watched]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticking = False

    def add(self, receive: Receive, exchange: Exchange) -> Watched:
        """Begin to watch a request whose body was read."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        watched = Watched(receive, exchange)
        self._fresh.append((loop.time(), watched))
        if not self._ticking:
            self._ticking = True
            loop.call_later(GRACE_S, self._tick, loop)
        return watched

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        fresh = self._fresh
        old = loop.time() - GRACE_S
        while fresh and fresh[0][0] <= old:
            _, watched = fresh.popleft()
            self._listen(watched)
        self._ticking = bool(fresh)
        if self._ticking:
            loop.call_later(GRACE_S, self._tick, loop)

    def _listen(self, watched: Watched) -> None:
        if watched.receive is None:
            return
        future = asyncio.ensure_future(watched.receive())
        future.add_done_callback(partial(self._heard, watched))

    def _heard(self, watched: Watched, future: "asyncio.Future[object]") -> None:
        exchange = watched.exchange
        if exchange is None or future.cancelled():
            return
        if future.exception() is None:
            message = future.result()
            if isinstance(message, dict) and message.get("type") != "http.disconnect":
                # The end of the body, which nobody had asked for yet.
                self._listen(watched)
                return
        exchange.cancel()

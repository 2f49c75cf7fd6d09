"""Time, so that tests need not wait for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep(self, seconds: float) -> None:
        """Return after so long."""


class SystemClock:
    """The clock for real."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def first_of(clock: Clock, timeout_s: float, *waiters: asyncio.Future[Any]) -> None:
    """Return when one is done, or after so long. None of them is cancelled."""
    timer = asyncio.ensure_future(clock.sleep(timeout_s))
    try:
        await asyncio.wait((timer, *waiters), return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()


class Changes:
    """Lets some wait until others' changes have made something true."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: set[asyncio.Event] = set()

    def notify(self) -> None:
        """Something has changed."""
        for event in self._waiting:
            event.set()

    async def until(self, true: Callable[[], bool], timeout_s: float = math.inf) -> None:
        """Return when it is true. Raises TimeoutError."""
        event = asyncio.Event()
        self._waiting.add(event)
        deadline = self._clock.now() + timeout_s
        try:
            while not true():
                left = deadline - self._clock.now()
                if left <= 0:
                    raise TimeoutError
                event.clear()
                waiter = asyncio.ensure_future(event.wait())
                try:
                    await first_of(self._clock, min(left, 3600.0), waiter)
                finally:
                    waiter.cancel()
        finally:
            self._waiting.discard(event)

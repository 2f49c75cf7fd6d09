"""Time, so that tests need not wait for it."""

from __future__ import annotations

import asyncio
import time
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

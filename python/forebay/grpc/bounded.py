"""One bound for many short waits, with one timer for all of them.

`asyncio.timeout` arms a timer for each, which costs more than what is waited for, and what is over
long before its time stays among the loop's timers until then.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Bounded:
    """Waits that may take so many seconds each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # When each is late, by the loop's clock, the next one first: all have the same bound.
        self._until: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, wanted: Awaitable[T]) -> T:
        """What is wanted. Raises: TimeoutError when that takes too long."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._until[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)
        try:
            return await wanted
        except asyncio.CancelledError:
            # A client that goes at the same moment comes first.
            if task in self._late and task.uncancel() <= 0:
                raise TimeoutError from None
            raise
        finally:
            self._until.pop(task, None)
            self._late.discard(task)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what is late; come back when the next one is, if there is any."""
        now = loop.time()
        self._timer = None
        for task, until in tuple(self._until.items()):
            if until > now:
                self._timer = loop.call_at(until, self._look, loop)
                return
            del self._until[task]
            self._late.add(task)
            task.cancel()

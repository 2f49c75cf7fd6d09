"""Speaks to the store of shared limits for all leases of this process."""

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING

import structlog

from forebay.limits.breaker import Breaker, State
from forebay.limits.store import FAILURES, LimitStore

if TYPE_CHECKING:
    from forebay._core import Core

log = structlog.get_logger("forebay.limits")

MAX_OPEN = 256
"""Calls that may be out at once; each is of one hash tag."""


class Syncer:
    """Carries what leases ask to the store and brings back what it lends, off the request path.

    core: its limits are shared from `start` on.
    url: as `LimitStore` takes it.
    expected: participants (worker processes of all nodes) until the store tells: without it, each
        spends its share of one of so many.

    While the store is away nothing waits for it: shares are spent, and it is tried each second.
    """

    def __init__(self, core: "Core", url: str, expected: int) -> None:
        self._leases = core.leases(expected)
        self._store = LimitStore(url)
        # New with every start: what an earlier process held is not this one's.
        self._name = secrets.token_hex(5)
        self._breaker = Breaker()
        self._bell = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._lost_at = 0.0
        self._rounds = 0
        self._failed_round = 0

    def start(self) -> None:
        """Begin, on the running event loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._leases.fd, self._bell.set)
        self._task = asyncio.create_task(self._run(), name="forebay-limits")

    async def stop(self) -> None:
        """Give everything back, as far as the store answers at once, and end."""
        task, self._task = self._task, None
        if task is None:
            return
        asyncio.get_running_loop().remove_reader(self._leases.fd)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._breaker.state is State.CLOSED:
            await asyncio.gather(
                *(self._call(self._rounds, *call) for call in self._leases.farewell()),
                return_exceptions=True,
            )
        await self._store.close()

    def state(self) -> str:
        """For `/readyz`."""
        if self._breaker.state is State.CLOSED:
            return "ok"
        share = f"1/{self._leases.live}"
        away = time.monotonic() - self._lost_at
        return f"degraded: store away for {away:.0f} s, limits are {share} of each"

    async def _run(self) -> None:
        try:
            await self._store.connect()
        except FAILURES:
            pass  # The calls that follow fail too, and they are counted.
        except Exception:
            log.exception("limits_connect_failed")
        while True:
            wait_s = 1.0
            try:
                wait_s = await self._round()
            except Exception:
                # A fault of ours: limits go on from shares, and the syncer must outlive it.
                log.exception("limits_syncer_failed")
            # Not wait_for: before 3.12 it loses a cancellation that meets a result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._bell.wait()

    async def _round(self) -> float:
        """Send what is due; the seconds until the next look."""
        if self._breaker.state is not State.CLOSED:
            self._bell.clear()
            now = time.monotonic()
            if not self._breaker.allows(now):
                return max(0.001, self._breaker.wait_s(now))
        if len(self._calls) >= MAX_OPEN:
            await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
        self._bell.clear()
        calls, wait_s = self._leases.collect()
        self._rounds += 1
        for call in calls:
            task = asyncio.create_task(self._call(self._rounds, *call), name="forebay-limits-call")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        return wait_s

    async def _call(self, round_: int, number: int, keys: list[str], args: list[str]) -> None:
        reply = None
        try:
            reply = await self._store.call(keys, [self._name, *args])
        except Exception as error:
            if not isinstance(error, FAILURES):
                log.exception("limits_call_failed")
            # One bad moment of the network may fail many calls of a round: it counts once.
            counts = round_ > self._failed_round
            self._failed_round = max(round_, self._failed_round)
            if counts and self._breaker.failed(time.monotonic()):
                self._lost_at = time.monotonic()
                self._leases.store_lost()
                log.warning("the store of shared limits is away", cause=_cause(error))
        else:
            if self._breaker.succeeded():
                self._leases.store_back()
                away = round(time.monotonic() - self._lost_at, 1)
                log.info("the store of shared limits is back", away_s=away)
        finally:
            self._leases.answer(number, reply)


def _cause(error: BaseException) -> str:
    return str(error) or type(error).__name__

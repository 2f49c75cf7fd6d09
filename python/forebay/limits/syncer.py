"""Speaks to the store of shared limits for all leases of this process."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from forebay.limits.breaker import Breaker, State
from forebay.limits.store import FAILURES, LimitStore

if TYPE_CHECKING:
    from forebay._core import Core

log = structlog.get_logger("forebay.limits")

MAX_OPEN = 256
"""Calls that may be out at once; each is of one hash tag."""
PROBE = ["m", "1", "1", *"00000000"]
"""Arguments of a call of the script that leaves nothing behind."""


class Syncer:
    """Carries what leases ask to the store and brings back what it lends, off the request path.

    core: its limits are shared from `start` on.
    url: as `LimitStore` takes it.
    expected: participants (worker processes of all nodes) until the store tells: without it, each
        spends its share of one of so many.

    While the store is away nothing waits for it: shares are spent, and it is tried each second. The
    same holds of each server of a cluster for itself, and of the limits that it has.
    """

    def __init__(self, core: "Core", url: str, expected: int) -> None:
        self._leases = core.leases(expected)
        self._store = LimitStore(url)
        # New with every start: what an earlier process held is not this one's.
        self._name = secrets.token_hex(5)
        self._parts: dict[str, _Server] = {}
        self._lost = False
        self._bell = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._rounds = 0

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
        last = [
            self._call(self._server_of(keys), self._rounds, number, keys, args)
            for number, keys, args in self._leases.farewell()
            if self._server_of(keys).breaker.state is State.CLOSED
        ]
        await asyncio.gather(*last, return_exceptions=True)
        await self._store.close()

    def state(self) -> str:
        """For `/readyz`."""
        servers, away = self._servers(), self._away()
        if not away:
            return "ok"
        share = f"1/{self._leases.live}"
        away_s = time.monotonic() - min(server.lost_at for server in away)
        if len(away) == len(servers):
            return f"degraded: store away for {away_s:.0f} s, limits are {share} of each"
        part = f"{len(away)} of {len(servers)} servers of the store"
        return f"degraded: {part} away for {away_s:.0f} s, limits there are {share} of each"

    def _server(self, name: str) -> "_Server":
        return self._parts.setdefault(name, _Server(name))

    def _server_of(self, keys: list[str]) -> "_Server":
        return self._server(self._store.server_of(keys[0]))

    def _servers(self) -> list["_Server"]:
        return [self._server(name) for name in self._store.servers()]

    def _away(self) -> list["_Server"]:
        return [one for one in self._servers() if one.breaker.state is not State.CLOSED]

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
        if self._lost:
            self._bell.clear()
            now = time.monotonic()
            wait_s = min(server.breaker.wait_s(now) for server in self._servers())
            if wait_s > 0:
                return max(0.001, wait_s)
        if len(self._calls) >= MAX_OPEN:
            await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
        self._bell.clear()
        calls, wait_s = self._leases.collect()
        self._rounds += 1
        now = time.monotonic()
        for number, keys, args in calls:
            server = self._server_of(keys)
            if server.breaker.allows(now):
                self._spawn(self._call(server, self._rounds, number, keys, args))
            else:
                self._leases.answer(number, None)
        if self._lost:
            # Nothing but a heartbeat was due, which says nothing of the other servers.
            for server in self._away():
                key = self._store.key_at(server.name)
                if key is not None and server.breaker.allows(now):
                    self._spawn(self._ask(server, self._rounds, [key], PROBE))
        return wait_s

    def _spawn(self, call: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(call, name="forebay-limits-call")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(
        self, server: "_Server", round_: int, number: int, keys: list[str], args: list[str]
    ) -> None:
        reply = None
        try:
            reply = await self._ask(server, round_, keys, args)
        finally:
            self._leases.answer(number, reply)

    async def _ask(
        self, server: "_Server", round_: int, keys: list[str], args: list[str]
    ) -> list[int] | None:
        """The reply, None if there is none in time; the breaker learns of it."""
        try:
            reply = await self._store.call(keys, [self._name, *args])
        except Exception as error:
            if not isinstance(error, FAILURES):
                log.exception("limits_call_failed")
            # One bad moment of the network may fail many calls of a round: it counts once.
            counts = round_ > server.failed_round
            server.failed_round = max(round_, server.failed_round)
            if counts and server.breaker.failed(time.monotonic()):
                server.lost_at = time.monotonic()
                self._judge()
                told = {"server": server.name} if server.name else {}
                log.warning("the store of shared limits is away", cause=_cause(error), **told)
            return None
        if server.breaker.succeeded():
            away_s = round(time.monotonic() - server.lost_at, 1)
            told = {"server": server.name} if server.name else {}
            log.info("the store of shared limits is back", away_s=away_s, **told)
        if self._lost:
            # Not by this one's breaker alone: it may have been unknown until now.
            self._judge()
        return reply

    def _judge(self) -> None:
        """Tell the leases whether there is a server at all."""
        lost = len(self._away()) == len(self._servers())
        if lost and not self._lost:
            self._leases.store_lost()
        elif self._lost and not lost:
            self._leases.store_back()
        self._lost = lost


class _Server:
    """What is known of a server of the store."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.breaker = Breaker()
        self.failed_round = 0
        self.lost_at = 0.0


def _cause(error: BaseException) -> str:
    return str(error) or type(error).__name__

"""Requests with an `Idempotency-Key`, as the core asks about them: each is worked on once.

``idempotency.begin`` says what to do with a request: work on it, or give the answer that is there.
While another one works on it, in this process or on another machine, the ask waits.
``idempotency.finish`` keeps the answer, ``idempotency.leave`` gives a request up.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol
from uuid import UUID

import msgspec
import structlog

from forebay.config import Idempotency
from forebay.gateway.asks import Unanswerable, pack, unpack
from forebay.gateway.port import Handler
from forebay.store import StoreUnavailable
from forebay.store.errors import LogKeyMissing, LogUnreadable
from forebay.store.idempotency import AnswerHead, Claim, Replay, Verdict

POLL_S = 0.1
"""Seconds between two looks for what other processes have done, while someone waits for it."""
MAX_WAITING = 1024
"""Requests that wait for others in this process."""
MAX_WAITING_FOR_ONE = 64
"""Of these, such as wait for the same one."""
_RENEWALS = 3
"""Renewals that a lease lasts for: two may be lost."""
_RETRY_S = 1.0
_STOP_S = 2.0

_UNANSWERABLE = (StoreUnavailable, LogKeyMissing, LogUnreadable)

log = structlog.get_logger("forebay.gateway")


class Store(Protocol):
    """What is kept; see `forebay.store.idempotency.IdempotencyStore`."""

    async def claim(self, claim: Claim, *, lease_s: float, ttl_s: float) -> Verdict:
        """Try to get to work on a request."""

    async def finish(self, claim: Claim, answer: Replay | None, *, ttl_s: float) -> bool:
        """Keep an answer; None: it was too large."""

    async def release(self, claim: Claim) -> None:
        """Give a claim up."""

    async def renew(self, claims: Sequence[Claim], *, lease_s: float) -> None:
        """Hold on to claims."""

    async def running(self, names: Sequence[tuple[str, str]]) -> Collection[tuple[str, str]]:
        """Those that someone works on."""


class _Begin(msgspec.Struct, frozen=True, kw_only=True):
    """fingerprint: hex. owner: of this request alone. wait_s: how long to wait for another one."""

    account: str
    key: str
    fingerprint: str
    owner: UUID
    wait_s: float


class _Begun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to do. max_bytes: of an answer that is kept, with ``run``. answer: with ``replay``."""

    do: Literal["run", "replay", "reused", "too_large", "busy", "left"]
    max_bytes: int = 0
    answer: AnswerHead | None = None


class _Finish(msgspec.Struct, frozen=True, kw_only=True):
    """answer: None: it was too large to be kept."""

    owner: UUID
    answer: AnswerHead | None


class _Leave(msgspec.Struct, frozen=True, kw_only=True):
    """owner: of the request that is given up."""

    owner: UUID


class _Asking:
    """A request that asks what to do."""

    def __init__(self) -> None:
        self.left = False
        self.wake = asyncio.Event()


class Repeats:
    """The requests with keys of one process. `start` begins the upkeep of leases, `stop` ends it.

    store: what is kept; None while there is no database. settings: those in force now.
    """

    def __init__(
        self,
        store: Callable[[], Store | None],
        settings: Callable[[], Idempotency],
        *,
        poll_s: float = POLL_S,
        max_waiting: int = MAX_WAITING,
        max_waiting_for_one: int = MAX_WAITING_FOR_ONE,
    ) -> None:
        self._source = store
        self._settings = settings
        self._poll_s = poll_s
        self._most = max_waiting
        self._most_for_one = max_waiting_for_one
        self._asking: dict[UUID, _Asking] = {}
        self._running: dict[UUID, Claim] = {}
        self._waiting: dict[tuple[str, str], set[_Asking]] = {}
        self._waiters = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted = asyncio.Event()

    @property
    def handlers(self) -> dict[str, Handler]:
        """By kind of ask."""
        return {
            "idempotency.begin": self._begin,
            "idempotency.finish": self._finish,
            "idempotency.leave": self._leave,
        }

    @property
    def running(self) -> int:
        """Requests of this process that are worked on."""
        return len(self._running)

    def start(self) -> None:
        """Begin, on the running event loop."""
        for work in (self._renew(), self._poll()):
            self._tasks.append(asyncio.create_task(work, name="idempotency"))

    async def stop(self) -> None:
        """End the upkeep, and give up what still runs: it will not be answered here."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        claims = list(self._running.values())
        self._running.clear()
        store = self._source()
        if store is None:
            return
        # What is not given up in time lapses.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                gone = (store.release(claim) for claim in claims)
                await asyncio.gather(*gone, return_exceptions=True)

    def _store(self) -> Store:
        store = self._source()
        if store is None:
            raise Unanswerable("the database has not been reached yet")
        return store

    async def _begin(self, payload: bytes) -> bytes:
        ask, _ = unpack(payload, _Begin)
        claim = Claim(ask.account, ask.key, bytes.fromhex(ask.fingerprint), ask.owner)
        asking = self._asking[claim.owner] = _Asking()
        try:
            begun, body = await self._decide(claim, asking, ask.wait_s)
        except _UNANSWERABLE as error:
            raise Unanswerable(str(error)) from error
        finally:
            del self._asking[claim.owner]
        return pack(begun, body)

    async def _decide(self, claim: Claim, asking: _Asking, wait_s: float) -> tuple[_Begun, bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while not asking.left:
            store, settings = self._store(), self._settings()
            # Told before it is asked: what ends from now on is not missed.
            asking.wake.clear()
            verdict = await store.claim(claim, lease_s=settings.lease_s, ttl_s=settings.ttl_s)
            if verdict == "run":
                if asking.left:
                    await store.release(claim)
                    break
                self._running[claim.owner] = claim
                return _Begun(do="run", max_bytes=settings.max_answer_bytes), b""
            if isinstance(verdict, Replay):
                return _Begun(do="replay", answer=verdict.head), verdict.body
            if verdict != "running":
                return _Begun(do=verdict), b""
            if not await self._wait(claim.name, asking, deadline):
                return _Begun(do="busy"), b""
        return _Begun(do="left"), b""

    async def _wait(self, name: tuple[str, str], asking: _Asking, deadline: float) -> bool:
        """Wait until it may be asked again. False: too long, or too many do."""
        others = len(self._waiting.get(name, ()))
        if self._waiters >= self._most or others >= self._most_for_one:
            return False
        waiting = self._waiting.setdefault(name, set())
        waiting.add(asking)
        self._waiters += 1
        self._wanted.set()
        try:
            async with asyncio.timeout_at(deadline):
                await asking.wake.wait()
        except TimeoutError:
            return False
        finally:
            waiting.discard(asking)
            self._waiters -= 1
            if not waiting:
                self._waiting.pop(name, None)
        return True

    def _wake(self, name: tuple[str, str]) -> None:
        for asking in self._waiting.get(name, ()):
            asking.wake.set()

    async def _finish(self, payload: bytes) -> bytes:
        ask, body = unpack(payload, _Finish)
        claim = self._running.get(ask.owner)
        if claim is None:
            raise Unanswerable("no such request is worked on")
        answer = None if ask.answer is None else Replay(ask.answer, body)
        try:
            held = await self._store().finish(claim, answer, ttl_s=self._settings().ttl_s)
        except _UNANSWERABLE as error:
            raise Unanswerable(str(error)) from error
        finally:
            # Also where it failed: nobody renews what nobody works on, and the lease lapses.
            self._running.pop(claim.owner, None)
            self._wake(claim.name)
        if not held:
            log.warning("a request was taken over while it was worked on", account=claim.account)
        return b""

    async def _leave(self, payload: bytes) -> bytes:
        ask, _ = unpack(payload, _Leave)
        asking = self._asking.get(ask.owner)
        if asking is not None:
            asking.left = True
            asking.wake.set()
            return b""
        claim = self._running.pop(ask.owner, None)
        if claim is None:
            return b""
        try:
            await self._store().release(claim)
        except _UNANSWERABLE as error:
            raise Unanswerable(str(error)) from error
        finally:
            self._wake(claim.name)
        return b""

    async def _renew(self) -> None:
        """Hold on to what this process works on; what another has taken over is not touched."""
        while True:
            lease_s = self._settings().lease_s
            await asyncio.sleep(lease_s / _RENEWALS)
            store = self._source()
            if store is None or not self._running:
                continue
            try:
                await store.renew(list(self._running.values()), lease_s=lease_s)
            except StoreUnavailable as error:
                log.warning("leases are not renewed", requests=self.running, cause=str(error))
            except Exception:
                log.exception("leases are not renewed")

    async def _poll(self) -> None:
        """Look for what other processes did with the requests that someone waits for here."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._poll_s)
            names = list(self._waiting)
            if not names:
                self._wanted.clear()
                continue
            store = self._source()
            try:
                busy = set(names) if store is None else await store.running(names)
            except StoreUnavailable:
                # Whoever waits asks again once it is there, or no longer than it wanted to.
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:
                log.exception("repeated requests cannot be looked after")
                await asyncio.sleep(_RETRY_S)
                continue
            for name in names:
                if name not in busy:
                    self._wake(name)

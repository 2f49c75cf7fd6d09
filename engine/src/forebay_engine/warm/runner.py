"""Runs a pool: looks at its members, has the planner say what to do, and does it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from forebay_engine.serve.clock import Clock, SystemClock, first_of
from forebay_engine.serve.profile import Park
from forebay_engine.warm.members import PoolMember, saves_memory
from forebay_engine.warm.pool import Action, Desired, Limits, Member, Planner, crash_pause_s, parked

TICK_S = 0.5
"""Between two looks at the members, where nobody has said anything."""
WELL_S = 60.0
"""Warm for so long, and a member's crashes are forgotten."""

MakeMember = Callable[[int, Callable[[str], None]], PoolMember]
"""Makes member `index`; the function is to be called with what somebody says to it."""


class Pool:
    """Members of one profile, `desired.warm` of them warm and `desired.parked` parked.

    idle_s: how long a member stays that requests have had woken, after the last of them; 0: for
    good. Use it in one event loop.
    """

    def __init__(
        self,
        make: MakeMember,
        places: Sequence[int],
        desired: Desired,
        *,
        park: Park = "stop",
        limits: Limits | None = None,
        idle_s: float = 300.0,
        clock: Clock | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """places: each member's, in order. Raises ValueError: there are too few for `desired`."""
        self.desired = desired
        self.park = park
        """What parking is; `stop` once it was seen that memory is not released."""
        self.why = ""
        """Why parking is not what the profile says."""
        self._places = places
        self._limits = limits or Limits()
        self._idle_s = idle_s
        self._clock = clock or SystemClock()
        self._say = say or to_stderr
        self._planner = Planner(self._limits, park)
        count = len(places)
        self._wanted_at: list[float | None] = [None] * count
        self._busy_at = [0.0] * count
        self._crashes = [0] * count
        self._pause_until: list[float | None] = [None] * count
        self._unparked = [0] * count
        """How often parking it has come to nothing, in a row."""
        self._no_parking_until = 0.0
        self._was_parked = [False] * count
        self._ended = [False] * count
        """What was done with it last is that it was ended."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._kicked = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self.members = tuple(make(i, partial(self._word, i)) for i in range(count))
        self._check(desired)

    def set(self, desired: Desired) -> None:
        """Want others from now on. Raises ValueError: there are not so many members."""
        self._check(desired)
        self.desired = desired
        self._kicked.set()

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._loop = asyncio.ensure_future(self._run())

    async def drain(self, grace_s: float) -> None:
        """Let all finish what they have, and end them."""
        await self._stop_planning()
        await asyncio.gather(*(member.drain(grace_s) for member in self.members))

    async def close(self) -> None:
        """End all, at once."""
        await self._stop_planning()
        await asyncio.gather(*(member.close() for member in self.members))

    async def converged(self, timeout_s: float) -> None:
        """Return when as many are warm and parked as are wanted. Raises TimeoutError."""
        deadline = self._clock.now() + timeout_s
        while not self.is_converged:
            if self._clock.now() >= deadline:
                raise TimeoutError(f"the pool is at {self.counts()}")
            await self._clock.sleep(0.05)

    @property
    def is_converged(self) -> bool:
        """As many are warm, and parked, as are wanted; more may be."""
        counts = self.counts()
        parked = 0 if self.park == "stop" else self.desired.parked
        return counts["warm"] >= self.desired.warm and counts["parked"] >= parked

    def counts(self) -> dict[str, int]:
        """How many members are in each state; `parked` ones are not counted as `cold`."""
        found = dict.fromkeys(("warm", "loading", "parked", "cold", "draining", "down"), 0)
        for member in self.members:
            found["parked" if member.parked and member.state == "cold" else member.state] += 1
        return found

    def view(self) -> dict[str, Any]:
        """What `GET /pool` answers."""
        pinned = [self._pinned(index) for index in range(len(self.members))]
        return {
            "warm": self.desired.warm,
            "parked": self.desired.parked,
            "size": len(self.members),
            "places": len(set(self._places)),
            "park": self.park,
            "why": self.why or None,
            "counts": self.counts(),
            "members": [
                {
                    "index": index,
                    "state": member.state,
                    "parked": member.parked,
                    "since_s": round(member.since_s, 3),
                    "url": member.profile.url,
                    "woken": pinned[index],
                    "error": member.error or None,
                }
                for index, member in enumerate(self.members)
            ],
        }

    def _check(self, desired: Desired) -> None:
        if desired.warm < 0 or desired.parked < 0:
            raise ValueError("warm and parked must not be negative")
        if desired.warm + desired.parked > len(self._places):
            raise ValueError(
                f"warm: {desired.warm} and parked: {desired.parked} are more than the pool's "
                f"{len(self._places)} members"
            )
        groups = len(set(self._places))
        if desired.warm > groups:
            raise ValueError(f"warm: {desired.warm}, and there are GPUs for {groups}")

    def _word(self, index: int, word: str) -> None:
        if word == "wake":
            if self.members[index].state not in ("warm", "loading"):
                self._wanted_at[index] = self._clock.now()
                if self._pause_until[index] is not None:
                    self._pause_until[index] = self._clock.now()
        else:
            self._wanted_at[index] = None
        self._kicked.set()

    async def _run(self) -> None:
        while True:
            self._kicked.clear()
            try:
                self._step()
            except Exception as error:  # a fault of ours must not leave the engines alone
                self._say(f"planning failed: {error!r}")
            kicked = asyncio.ensure_future(self._kicked.wait())
            await first_of(self._clock, TICK_S, kicked)
            kicked.cancel()

    async def _stop_planning(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
            self._loop = None

    def _step(self) -> None:
        now = self._clock.now()
        views = [self._look(index, now) for index in range(len(self.members))]
        desired = self.desired
        if now < self._no_parking_until:
            desired = Desired(desired.warm, min(desired.parked, parked(views)))
        for action in self._planner.plan(desired, views, now):
            task = self._tasks.get(action.index)
            if task is None or task.done():
                self._tasks[action.index] = asyncio.ensure_future(self._do(action))

    async def _do(self, action: Action) -> None:
        member = self.members[action.index]
        deed: Coroutine[Any, Any, None]
        match action.deed:
            case "wake":
                deed = member.start()
            case "park":
                deed = self._put_by(action.index)
            case _:
                deed = member.rest(member.profile.drain.grace_s)
        self._ended[action.index] = action.deed == "rest"
        self._say(f"member {action.index}: {action.deed}")
        try:
            await deed
        except Exception as error:
            self._say(f"member {action.index}: {action.deed} failed: {error!r}")

    async def _put_by(self, index: int) -> None:
        member = self.members[index]
        if self.park == "memory" and member.state == "warm":
            saves = await saves_memory(member.http, member.profile)
            if not saves:
                self.park = "stop"
                self.why = (
                    "the engine has no memory saver (/server_info: enable_memory_saver), and would "
                    "answer release and resume with 200 without doing either"
                    if saves is False
                    else "the engine does not say whether it has a memory saver"
                )
                self._say(f"{self.why}; members are stopped instead of parked")
                self._planner = Planner(self._limits, "stop")
                await member.rest(member.profile.drain.grace_s)
                return
        if self.park != "memory":
            await member.put_by()
        elif await member.put():
            self._not_parked(index, "did not release its memory, and was stopped")
        elif member.parked:
            self.why = ""

    def _not_parked(self, index: int, what: str) -> None:
        """Parking has come to nothing, at the cost of a start: it is left for a while."""
        self._unparked[index] += 1
        pause_s = crash_pause_s(self._unparked[index])
        self._no_parking_until = max(self._no_parking_until, self._clock.now() + pause_s)
        self.why = f"member {index} {what}"
        self._say(f"{self.why}; no more are parked for {pause_s:g} s")

    def _look(self, index: int, now: float) -> Member:
        member = self.members[index]
        load = member.load
        requests = 0 if load is None else load.running + load.queued
        if requests > 0 or (member.state == "warm" and member.kind.load_path is None):
            self._busy_at[index] = now
        crashed = member.state == "down" and bool(member.error)
        if not crashed:
            self._pause_until[index] = None
        elif self._pause_until[index] is None:
            self._crashes[index] += 1
            pause_s = crash_pause_s(self._crashes[index])
            self._pause_until[index] = now + pause_s
            self._say(f"member {index} is left alone for {pause_s:g} s")
        if member.state == "warm" and member.since_s >= WELL_S:
            self._crashes[index] = 0
        held = member.parked and member.state == "cold"
        if held and member.since_s >= WELL_S:
            self._unparked[index] = 0
        gone = self._was_parked[index] and not held and member.state == "cold"
        if self.park == "memory" and gone and not self._ended[index]:
            self._not_parked(index, "died while it was parked")
        self._was_parked[index] = held
        until = self._pause_until[index]
        return Member(
            index=index,
            state=member.state,
            parked=member.parked,
            since_s=member.since_s,
            requests=requests,
            pinned=self._pinned(index),
            crashed=crashed,
            pause_s=0.0 if until is None else max(until - now, 0.0),
            starting=member.starting,
            parking=member.parking,
            place=self._places[index],
        )

    def _pinned(self, index: int) -> bool:
        """Whether requests had it woken, and have used it since."""
        wanted_at = self._wanted_at[index]
        if wanted_at is None:
            return False
        member, now = self.members[index], self._clock.now()
        if member.state != "warm":
            return True
        used_at = max(wanted_at, self._busy_at[index], now - member.since_s)
        if self._idle_s > 0 and now - used_at >= self._idle_s:
            self._wanted_at[index] = None
            return False
        return True


def to_stderr(text: str) -> None:
    """Say it as the command."""
    with contextlib.suppress(OSError):
        print(f"forebay-engine warm: {text}", file=sys.stderr, flush=True)

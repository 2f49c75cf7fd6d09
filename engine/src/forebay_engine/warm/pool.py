"""What a pool of engines should do next: desired and actual state → actions. Pure.

Rules, in this order:

- Awake (loading or warm) are as many as are wanted: `warm`, and those that requests have had woken.
- Starts go on `max_parallel` at a time, parked members first, as they are back soonest; one that
  crashed in a loop waits for its pause. Members that share GPUs (`place`) are awake one at a time.
- Surplus members go only after it has lasted `settle_s`, and never so that fewer are warm than are
  wanted: those that still load first, then the least loaded, then the newest.
- What goes is parked while fewer are parked than are wanted, else it ends. So do parked ones too
  many, once no more are to be woken.
- A member that somebody drained is left alone until somebody wakes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from forebay_engine.serve.supervisor import State

Deed = Literal["wake", "park", "rest"]
"""`rest`: finish what runs, and end the process."""
ParkKind = Literal["stop", "memory", "gate"]
"""Of the profile: what parking is (`serve.profile`)."""

CRASH_PAUSE_S = 30.0
"""After a member's supervisor gave it up; doubles with each further time in a row."""
CRASH_PAUSE_MAX_S = 600.0


@dataclass(frozen=True)
class Desired:
    """How many are kept warm, and how many parked beside them."""

    warm: int
    parked: int = 0


@dataclass(frozen=True)
class Limits:
    """max_parallel: starts at a time. settle_s: how long a surplus lasts before it goes."""

    max_parallel: int = 1
    settle_s: float = 30.0


@dataclass(frozen=True)
class Member:
    """One engine as it stands.

    since_s: seconds in this state. requests: running and queued. pinned: requests had it woken, and
    have used it since. crashed: `down`, and nobody asked for that; pause_s: what is left of its
    pause then. starting: it is being parked from nothing, which is a start too. parking: it
    drains, to be parked. place: the GPUs that it shares with the others of that number.
    """

    index: int
    state: State
    parked: bool = False
    since_s: float = 0.0
    requests: int = 0
    pinned: bool = False
    crashed: bool = False
    pause_s: float = 0.0
    starting: bool = False
    parking: bool = False
    place: int = 0

    @property
    def awake(self) -> bool:
        """It serves, or is about to."""
        return self.state in ("loading", "warm")


@dataclass(frozen=True)
class Action:
    """What is to be done with a member."""

    deed: Deed
    index: int


class Planner:
    """Remembers how long there has been a surplus, and nothing else."""

    def __init__(self, limits: Limits, park: ParkKind) -> None:
        self._limits = limits
        self._park = park
        self._awake_since: float | None = None
        self._parked_since: float | None = None

    def plan(self, desired: Desired, members: Sequence[Member], now: float) -> list[Action]:
        """The next actions. Call it again when something has changed, or after a moment."""
        awake = [member for member in members if member.awake]
        pinned = sum(m.pinned for m in members if m.awake or _may_wake(m))
        # What requests have had woken comes on top of what is kept anyway.
        kept = min(desired.warm, sum(not member.pinned for member in awake))
        target = max(desired.warm, kept + pinned)
        missing = self._missing_parked(desired, members)
        # Memory is released by an engine that is up: what is to be parked is started first.
        ahead = missing if self._park == "memory" else 0
        starts = self._starts(target + ahead - len(awake), members)
        free = self._limits.max_parallel - _under_way(members) - len(starts)
        gated = self._gated(missing, free, members, starts) if self._park == "gate" else []
        leaving = self._leaving(target, desired, members, now)
        # Its pause is over: it may be woken again, by us and by a gateway.
        over = [Action("rest", m.index) for m in members if m.crashed and m.pause_s <= 0]
        return [*over, *starts, *gated, *leaving]

    def _starts(self, count: int, members: Sequence[Member]) -> list[Action]:
        free = self._limits.max_parallel - _under_way(members)
        taken = {m.place for m in members if m.awake or (m.state == "draining")}
        found: list[Action] = []
        wanted = sorted(filter(_may_wake, members), key=_wake_order)
        for member in wanted:
            if len(found) >= count:
                break
            # One on its way to its gate is being started already.
            cost = 0 if member.starting else 1
            if member.place not in taken and cost <= free:
                free -= cost
                taken.add(member.place)
                found.append(Action("wake", member.index))
        return found

    def _gated(
        self, missing: int, free: int, members: Sequence[Member], starts: Sequence[Action]
    ) -> list[Action]:
        """Processes that are brought up to their gate."""
        waking = {action.index for action in starts}
        cold = [
            member.index
            for member in members
            if member.state == "cold" and not member.parked and not member.starting
            if member.index not in waking and not member.pinned
        ]
        return [Action("park", index) for index in cold[: max(min(missing, free), 0)]]

    def _missing_parked(self, desired: Desired, members: Sequence[Member]) -> int:
        if self._park == "stop":
            return 0
        return max(desired.parked - parked(members), 0)

    def _leaving(
        self, target: int, desired: Desired, members: Sequence[Member], now: float
    ) -> list[Action]:
        awake = [member for member in members if member.awake]
        rest = [member for member in members if member.parked and member.state == "cold"]
        surplus = len(awake) - target
        extra = len(rest) - desired.parked
        # While some are still to be woken, parked ones are what is woken best.
        too_many = extra > 0 and surplus >= 0
        self._awake_since = _since(self._awake_since, surplus > 0, now)
        self._parked_since = _since(self._parked_since, too_many, now)
        found: list[Action] = []
        if self._settled(self._awake_since, now):
            room = self._missing_parked(desired, members)
            warm = sum(member.state == "warm" for member in awake)
            # Memory is released by engines that are up: those that load for that go on.
            needed = target + (room if self._park == "memory" else 0)
            for member in sorted((m for m in awake if not m.pinned), key=_leave_order):
                if len(found) >= surplus:
                    break
                if member.state == "loading":
                    # It may be the one that is wanted, unless enough are warm.
                    if warm >= target and len(awake) - len(found) > needed:
                        found.append(Action("rest", member.index))
                elif warm > target:
                    warm -= 1
                    found.append(Action("park" if room > 0 else "rest", member.index))
                    room -= 1
        if self._settled(self._parked_since, now):
            newest = sorted(rest, key=lambda m: (m.since_s, -m.index))
            found += [Action("rest", m.index) for m in newest[:extra] if not m.pinned]
        return found

    def _settled(self, since: float | None, now: float) -> bool:
        return since is not None and now - since >= self._limits.settle_s


def crash_pause_s(times: int) -> float:
    """Seconds that a member is left alone after it was given up for the n-th time in a row."""
    return min(CRASH_PAUSE_S * 2.0 ** min(max(times - 1, 0), 30), CRASH_PAUSE_MAX_S)


def _under_way(members: Sequence[Member]) -> int:
    return sum(member.state == "loading" or member.starting for member in members)


def parked(members: Sequence[Member]) -> int:
    """Those that are parked, or about to be."""
    return sum(m.parked or m.starting or m.parking for m in members)


def _may_wake(member: Member) -> bool:
    if member.state == "cold":
        return True
    return member.state == "down" and member.pinned and not member.crashed


def _wake_order(member: Member) -> tuple[bool, bool, int]:
    return (not member.pinned, not member.parked, member.index)


def _leave_order(member: Member) -> tuple[bool, int, float, int]:
    return (member.state == "warm", member.requests, member.since_s, -member.index)


def _since(before: float | None, holds: bool, now: float) -> float | None:
    return (now if before is None else before) if holds else None

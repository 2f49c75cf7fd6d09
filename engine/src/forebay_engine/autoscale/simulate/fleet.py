"""Engines behind a gateway, played event by event: hold, spill, starts, drains and what they cost.

The gateway sends a request to the engine with the least load for its share, holds it while there is
no place, and gives it to a managed tier once it has waited for `patience_s` (the gateway's
`queue_timeout` and `spill_after`). An engine that has just become warm takes its share slowly, as
`slow_start` has it.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from forebay_engine.autoscale.signals import Signals
from forebay_engine.autoscale.simulate.arrivals import Request
from forebay_engine.autoscale.simulate.engine import Engine, EngineModel, Job

Decide = Callable[[Signals], int]
"""How many replicas there are to be from now on."""


@dataclass(frozen=True, slots=True)
class World:
    """What does not depend on who decides.

    target_s: a first token is in time within this
    patience_s: how long a request waits for a place before it goes to the managed tier
    managed_s, managed_spread: the managed tier's time to first token: median, and sd of its
        logarithm
    interval_s: the time between two decisions
    delay_s: from a decision to its effect
    slow_start_s: how long a warm engine grows into its share
    jitter: starts take between `1 - jitter` and `1 + jitter` of `start_s`
    """

    engine: EngineModel = field(default_factory=EngineModel)
    target_s: float = 2.0
    patience_s: float | None = 0.5
    managed_s: float = 0.5
    managed_spread: float = 0.35
    interval_s: float = 2.0
    delay_s: float = 0.0
    slow_start_s: float = 10.0
    jitter: float = 0.1
    warm: int = 0
    """Replicas that are warm at the beginning."""


@dataclass(slots=True)
class Outcome:
    """What came of it. replica_s: seconds of all replicas, their starts and drains included."""

    requests: int = 0
    in_time: int = 0
    spilled: int = 0
    spilled_work_s: float = 0.0
    spilled_tokens: tuple[int, int] = (0, 0)
    starts: int = 0
    replica_s: float = 0.0
    first_tokens_s: list[float] = field(default_factory=list)
    history: list[tuple[float, float, int, int, float]] = field(default_factory=list)
    """At each decision: when, arrivals a second, replicas that are paid, warm, spilled a second."""

    @property
    def met(self) -> float:
        """Share of requests whose first token came in time."""
        return self.in_time / max(self.requests, 1)

    def gpu_hours(self, gpus: int) -> float:
        """Hours of GPUs paid for."""
        return self.replica_s * gpus / 3600


class Fleet:
    """One run. Use `play`."""

    def __init__(self, world: World, decide: Decide, seed: int) -> None:
        self.world = world
        self.outcome = Outcome()
        self._decide = decide
        self._random = random.Random(f"fleet {seed}")
        self._engines: list[Engine] = []
        self._queue: deque[tuple[float, Job]] = deque()
        """Who waits, and since when."""
        self._events: list[tuple[float, int, Engine]] = []
        self._order = itertools.count()
        self._next: dict[int, float] = {}
        self._orders: deque[tuple[float, int]] = deque()
        self._asked = 0
        self._began = 0
        self._firsts = 0
        self._late = 0
        self._spills = 0
        self._read_at = 0.0
        self._means: tuple[float, float] | None = None
        self._service: float | None = None

    def play(self, requests: Iterable[Request]) -> Outcome:
        """Until the last request has ended."""
        world = self.world
        self._resize(world.warm, 0.0, cold=False)
        arrivals = enumerate(requests)
        index, request = next(arrivals, (0, None))
        tick = 0.0
        while request is not None or self._load() or self._queue:
            event = self._events[0][0] if self._events else math.inf
            arrives = request.at if request is not None else math.inf
            expires = self._expires()
            ordered = self._orders[0][0] if self._orders else math.inf
            now = min(event, arrives, expires, ordered, tick)
            if now == event:
                self._happen(now)
            elif request is not None and now == arrives:
                self._arrive(Job(0.0, index, request), now)
                index, request = next(arrivals, (index, None))
            elif now == expires:
                _, job = self._queue.popleft()
                self._spill(job, now)
            elif now == ordered:
                self._resize(self._orders.popleft()[1], now)
            else:
                self._orders.append((now + world.delay_s, self._decide(self._signals(now))))
                tick = now + world.interval_s
        end = max(self._read_at, max((e.gone or 0.0 for e in self._engines), default=0.0))
        for engine in self._engines:
            self.outcome.replica_s += (end if engine.gone is None else engine.gone) - engine.asked
        return self.outcome

    def _load(self) -> int:
        return sum(engine.load for engine in self._engines if engine.gone is None)

    def _expires(self) -> float:
        if self.world.patience_s is None or not self._queue:
            return math.inf
        return self._queue[0][0] + self.world.patience_s

    def _arrive(self, job: Job, now: float) -> None:
        self.outcome.requests += 1
        self._began += 1
        place = None if self._queue else self._place(now)
        if place is None:
            self._queue.append((now, job))
        else:
            self._put(place, job, now)

    def _place(self, now: float) -> Engine | None:
        """The warm engine with the least load for its share that has a place free."""
        best, least = None, math.inf
        slow = self.world.slow_start_s
        for engine in self._engines:
            if engine.gone is not None or engine.draining or engine.warm_at > now:
                continue
            if engine.load >= self.world.engine.slots:
                continue
            age = now - engine.warm_at
            share = 1.0 if age >= slow else max(0.1, age / slow)
            load = (engine.load + 1) / share
            if load < least:
                best, least = engine, load
        return best

    def _put(self, engine: Engine, job: Job, now: float) -> None:
        engine.add(job, now)
        self._schedule(engine)

    def _schedule(self, engine: Engine) -> None:
        at = engine.next_event()
        self._next[id(engine)] = at
        if at < math.inf:
            heapq.heappush(self._events, (at, next(self._order), engine))

    def _happen(self, now: float) -> None:
        at, _, engine = heapq.heappop(self._events)
        if engine.warm_at == at:
            self._pull(now)
        if self._next.get(id(engine)) != at:
            return
        for job, ended in engine.pop(now):
            if ended:
                self._end(job, now)
            else:
                self._first(now - job.request.at)
        self._schedule(engine)
        if engine.draining and not engine.load:
            engine.gone = now
        self._pull(now)

    def _end(self, job: Job, now: float) -> None:
        request = job.request
        old = self._means or (request.prompt, request.output)
        self._means = (
            old[0] + (request.prompt - old[0]) / 500,
            old[1] + (request.output - old[1]) / 500,
        )
        took = now - request.at
        self._service = (
            took if self._service is None else self._service + (took - self._service) / 200
        )

    def _pull(self, now: float) -> None:
        while self._queue and (place := self._place(now)) is not None:
            self._put(place, self._queue.popleft()[1], now)

    def _first(self, took: float) -> None:
        self.outcome.first_tokens_s.append(took)
        self._firsts += 1
        if took <= self.world.target_s:
            self.outcome.in_time += 1
        else:
            self._late += 1

    def _spill(self, job: Job, now: float) -> None:
        world, outcome, request = self.world, self.outcome, job.request
        outcome.spilled += 1
        self._spills += 1
        outcome.spilled_work_s += world.engine.work_s(request.prompt, request.output)
        tokens = outcome.spilled_tokens
        outcome.spilled_tokens = (tokens[0] + request.prompt, tokens[1] + request.output)
        answer = self._random.lognormvariate(math.log(world.managed_s), world.managed_spread)
        self._first(now - request.at + answer)

    def _signals(self, now: float) -> Signals:
        there = [engine for engine in self._engines if engine.gone is None and not engine.draining]
        warm = sum(engine.warm_at <= now for engine in there)
        over = now - self._read_at
        held = len(self._queue) if not warm else 0
        signals = Signals(
            at=now,
            over_s=over,
            arrivals=self._began,
            running=self._load(),
            waiting=len(self._queue) - held,
            held=held,
            service_s=self._service,
            work_s=self.world.engine.work_s(*self._means) if self._means else None,
            first_tokens=self._firsts,
            late=self._late,
            warm=warm,
            starting=len(there) - warm,
        )
        paid = sum(engine.gone is None for engine in self._engines)
        rate, spilled = (self._began / over, self._spills / over) if over else (0.0, 0.0)
        self.outcome.history.append((now, rate, paid, warm, spilled))
        self._began = self._firsts = self._late = self._spills = 0
        self._read_at = now
        return signals

    def _resize(self, wanted: int, now: float, *, cold: bool = True) -> None:
        """Start what is missing; end what is too much, those first that have the least to do."""
        there = [engine for engine in self._engines if engine.gone is None and not engine.draining]
        start = self.world.engine.start_s
        for _ in range(wanted - len(there)):
            spread = self._random.uniform(1 - self.world.jitter, 1 + self.world.jitter)
            engine = Engine(self.world.engine, now, now + start * spread if cold else now)
            engine.warm_at = engine.warm_at if cold else now - self.world.slow_start_s
            self.outcome.starts += cold
            self._engines.append(engine)
            if cold:
                heapq.heappush(self._events, (engine.warm_at, next(self._order), engine))
        least = sorted(
            there, key=lambda engine: (engine.warm_at <= now, engine.load, -engine.asked)
        )
        for engine in least[: max(len(there) - wanted, 0)]:
            engine.draining = True
            if not engine.load:
                engine.gone = now
        if len(self._engines) > 4 * (len(there) + 8):
            self._forget()

    def _forget(self) -> None:
        """Engines that are gone are only counted."""
        gone = [engine for engine in self._engines if engine.gone is not None]
        for engine in gone:
            self.outcome.replica_s += (engine.gone or 0.0) - engine.asked
        self._engines = [engine for engine in self._engines if engine.gone is None]


def play(world: World, requests: Iterable[Request], decide: Decide, seed: int = 0) -> Outcome:
    """Play the requests, in the order of their times, with the replicas that `decide` wants."""
    return Fleet(world, decide, seed).play(requests)

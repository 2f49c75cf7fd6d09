"""How many replicas a model is to have: our rule, and the bounds that hold whatever the rule.

Pure: no clock, no network. `TargetRule` wants what the work in the system needs; `Autoscaler`
    bounds that.
"""

import math
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from forebay_engine.autoscale.signals import Signals

Reason = Literal[
    "load", "backlog", "kv", "late", "forecast", "keeps", "cools", "wake", "idle", "least", "most",
    "cost", "stale",
]  # fmt: skip
"""What decided: see docs/autoscaling.md."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A number of replicas, and what decided it."""

    replicas: int
    reason: Reason


class Rule(Protocol):
    """Says how many replicas would be right, from one reading after the other."""

    def want(self, signals: Signals) -> Wanted:
        """From the latest reading; what it remembers of earlier ones is its own affair."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica is worth.

    concurrency: requests that it runs at once within the target
    start_s: from asked for to serving, measured (`forebay-engine warm`), seconds
    target_s: a first token is in time within this
    late_share: share of first tokens that may be late
    kv_target: share of the KV cache that may be in use
    spill_price: what a managed tier takes for the work that keeps a replica busy, in prices of that
        replica; None where there is no such tier
    """

    concurrency: int = 48
    start_s: float = 60.0
    target_s: float = 2.0
    late_share: float = 0.01
    kv_target: float = 0.85
    spill_price: float | None = None


@dataclass(frozen=True, slots=True)
class Windows:
    """How far back a rule looks, seconds, and how sure it wants to be.

    steady_s: the load is the mean of this
    sudden_s: but the latest of this counts at once, where it cannot be chance
    sureness: standard deviations of a Poisson count beyond which it is none
    keep_s: a replica is kept so long after it was last wanted; None: the start time, as a replica
        that is kept for longer than it takes to start costs more than one that is started anew;
        where a managed tier bears the start, a quarter of it
    safety: what is held ready for the load's fluctuation, in its standard deviations; None: 1, and
        0 where a managed tier bears that
    """

    steady_s: float = 60.0
    sudden_s: float = 6.0
    sureness: float = 2.0
    keep_s: float | None = None
    safety: float | None = None


class Arrivals:
    """Requests a second, from counts: steady, yet at once where the latest cannot be chance."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._counts: deque[tuple[float, float, float]] = deque()

    def add(self, signals: Signals) -> None:
        """Take in a reading; the first of all has no time that it is of."""
        if signals.over_s <= 0:
            return
        self._counts.append((signals.at, signals.arrivals, signals.over_s))
        while self._counts and self._counts[0][0] <= signals.at - self._windows.steady_s:
            self._counts.popleft()

    def rate(self) -> float:
        """The mean of the steady window, moved to within what the latest counts allow."""
        count, over = self._sum(self._windows.steady_s)
        latest, lately = self._sum(self._windows.sudden_s)
        if not over or not lately:
            return 0.0
        doubt = self._windows.sureness * math.sqrt(latest)
        least = max(latest - doubt, 0.0) / lately
        most = (latest + doubt + self._windows.sureness) / lately
        return min(max(count / over, least), most)

    def _sum(self, window_s: float) -> tuple[float, float]:
        since = self._counts[-1][0] - window_s if self._counts else 0.0
        counted = [entry for entry in self._counts if entry[0] > since]
        return sum(entry[1] for entry in counted), sum(entry[2] for entry in counted)


class TargetRule:
    """The work in the system over what a replica does in time: ours.

    Load, in replicas: arrivals a second times the seconds of a replica that one takes. Where those
    are not known (`Signals.work_s`), requests in the system over `concurrency` (Little's law).
    """

    def __init__(self, capacity: Capacity, windows: Windows | None = None) -> None:
        self._capacity = capacity
        self._windows = windows or Windows()
        keep, safety = self._windows.keep_s, self._windows.safety
        alone = capacity.spill_price is None
        self._keep_s = capacity.start_s * (1 if alone else 0.25) if keep is None else keep
        self._safety = float(alone) if safety is None else safety
        self._arrivals = Arrivals(self._windows)
        self._recent: deque[tuple[float, int]] = deque()
        self._late: deque[tuple[float, float, float]] = deque()
        self._stepped = -math.inf
        self._step = 0

    def load(self, signals: Signals) -> float:
        """Replicas that the arrivals keep busy."""
        capacity = self._capacity
        if signals.work_s is not None:
            return self._arrivals.rate() * signals.work_s
        if signals.service_s is not None:
            return self._arrivals.rate() * signals.service_s / capacity.concurrency
        return signals.present / capacity.concurrency

    def want(self, signals: Signals) -> Wanted:
        """See the class. What was wanted within `keep_s` is kept."""
        self._arrivals.add(signals)
        now = max(self._candidates(signals), key=lambda wanted: wanted.replicas)
        self._recent.append((signals.at, now.replicas))
        while self._recent[0][0] < signals.at - self._keep_s:
            self._recent.popleft()
        kept = max(replicas for _, replicas in self._recent)
        return now if now.replicas >= kept else Wanted(kept, "keeps")

    def _candidates(self, signals: Signals) -> list[Wanted]:
        capacity = self._capacity
        load = self.load(signals)
        spread = self._safety * math.sqrt(load / capacity.concurrency)
        found = [Wanted(self._worth(load + spread), "load")]
        if signals.waiting or signals.held:
            # The backlog is to be gone within the time to start what it takes, or sooner.
            work = signals.work_s or (signals.service_s or 0.0) / capacity.concurrency
            extra = (signals.waiting + signals.held) * work / max(capacity.start_s, 1.0)
            found.append(Wanted(max(self._worth(load + spread + extra), 1), "backlog"))
        if signals.kv_used is not None and signals.warm and signals.kv_used > capacity.kv_target:
            wanted = math.ceil(signals.warm * signals.kv_used / capacity.kv_target)
            found.append(Wanted(wanted, "kv"))
        if late := self._late_step(signals):
            found.append(Wanted(late, "late"))
        return found

    def _worth(self, load: float) -> int:
        """Replicas that are worth having: the last one may be less than full where a managed tier
        would cost as much."""
        price = self._capacity.spill_price
        spare = 0.0 if price is None else min(1.0 / price, 1.0)
        return max(math.ceil(load - spare - 1e-9), 0)

    def _late_step(self, signals: Signals) -> int:
        """One more than there are while first tokens are late, and once in a start time only."""
        self._late.append((signals.at, signals.late, signals.first_tokens))
        while self._late[0][0] <= signals.at - self._windows.steady_s:
            self._late.popleft()
        late = sum(entry[1] for entry in self._late)
        seen = sum(entry[2] for entry in self._late)
        allowed = seen * self._capacity.late_share
        if signals.warm and late > allowed + self._windows.sureness * math.sqrt(allowed) + 1:
            if signals.at - self._stepped >= self._capacity.start_s and not signals.starting:
                self._stepped, self._step = signals.at, signals.warm + 1
            return self._step
        return 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a model's replicas.

    least, most: with least 0 the model goes to zero after `idle_s` without requests
    cool_down_s: after more were wanted, none is taken away for so long
    idle_s: how long nobody wants a model before its last replica goes, seconds
    price: of one replica for one hour
    most_per_hour: what all replicas may cost in one hour; None: any sum
    stale_s: a reading that is older decides nothing
    """

    least: int = 0
    most: int = 10
    cool_down_s: float = 0.0
    idle_s: float = 600.0
    price: Decimal | None = None
    most_per_hour: Decimal | None = None
    stale_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises: ValueError naming the field that is out of bounds."""
        if not 0 <= self.least <= self.most:
            raise ValueError(f"least: {self.least} is not between 0 and most ({self.most})")
        if self.most_per_hour is not None:
            if self.price is None or self.price <= 0:
                raise ValueError("price: max_cost_per_hour needs the price of a replica")
            if self.least > self.affordable:
                raise ValueError("least: costs more than max_cost_per_hour")

    @property
    def affordable(self) -> int:
        """Replicas that `most_per_hour` pays for; `most` where money is no bound."""
        if self.most_per_hour is None or self.price is None:
            return self.most
        return int(self.most_per_hour // self.price)


class Autoscaler:
    """Bounds what a rule wants. Its answer is between `least` and `most`, and is paid for.

    What is there at the first reading stays until the second: only then are there rates.
    """

    def __init__(self, rule: Rule, limits: Limits) -> None:
        self._rule = rule
        self._limits = limits
        self._current = limits.least
        self._begun = False
        self._raised = -math.inf
        self._busy = -math.inf

    def decide(self, signals: Signals) -> Wanted:
        """What the model is to have from now on."""
        limits = self._limits
        if signals.age_s > limits.stale_s:
            return Wanted(self._current, "stale")
        wanted = self._rule.want(signals)
        if not self._begun:
            self._begun, self._raised = True, signals.at
            there = self._bounded(Wanted(signals.warm + signals.starting, "keeps"))
            wanted = max(there, wanted, key=lambda one: one.replicas)
            self._current = there.replicas
        if not signals.idle or self._busy == -math.inf:
            self._busy = signals.at
        if signals.idle and signals.at - self._busy >= limits.idle_s:
            wanted = Wanted(0, "idle")
        elif wanted.replicas < 1 and (self._current >= 1 or not signals.idle):
            # Zero is for the idle alone, and who is held wakes the model.
            wanted = Wanted(1, "keeps" if self._current >= 1 else "wake")
        if wanted.replicas > self._current:
            self._raised = signals.at
        elif wanted.replicas < self._current and signals.at - self._raised < limits.cool_down_s:
            wanted = Wanted(self._current, "cools")
        wanted = self._bounded(wanted)
        self._current = wanted.replicas
        return wanted

    def _bounded(self, wanted: Wanted) -> Wanted:
        limits = self._limits
        if wanted.replicas < limits.least:
            return Wanted(limits.least, "least")
        if wanted.replicas > min(limits.most, limits.affordable):
            if limits.affordable < limits.most:
                return Wanted(limits.affordable, "cost")
            return Wanted(limits.most, "most")
        return wanted

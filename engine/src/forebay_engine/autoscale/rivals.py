"""Other rules, as their documents describe them: to compare with, and for those who know them."""

import math
from collections import deque
from dataclasses import dataclass

from forebay_engine.autoscale.policy import Capacity, TargetRule, Wanted, Windows
from forebay_engine.autoscale.signals import Signals


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Knative's pod autoscaler: requests in the system over a target for each replica.

    The mean of `stable_s`, or of a tenth of that while it wants `panic` times what is there; in
    panic nothing is taken away for `stable_s`. `utilisation` of the target is aimed at.
    Source: https://knative.dev/docs/serving/autoscaling/kpa-specific/
    """

    target: int
    utilisation: float = 0.7
    stable_s: float = 60.0
    panic: float = 2.0


class ConcurrencyRule:
    """Knative's."""

    def __init__(self, settings: Concurrency) -> None:
        self._settings = settings
        self._seen: deque[tuple[float, float]] = deque()
        self._panicked = -math.inf
        self._most = 0

    def want(self, signals: Signals) -> Wanted:
        """See `Concurrency`."""
        settings = self._settings
        self._seen.append((signals.at, signals.present))
        while self._seen[0][0] <= signals.at - settings.stable_s:
            self._seen.popleft()
        aim = settings.target * settings.utilisation
        stable = math.ceil(self._mean(signals.at, settings.stable_s) / aim)
        panic = math.ceil(self._mean(signals.at, settings.stable_s / 10) / aim)
        there = signals.warm + signals.starting
        if panic >= settings.panic * max(there, 1):
            self._panicked = signals.at
        if signals.at - self._panicked < settings.stable_s:
            self._most = max(self._most, panic)
            return Wanted(self._most, "load")
        self._most = 0
        return Wanted(stable, "load")

    def _mean(self, now: float, window_s: float) -> float:
        seen = [present for at, present in self._seen if at > now - window_s]
        return sum(seen) / max(len(seen), 1)


@dataclass(frozen=True, slots=True)
class Hpa:
    """Kubernetes' HorizontalPodAutoscaler on a metric that KEDA gives it: requests in the system.

    Every `sync_s`; within `tolerance` nothing changes; up by 4 or to twice as many in 15 s; down to
    the greatest of `down_s`.
    Source: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/
    """

    target: int
    tolerance: float = 0.1
    sync_s: float = 15.0
    down_s: float = 300.0


class HpaRule:
    """Kubernetes'."""

    def __init__(self, settings: Hpa) -> None:
        self._settings = settings
        self._synced = -math.inf
        self._recent: deque[tuple[float, int]] = deque()
        self._current = 0

    def want(self, signals: Signals) -> Wanted:
        """See `Hpa`."""
        settings = self._settings
        if signals.at - self._synced < settings.sync_s:
            return Wanted(self._current, "load")
        self._synced = signals.at
        there = max(signals.warm + signals.starting, 1)
        ratio = signals.present / settings.target / there
        wanted = there if abs(ratio - 1) <= settings.tolerance else math.ceil(ratio * there)
        wanted = min(wanted, max(there + 4, there * 2))
        self._recent.append((signals.at, wanted))
        while self._recent[0][0] < signals.at - settings.down_s:
            self._recent.popleft()
        self._current = max(replicas for _, replicas in self._recent)
        return Wanted(self._current, "load")


class ForecastRule:
    """`TargetRule`, and what arrivals will be once a start is over, if they go on as they do.

    Holt's linear trend of the arrivals, damped to nothing where it points down.
    """

    def __init__(
        self,
        capacity: Capacity,
        windows: Windows | None = None,
        level: float = 0.1,
        trend: float = 0.05,
    ) -> None:
        self._capacity = capacity
        self._inner = TargetRule(capacity, windows)
        self._level_weight, self._trend_weight = level, trend
        self._level: float | None = None
        self._trend = 0.0

    def want(self, signals: Signals) -> Wanted:
        """See the class."""
        wanted = self._inner.want(signals)
        if signals.over_s <= 0:
            return wanted
        rate = signals.arrivals / signals.over_s
        if self._level is None:
            self._level = rate
            return wanted
        before = self._level
        ahead = before + self._trend * signals.over_s
        self._level = ahead + self._level_weight * (rate - ahead)
        slope = (self._level - before) / signals.over_s
        self._trend += self._trend_weight * (slope - self._trend)
        work = signals.work_s or (signals.service_s or 0.0) / self._capacity.concurrency
        rise = max(self._trend, 0.0) * self._capacity.start_s * work
        more = math.floor(rise + 0.5)
        return Wanted(wanted.replicas + more, "forecast") if more else wanted

"""All rules on the same arrivals, each beside the best plan that spills no more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from forebay_engine.autoscale.policy import Autoscaler, Capacity, Limits, Rule, TargetRule
from forebay_engine.autoscale.rivals import (
    Concurrency,
    ConcurrencyRule,
    ForecastRule,
    Hpa,
    HpaRule,
)
from forebay_engine.autoscale.simulate.arrivals import Request
from forebay_engine.autoscale.simulate.fleet import Outcome, World, play
from forebay_engine.autoscale.simulate.plan import Plan, best

LATE_SHARE = 0.01
"""Share of first tokens that may be late."""


@dataclass(frozen=True, slots=True)
class Result:
    """One rule on one set of arrivals. price: of the managed tier, in prices of a replica's work.

    same: the best plan that leaves as much to the managed tier as the rule did
    alone: the best plan that leaves it what may be late anyway
    cheapest: the least that GPUs and the managed tier cost together, in replica-seconds
    """

    rule: str
    outcome: Outcome
    same: Plan
    alone: Plan
    cheapest: float
    price: float

    @property
    def over_same(self) -> float:
        """GPU-hours over those of `same`."""
        return self.outcome.replica_s / self.same.replica_s

    @property
    def over_bound(self) -> float:
        """GPU-hours over what no plan of the same spill can go below."""
        return self.outcome.replica_s / self.same.bound_s

    @property
    def over_alone(self) -> float:
        """GPU-hours over those of `alone`."""
        return self.outcome.replica_s / self.alone.replica_s

    @property
    def over_cheapest(self) -> float:
        """Cost of both over the least."""
        spent = self.outcome.replica_s + self.price * self.outcome.spilled_work_s
        return spent / self.cheapest


def rules(world: World, price: float) -> dict[str, Callable[[], Rule]]:
    """The rules that are compared, made anew for each run."""
    engine = world.engine
    ours = Capacity(engine.slots, engine.start_s, world.target_s, LATE_SHARE, spill_price=price)
    return {
        "target": lambda: TargetRule(ours),
        "forecast": lambda: ForecastRule(ours),
        "target, no spill price": lambda: TargetRule(replace(ours, spill_price=None)),
        "concurrency (Knative)": lambda: ConcurrencyRule(Concurrency(engine.slots)),
        "HPA (KEDA)": lambda: HpaRule(Hpa(round(engine.slots * 0.7))),
    }


def play_rule(
    rule: Rule, requests: Sequence[Request], world: World, seed: int, most: int = 100
) -> Outcome:
    """One rule, at least one replica."""
    scaler = Autoscaler(rule, Limits(least=1, most=most))
    return play(world, requests, lambda signals: scaler.decide(signals).replicas, seed)


def compare(
    requests: Sequence[Request],
    world: World,
    price: float,
    seed: int,
    names: Sequence[str] | None = None,
) -> list[Result]:
    """Each rule's result, in the order of `rules`."""
    from forebay_engine.autoscale.simulate.plan import STEP_S, demand, priced

    engine = world.engine
    work = sum(engine.work_s(request.prompt, request.output) for request in requests)
    alone = best(requests, engine, LATE_SHARE * work)
    cheapest = priced(demand(requests, engine, STEP_S), engine.start_s, price, STEP_S).least
    found = []
    for name, make in rules(world, price).items():
        if names is not None and name not in names:
            continue
        outcome = play_rule(make(), requests, world, seed)
        same = best(requests, engine, outcome.spilled_work_s)
        found.append(Result(name, outcome, same, alone, cheapest, price))
    return found

"""What one could have known: the fewest replica-seconds for arrivals that are all known beforehand.

Work is taken as a fluid. A request brings `work_s` replica-seconds, spread evenly over the time
that a full batch takes for it, and `n` replicas do `n` of these a second. The k-th replica has what
is above `k - 1`, at most 1, and is on or off: on costs its seconds and its start beforehand, off
leaves its load to the managed tier, which may have `spill_s` replica-seconds in all. Each of these
has its best plan by dynamic programming, and as a lower replica has always more load than a higher
one, together they are the best plan (as in Lin, Wierman, Andrew and Thereska 2011, "Dynamic
right-sizing for power-proportional data centers"). What is left to the managed tier is priced, and
the price sought at which it is `spill_s`; by Lagrangian duality no plan within `spill_s` costs less
than `Plan.bound_s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from forebay_engine.autoscale.simulate.arrivals import Request
from forebay_engine.autoscale.simulate.engine import EngineModel

STEP_S = 4.0
"""The time of one step of a plan, seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The best plan. replicas: how many serve in each step; replica_s, spilled_s: what it costs.

    bound_s: no plan that spills at most as much as was allowed costs less.
    """

    replicas: list[int]
    replica_s: float
    spilled_s: float
    bound_s: float


def demand(requests: Sequence[Request], engine: EngineModel, step_s: float) -> list[float]:
    """Replicas that are needed in each step for all of the work."""
    end = max(request.at + engine.service_s(request.prompt, request.output) for request in requests)
    steps = [0.0] * (int(end / step_s) + 2)
    for request in requests:
        work = engine.work_s(request.prompt, request.output)
        took = engine.service_s(request.prompt, request.output)
        first, rate = request.at, work / took
        left = first + took
        step = int(first / step_s)
        while first < left:
            until = min(left, (step + 1) * step_s)
            steps[step] += rate * (until - first) / step_s
            first, step = until, step + 1
    return steps


def _level(load: list[float], start: float, price: float, step: float) -> tuple[list[bool], float]:
    """When one replica is on, and the least of cost and price together."""
    on, off = start, 0.0
    came_on: list[bool] = []
    came_off: list[bool] = []
    for part in load:
        # Whether the better way to be on (off) here was to be on the step before.
        came_on.append(on <= off + start)
        came_off.append(on < off)
        on, off = min(on, off + start) + step, min(on, off) + price * part * step
    is_on = on < off
    best = min(on, off)
    states = []
    for stayed_on, went_off in zip(reversed(came_on), reversed(came_off), strict=True):
        states.append(is_on)
        is_on = stayed_on if is_on else went_off
    return states[::-1], best


@dataclass(frozen=True, slots=True)
class Priced:
    """The plan of the least cost at a price of what is spilled; `least` is that cost."""

    replicas: list[int]
    replica_s: float
    spilled_s: float
    least: float


def priced(steps: list[float], start: float, price: float, step: float) -> Priced:
    """The cheapest plan where a spilled replica-second costs `price` of one that is paid for."""
    replicas = [0] * len(steps)
    cost = spilled = least = 0.0
    level = 0
    while any(part > level for part in steps):
        load = [min(max(part - level, 0.0), 1.0) for part in steps]
        states, best_cost = _level(load, start, price, step)
        least += best_cost
        before = False
        for at, (state, part) in enumerate(zip(states, load, strict=True)):
            if state:
                replicas[at] += 1
                cost += step + (0.0 if before else start)
            else:
                spilled += part * step
            before = state
        level += 1
    return Priced(replicas, cost, spilled, least)


def best(
    requests: Sequence[Request], engine: EngineModel, spill_s: float, *, rounds: int = 14
) -> Plan:
    """The best plan that leaves at most `spill_s` replica-seconds of work to the managed tier."""
    steps = demand(requests, engine, STEP_S)
    # At this price nothing is spilled: a start pays for itself within a step.
    found = priced(steps, engine.start_s, 1e9, STEP_S)
    low, high, bound = 0.01, 1_000.0, 0.0
    for _ in range(rounds):
        # Prices differ by orders of magnitude.
        price = (low * high) ** 0.5
        plan = priced(steps, engine.start_s, price, STEP_S)
        bound = max(bound, plan.least - price * spill_s)
        if plan.spilled_s <= spill_s:
            high = price
            found = min(found, plan, key=lambda one: one.replica_s)
        else:
            low = price
    return Plan(found.replicas, found.replica_s, found.spilled_s, bound)

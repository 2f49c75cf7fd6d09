"""The simulation: its queue model against what can be reckoned, and what scaling must show."""

import random
from pathlib import Path

import pytest
from forebay_engine.autoscale.policy import TargetRule
from forebay_engine.autoscale.simulate.arrivals import (
    Request,
    Shape,
    bursts,
    diurnal,
    poisson,
    ramp,
    read,
)
from forebay_engine.autoscale.simulate.compare import compare, play_rule, rules
from forebay_engine.autoscale.simulate.engine import EngineModel
from forebay_engine.autoscale.simulate.fleet import Outcome, World, play
from forebay_engine.autoscale.simulate.plan import STEP_S, best, demand, priced

ENGINE = EngineModel()
ALONE = World(patience_s=None, warm=1, slow_start_s=0.0, jitter=0.0)


def fixed(requests: list[Request], world: World, replicas: int = 1) -> Outcome:
    return play(world, requests, lambda signals: replicas)


def test_one_request_takes_its_prompt_and_a_step_for_each_further_token() -> None:
    outcome = fixed([Request(1.0, 1_400, 101)], ALONE)
    assert outcome.first_tokens_s == [pytest.approx(0.1)]
    # One replica from 0 to the end of the last token: 100 steps of 15.1 ms.
    assert outcome.replica_s == pytest.approx(1.1 + 100 * 0.0151, abs=ALONE.interval_s)


def test_prompts_are_read_one_after_the_other() -> None:
    outcome = fixed([Request(1.0, 1_400, 1)] * 5, ALONE)
    assert outcome.first_tokens_s == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_full_engine_makes_others_wait_and_patience_ends_that() -> None:
    requests = [Request(1.0, 14, 2_000)] * (ENGINE.slots + 1)
    waits = fixed(requests, ALONE)
    assert max(waits.first_tokens_s) > 30
    assert waits.spilled == 0
    spills = fixed(requests, World(warm=1, jitter=0.0))
    assert (spills.spilled, spills.requests) == (1, ENGINE.slots + 1)
    assert spills.met == 1.0


def test_a_full_batch_has_the_throughput_that_is_reckoned_with() -> None:
    random_ = random.Random(1)
    shape = Shape(spread=0.01)
    requests = [
        Request(0.0, shape.draw(500, random_), shape.draw(400, random_)) for _ in range(2_000)
    ]
    outcome = fixed(requests, ALONE)
    reckoned = sum(ENGINE.work_s(request.prompt, request.output) for request in requests)
    assert outcome.replica_s == pytest.approx(reckoned, rel=0.05)


def test_starts_and_drains_are_paid_for() -> None:
    def decide(signals: object) -> int:
        return 3 if 2 <= signals.at < 100 else 1  # type: ignore[attr-defined]

    requests = [Request(float(at), 14, 2) for at in range(0, 200)]
    outcome = play(World(warm=1, jitter=0.0), requests, decide)
    assert outcome.starts == 2
    # The first for all of the time, two more from 2 s to 100 s.
    assert outcome.replica_s == pytest.approx(200 + 2 * 98, abs=5)


def test_everybody_is_answered_once() -> None:
    requests = list(poisson(bursts(2, 1, horizon_s=1_200), Shape(), 1))
    outcome = play_rule(rules(World(), 2.0)["target"](), requests, World(warm=1), 1)
    assert outcome.requests == len(requests) == len(outcome.first_tokens_s)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bursts_of_ten_times_are_in_time_and_near_the_best_plan(seed: int) -> None:
    """The reference knows all arrivals and may spill as much as the rule did; no plan is below its
    bound (docs/autoscaling.md).
    """
    requests = list(poisson(bursts(6, seed, factor=10, horizon_s=7_200), Shape(), seed))
    (ours,) = compare(requests, World(warm=2), 2.0, seed, ["target"])
    assert ours.outcome.met >= 0.99
    assert ours.over_bound <= 1.3
    assert ours.over_same <= ours.over_bound
    assert ours.outcome.spilled / ours.outcome.requests < 0.35


def test_the_best_plan_is_as_good_in_the_simulation_as_on_paper() -> None:
    """What it is compared with could be had: played, it is in time and spills as much."""
    requests = list(poisson(bursts(6, 0, horizon_s=4_500), Shape(), 0))
    world = World(warm=2, jitter=0.0)
    ours = play_rule(rules(world, 2.0)["target"](), requests, world, 0)
    plan = best(requests, ENGINE, ours.spilled_work_s)

    def decide(signals: object) -> int:
        step = int((signals.at + ENGINE.start_s) / STEP_S)  # type: ignore[attr-defined]
        now = int(signals.at / STEP_S)  # type: ignore[attr-defined]
        ahead = plan.replicas[now : step + 1]
        return max(ahead, default=0)

    played = play(world, requests, decide)
    assert played.met >= 0.99
    assert played.spilled_work_s <= ours.spilled_work_s * 1.25
    assert played.replica_s >= plan.replica_s * 0.95


def test_a_plan_keeps_what_is_cheaper_to_keep_than_to_start_again() -> None:
    load = [1.0] * 10 + [0.0] * 5 + [1.0] * 10 + [0.0] * 50 + [1.0] * 10
    plan = priced(load, 60.0, 1e9, 4.0)
    # A gap of 20 s is kept through, one of 200 s is not.
    assert plan.replicas == [1] * 25 + [0] * 50 + [1] * 10
    assert plan.replica_s == 35 * 4 + 2 * 60
    assert plan.spilled_s == 0


def test_a_plan_leaves_to_the_managed_tier_what_is_too_short_to_start_for() -> None:
    load = [1.0] * 5 + [0.0] * 100 + [1.0] * 100
    plan = priced(load, 60.0, 2.0, 4.0)
    assert plan.replicas == [0] * 105 + [1] * 100
    assert plan.spilled_s == 20


def test_demand_is_all_of_the_work() -> None:
    requests = list(poisson(diurnal(1, period_s=300), Shape(), 3))
    work = sum(ENGINE.work_s(request.prompt, request.output) for request in requests)
    assert sum(demand(requests, ENGINE, STEP_S)) * STEP_S == pytest.approx(work)


def test_the_same_seed_makes_the_same_arrivals() -> None:
    rate = ramp(2, horizon_s=600)
    one, same, other = (list(poisson(rate, Shape(), seed)) for seed in (1, 1, 2))
    assert one == same != other
    lengths = [request.prompt for request in one]
    assert sum(lengths) / len(lengths) == pytest.approx(500, rel=0.1)


def test_bursts_are_ten_times_the_rate_at_rest() -> None:
    rate = bursts(3, 5, horizon_s=7_200)
    requests = list(poisson(rate, Shape(), 5))
    length = sum(end - start for start, end in rate.spans)
    within = sum(
        any(start <= request.at < end for start, end in rate.spans) for request in requests
    )
    assert within / length == pytest.approx(30, rel=0.1)
    assert (len(requests) - within) / (7_200 - length) == pytest.approx(3, rel=0.1)


def test_a_trace_is_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("prompt_tokens,at_s,output_tokens\n10,2.5,3\n20,1,4\n")
    assert read(path) == [Request(1.0, 20, 4), Request(2.5, 10, 3)]
    path.write_text("at_s,prompt_tokens,output_tokens\n1,2,3\n-1,2,3\n")
    with pytest.raises(ValueError, match=r"trace\.csv:3: at_s"):
        read(path)
    path.write_text("at_s,prompt_tokens\n1,2\n")
    with pytest.raises(ValueError, match="no column output_tokens"):
        read(path)
    path.write_text("at_s,prompt_tokens,output_tokens\n")
    with pytest.raises(ValueError, match="no requests"):
        read(path)


def test_the_rule_that_is_shown_is_the_one_that_runs() -> None:
    assert isinstance(rules(World(), 2.0)["target"](), TargetRule)

"""What a model is to have: bounds that hold for any readings, and what our rule makes of load."""

from decimal import Decimal

import pytest
from forebay_engine.autoscale.policy import (
    Autoscaler,
    Capacity,
    Limits,
    TargetRule,
    Wanted,
    Windows,
)
from forebay_engine.autoscale.rivals import (
    Concurrency,
    ConcurrencyRule,
    ForecastRule,
    Hpa,
    HpaRule,
)
from forebay_engine.autoscale.signals import Signals
from hypothesis import given, settings
from hypothesis import strategies as st

RULES = {
    "target": lambda: TargetRule(Capacity()),
    "spilling": lambda: TargetRule(Capacity(spill_price=2.0)),
    "forecast": lambda: ForecastRule(Capacity()),
    "concurrency": lambda: ConcurrencyRule(Concurrency(48)),
    "hpa": lambda: HpaRule(Hpa(34)),
}

few = settings(max_examples=30, deadline=None)

counts = st.integers(min_value=0, max_value=2_000)
readings = st.lists(
    st.builds(
        dict,
        arrivals=counts,
        running=counts,
        waiting=counts,
        held=counts,
        work_s=st.none() | st.floats(min_value=0.01, max_value=5),
        service_s=st.none() | st.floats(min_value=0.1, max_value=100),
        kv_used=st.none() | st.floats(min_value=0, max_value=1),
        first_tokens=counts,
        warm=st.integers(min_value=0, max_value=30),
        starting=st.integers(min_value=0, max_value=30),
        age_s=st.sampled_from([0.0, 0.0, 0.0, 5.0, 100.0]),
    ),
    min_size=1,
    max_size=40,
)
limits = st.tuples(st.integers(0, 5), st.integers(5, 40)).map(
    lambda bounds: Limits(least=bounds[0], most=bounds[1], idle_s=10)
)


def signals(number: int, **values: object) -> Signals:
    """Readings of every 2 s."""
    given = {"arrivals": 0, "running": 0, **values}
    return Signals(at=2.0 * number, over_s=2.0 if number else 0.0, **given)  # type: ignore[arg-type]


def decisions(scaler: Autoscaler, *each: dict[str, object]) -> list[Wanted]:
    return [scaler.decide(signals(number, **values)) for number, values in enumerate(each)]


def steady(rate: float, seconds: int, **values: object) -> list[dict[str, object]]:
    """So many requests a second, of 0.2 replica-seconds."""
    return [{"arrivals": rate * 2, "work_s": 0.2, "warm": 1, **values}] * (seconds // 2)


@pytest.mark.parametrize("rule", RULES)
@few
@given(each=readings, bounds=limits)
def test_it_is_never_outside_of_its_bounds(
    rule: str, each: list[dict[str, object]], bounds: Limits
) -> None:
    scaler = Autoscaler(RULES[rule](), bounds)
    for wanted in decisions(scaler, *each):
        assert bounds.least <= wanted.replicas <= bounds.most


@pytest.mark.parametrize("rule", RULES)
@few
@given(each=readings, cents=st.integers(1, 2_000), budget=st.integers(0, 20_000))
def test_it_is_never_dearer_than_what_may_be_spent(
    rule: str, each: list[dict[str, object]], cents: int, budget: int
) -> None:
    price, most = Decimal(cents) / 100, Decimal(budget) / 100
    bounds = Limits(most=40, price=price, most_per_hour=most)
    for wanted in decisions(Autoscaler(RULES[rule](), bounds), *each):
        assert wanted.replicas * price <= most


@few
@given(each=readings)
def test_more_is_never_followed_by_less_within_the_cool_down(each: list[dict[str, object]]) -> None:
    bounds = Limits(most=40, cool_down_s=20, idle_s=1e9)
    before, raised = 0, -1e9
    for number, wanted in enumerate(decisions(Autoscaler(TargetRule(Capacity()), bounds), *each)):
        if number and wanted.replicas < before:
            assert number * 2 - raised >= 20
        if wanted.replicas > before:
            raised = number * 2
        before = wanted.replicas


@pytest.mark.parametrize("price", [None, 1.0, 3.0])
@few
@given(
    each=readings,
    field=st.sampled_from(["waiting", "held", "kv_used"]),
    at=st.integers(0, 39),
)
def test_more_load_never_wants_less(
    price: float | None, each: list[dict[str, object]], field: str, at: int
) -> None:
    at %= len(each)
    old = each[at][field] or 0
    assert isinstance(old, int | float)
    raised = min(old * 2 + 0.1, 1.0) if field == "kv_used" else old + 100
    more = [*each[:at], {**each[at], field: raised}]
    one, other = (TargetRule(Capacity(spill_price=price)) for _ in range(2))
    lesser = [one.want(signals(number, **values)) for number, values in enumerate(each[: at + 1])]
    greater = [other.want(signals(number, **values)) for number, values in enumerate(more)]
    assert greater[-1].replicas >= lesser[-1].replicas


@few
@given(st.integers(0, 200), st.integers(0, 200))
def test_more_arrivals_never_want_less(one: int, other: int) -> None:
    fewer, more = sorted((one, other))

    def wants(rate: int) -> int:
        rule = TargetRule(Capacity())
        return [
            rule.want(signals(number, **values)).replicas
            for number, values in enumerate(steady(rate, 40))
        ][-1]

    assert wants(fewer) <= wants(more)


def test_a_steady_load_has_its_replicas_and_room_for_its_spread() -> None:
    scaler = Autoscaler(TargetRule(Capacity()), Limits(most=20))
    # 20 a second, 0.2 s each: four replicas are full, and its spread makes five.
    assert decisions(scaler, *steady(20, 120))[-1] == Wanted(5, "load")


def test_a_burst_counts_at_once() -> None:
    scaler = Autoscaler(TargetRule(Capacity()), Limits(most=40))
    decided = decisions(scaler, *steady(6, 120), *steady(60, 6))
    assert decided[59].replicas == 2
    assert decided[60].replicas >= 4
    assert decided[62].replicas >= 11


def test_chance_moves_nothing() -> None:
    scaler = Autoscaler(TargetRule(Capacity()), Limits(most=40))
    noise = [{"arrivals": 12 + wave, "work_s": 0.2, "warm": 2} for wave in (4, -4, 3, -5, 6, -3)]
    decided = decisions(scaler, *steady(6, 120), *noise, *noise)
    assert {wanted.replicas for wanted in decided[30:]} == {2}


@pytest.mark.parametrize(("price", "replicas"), [(None, 2), (1.0, 1), (2.0, 1), (10.0, 2)])
def test_the_last_replica_has_to_be_worth_what_the_managed_tier_would_cost(
    price: float | None, replicas: int
) -> None:
    rule = TargetRule(Capacity(spill_price=price), Windows(safety=0))
    scaler = Autoscaler(rule, Limits(least=1, most=20))
    # 1.4 replicas of work: the second one would be two fifths full.
    assert decisions(scaler, *steady(7, 120))[-1].replicas == replicas


def test_what_waits_is_worked_off_within_the_time_of_a_start() -> None:
    rule = TargetRule(Capacity(start_s=60))
    calm = [rule.want(signals(n, **values)) for n, values in enumerate(steady(10, 60))][-1]
    waits = rule.want(signals(30, arrivals=20, work_s=0.2, warm=3, waiting=900))
    # 900 of 0.2 s each in 60 s are three replicas more.
    assert waits == Wanted(calm.replicas + 3, "backlog")


def test_a_full_cache_wants_more() -> None:
    rule = TargetRule(Capacity(kv_target=0.8))
    assert rule.want(signals(0, warm=4, kv_used=0.9)) == Wanted(5, "kv")
    assert rule.want(signals(1, warm=4, kv_used=0.99)) == Wanted(5, "kv")


def test_late_first_tokens_want_one_more_and_then_time_to_help() -> None:
    rule = TargetRule(Capacity(start_s=60))
    late = {"warm": 3, "first_tokens": 100, "late": 30}
    wanted = [rule.want(signals(number, **late)) for number in range(30)]
    assert {one.replicas for one in wanted} == {4}
    assert wanted[0].reason == "late"
    after = rule.want(signals(30, **{**late, "warm": 4}))
    assert after.replicas == 5


def test_an_idle_model_goes_to_zero_and_a_held_request_wakes_it() -> None:
    scaler = Autoscaler(TargetRule(Capacity(start_s=4)), Limits(most=5, idle_s=60))
    decided = decisions(scaler, *steady(1, 60), *steady(0, 58))
    assert decided[-1].replicas == 1
    asleep = scaler.decide(signals(60, work_s=0.2, warm=1))
    assert asleep == Wanted(0, "idle")
    assert scaler.decide(signals(61, work_s=0.2)).replicas == 0
    woken = scaler.decide(signals(62, held=1, work_s=0.2))
    assert woken.replicas == 1


def test_a_model_is_not_idle_while_a_long_answer_runs() -> None:
    scaler = Autoscaler(TargetRule(Capacity()), Limits(most=5, idle_s=10))
    decided = decisions(scaler, *steady(0, 120, running=1, arrivals=0))
    assert {wanted.replicas for wanted in decided} == {1}


def test_old_readings_change_nothing() -> None:
    scaler = Autoscaler(TargetRule(Capacity()), Limits(most=20, stale_s=10))
    before = decisions(scaler, *steady(20, 120))[-1].replicas
    stale = [scaler.decide(signals(60 + n, age_s=11.0)) for n in range(200)]
    assert set(stale) == {Wanted(before, "stale")}


def test_what_is_there_when_it_starts_stays_until_rates_are_known() -> None:
    scaler = Autoscaler(TargetRule(Capacity()), Limits(most=20, cool_down_s=30))
    first = scaler.decide(signals(0, arrivals=0, running=100, warm=7, starting=2))
    assert first == Wanted(9, "keeps")
    assert scaler.decide(signals(1, arrivals=10, running=100, warm=9)).replicas == 9


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"least": 3, "most": 2}, "least"),
        ({"least": -1}, "least"),
        ({"most_per_hour": Decimal(5)}, "price"),
        ({"most_per_hour": Decimal(5), "price": Decimal(3), "least": 2}, "least"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(
    values: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named}:"):
        Limits(**values)  # type: ignore[arg-type]


def test_money_bounds_before_most_does_and_says_so() -> None:
    bounds = Limits(most=20, price=Decimal("2.49"), most_per_hour=Decimal("10"))
    scaler = Autoscaler(TargetRule(Capacity()), bounds)
    assert decisions(scaler, *steady(100, 120))[-1] == Wanted(4, "cost")

"""Which usage goes from one price row to another."""

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from forebay.metering.lines import KINDS, Move, Price
from forebay.metering.period import Span
from forebay.metering.rerate import (
    EventsMissing,
    Rated,
    Shift,
    boundaries,
    in_force,
    shifts,
    value,
)
from hypothesis import given
from hypothesis import strategies as st

SPAN = Span(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
MIDDLE = datetime(2026, 10, 15, tzinfo=UTC)


def row(number: int, **given: Any) -> Price:
    money = ("input", "cached", "cache_write", "output", "reasoning", "request", "second")
    values: dict[str, Any] = {
        **dict.fromkeys(money, Decimal(number)),
        "model": "m",
        "upstream": None,
        "account": None,
        "currency": "USD",
        "effective_from": datetime(2026, 1, 1, tzinfo=UTC),
        "effective_to": None,
    }
    return Price(id=number, **{**values, **given})


def rated(origin: int | None, tokens: int, bucket: int = 0, upstream: str | None = None) -> Rated:
    quantities = {kind: Decimal(0) for kind in KINDS}
    quantities |= {"input": Decimal(tokens), "requests": Decimal(1)}
    return Rated("m", upstream, origin, bucket, quantities)


def found(
    usage: list[Rated], rows: list[Price], done: list[Shift] | None = None
) -> list[tuple[int | None, int | None, int, str, int]]:
    shifted = shifts("a", "USD", SPAN, usage, done or [], rows)
    return [(s.origin, s.move.old, s.move.new, s.move.kind, int(s.move.quantity)) for s in shifted]


def test_the_most_specific_row_holds() -> None:
    base, up = row(1), row(2, upstream="u")
    own, both = row(3, account="a"), row(4, account="a", upstream="u")
    other, gone = row(5, account="b"), row(6, account="a", superseded=True)
    for rows, upstream, expected in [
        ([base, up, own, both], "u", 4),
        ([base, up, own], "u", 3),
        ([base, up], "u", 2),
        ([base, up], "v", 1),
        ([base, other, gone], None, 1),
    ]:
        held = in_force(reversed(rows), "a", "m", upstream, MIDDLE)
        assert held is not None
        assert held.id == expected
    assert in_force([other, up], "a", "m", None, MIDDLE) is None
    assert in_force([base], "a", "n", None, MIDDLE) is None


def test_rows_hold_from_an_instant_to_before_another() -> None:
    first, second = row(1, effective_to=MIDDLE), row(2, effective_from=MIDDLE)
    held = [in_force([first, second], "a", "m", None, at) for at in (SPAN.start, MIDDLE)]
    assert held == [first, second]
    assert boundaries([first, second, row(3, superseded=True)], SPAN) == [MIDDLE]


def test_a_corrected_row_hands_its_usage_over() -> None:
    rows = [row(1, superseded=True), row(2)]
    first = found([rated(1, 100)], rows)
    assert first == [(1, 1, 2, "input", 100), (1, 1, 2, "requests", 1)]
    assert found([rated(2, 100)], rows) == []


def test_a_new_price_takes_what_had_none() -> None:
    usage = [rated(None, 100, bucket=0), rated(None, 50, bucket=1)]
    assert found(usage[:1], []) == []
    assert found(usage, [row(1, effective_from=MIDDLE)]) == [
        (None, None, 1, "input", 50),
        (None, None, 1, "requests", 1),
    ]


def test_a_second_correction_moves_on_from_the_first() -> None:
    done = [
        Shift(1, Move("m", 1, 2, "input", Decimal(100))),
        Shift(1, Move("m", 1, 2, "requests", Decimal(1))),
    ]
    rows = [row(1, superseded=True), row(2, superseded=True), row(3)]
    assert found([rated(1, 100)], [*rows[:1], row(2)], done) == []
    assert found([rated(1, 100)], rows, done) == [
        (1, 2, 3, "input", 100),
        (1, 2, 3, "requests", 1),
    ]


def test_rows_in_another_currency_rate_nothing() -> None:
    assert found([rated(None, 100)], [row(1, currency="EUR")]) == []
    own = row(2, account="a")
    prices = {1: row(1, currency="EUR"), 2: own}
    moves = found([rated(1, 10**6)], [row(1, currency="EUR"), own])
    assert moves[0] == (1, 1, 2, "input", 10**6)
    # What was rated in euros was never billed to an account of dollars.
    assert value(Move("m", 1, 2, "input", Decimal(10**6)), prices, "USD") == 2


def test_events_that_are_gone_are_noticed() -> None:
    done = [Shift(1, Move("m", 1, 2, "input", Decimal(100)))]
    with pytest.raises(EventsMissing):
        shifts("a", "USD", SPAN, [rated(1, 99)], done, [row(1, superseded=True), row(2)])


@given(
    st.lists(st.tuples(st.sampled_from([None, 1, 2]), st.integers(0, 1000)), max_size=8),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_after_any_corrections_all_is_rated_by_the_last(
    usage: list[tuple[int | None, int]], held: list[int]
) -> None:
    """Again and again another row holds; each run moves what is to be moved, and no more."""
    known = [rated(origin, tokens) for origin, tokens in usage]
    done: list[Shift] = []
    for holding in held:
        rows = [row(n, superseded=n != holding) for n in range(1, 6)]
        done += shifts("a", "USD", SPAN, known, done, rows)
        assert shifts("a", "USD", SPAN, known, done, rows) == []
    prices = {n: row(n) for n in range(1, 6)}
    corrected = sum((value(s.move, prices, "USD") for s in done), Decimal(0))
    paid: defaultdict[int, Decimal] = defaultdict(Decimal)
    for origin, tokens in usage:
        paid[origin or 0] += Decimal(tokens).scaleb(-6) * (origin or 0) + (origin or 0)
    owed = sum((Decimal(t).scaleb(-6) * held[-1] + held[-1] for _, t in usage), Decimal(0))
    assert sum(paid.values(), Decimal(0)) + corrected == owed

"""Lines, allowances, discounts, fees, taxes: their arithmetic."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from forebay.metering.invoice import Calculation, calculate
from forebay.metering.lines import (
    KINDS,
    DoesNotBalance,
    Line,
    MonthBooks,
    Move,
    Price,
    Usage,
    amount_of,
    per_of,
    rounded,
)
from forebay.metering.period import Month, span_of
from forebay.store.billing import Tax
from forebay.store.currency import MINOR_DIGITS
from forebay.store.terms import Term
from hypothesis import given
from hypothesis import strategies as st

ZONE = ZoneInfo("Europe/Berlin")
MONTH = Month(2026, 10)
prices = st.decimals(0, 1000, places=6, allow_nan=False)
ROW = {kind: Decimal(0) for kind in ("cached", "cache_write", "reasoning", "request", "second")}


def price(number: int, currency: str = "USD", model: str = "m", **given: Any) -> Price:
    values = {**ROW, "input": Decimal(1), "output": Decimal(2), "reasoning": Decimal(2)}
    return Price(
        id=number,
        model=model,
        upstream=None,
        account=None,
        currency=currency,
        effective_from=datetime(2026, 1, 1, tzinfo=UTC),
        effective_to=None,
        **{**values, **{k: Decimal(v) for k, v in given.items()}},
    )


def used(row: Price, model: str = "m", **quantities: int | str) -> Usage:
    found = {kind: Decimal(quantities.get(kind, 0)) for kind in KINDS}
    if "requests" not in quantities:
        found["requests"] = Decimal(1)
    cost = sum((amount_of(q, row.of(k), per_of(k)) for k, q in found.items()), Decimal(0))
    return Usage(model, row.id, found, cost)


def invoice(
    usage: Sequence[Usage] = (),
    rows: Sequence[Price] = (),
    *,
    moves: Sequence[Move] = (),
    billed: Sequence[Line] = (),
    terms: Sequence[Term] = (),
    taxes: Sequence[Tax] = (),
    currency: str = "USD",
    own: bool = True,
    month: Month = MONTH,
) -> Calculation:
    books = MonthBooks(str(month), span_of(month, ZONE), own, usage, moves, billed, terms)
    return calculate(currency, ZONE, [books], {row.id: row for row in rows}, taxes)


def term(number: int, kind: Any, **given: Any) -> Term:
    values = {"starts": date(2026, 1, 1), "description": kind, **given}
    return Term(id=number, account="a", kind=kind, **values)


def amounts(found: Calculation) -> list[tuple[str, str]]:
    return [(line.kind, str(line.amount)) for line in found.lines]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        ("0.005", 2, "0.01"),
        ("0.0049999999999", 2, "0.00"),
        ("-0.005", 2, "-0.01"),
        ("2.5", 0, "3"),
        ("-2.5", 0, "-3"),
        ("1.0005", 3, "1.001"),
        ("0", 2, "0.00"),
    ],
)
def test_rounding_is_half_up_and_alike_on_both_sides(value: str, digits: int, text: str) -> None:
    assert str(rounded(Decimal(value), digits)) == text


@given(st.decimals(-(10**20), 10**20, places=12), st.integers(0, 4))
def test_rounding_is_that_of_the_standard_library(value: Decimal, digits: int) -> None:
    with localcontext(prec=100):
        expected = value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    assert rounded(value, digits) == expected
    assert abs(Fraction(rounded(value, digits)) - Fraction(value)) <= Fraction(1, 2 * 10**digits)


@pytest.mark.parametrize(("currency", "total"), [("JPY", "2"), ("USD", "1.50"), ("KWD", "1.500")])
def test_a_line_has_the_currencys_decimal_places(currency: str, total: str) -> None:
    row = price(1, currency, input="1.5")
    found = invoice([used(row, input=1_000_000)], [row], currency=currency)
    assert str(found.lines[0].amount) == total
    assert str(found.total) == total
    assert str(invoice(currency=currency).total) == str(Decimal(0).scaleb(-MINOR_DIGITS[currency]))


def test_a_line_for_each_kind_and_row() -> None:
    one = price(1, input="1", cached="0.1", cache_write="1.25", output="4", reasoning="4")
    two = price(2, input="2", cached="0.1", output="4", reasoning="8", request="0.01", second="0.5")
    same: dict[str, int | str] = {"input": 10**6, "cached": 10**6, "cache_write": 10**6}
    same |= {"output": 10**6, "reasoning": 10**6, "requests": 7, "seconds": "1.5"}
    found = invoice([used(one, **same), used(two, **same)], [one, two])
    assert [(x.token_kind, x.price_id, str(x.quantity), str(x.amount)) for x in found.lines] == [
        ("input", 1, "1000000", "1.00"),
        ("input", 2, "1000000", "2.00"),
        ("cached", 1, "1000000", "0.10"),
        ("cached", 2, "1000000", "0.10"),
        ("cache_write", 1, "1000000", "1.25"),
        ("cache_write", 2, "1000000", "0.00"),
        # Reasoning costs what output does, so that it is output.
        ("output", 1, "2000000", "8.00"),
        ("output", 2, "1000000", "4.00"),
        ("reasoning", 2, "1000000", "8.00"),
        ("requests", 2, "7", "0.07"),
        ("seconds", 2, "1.5", "0.75"),
    ]


rows = st.lists(st.tuples(*(prices for _ in KINDS)), min_size=1, max_size=4).map(
    lambda found: [
        price(
            number,
            **dict(
                zip(
                    ("input", "cached", "cache_write", "output", "reasoning", "request", "second"),
                    map(str, values),
                    strict=True,
                )
            ),
        )
        for number, values in enumerate(found, 1)
    ]
)
tokens = st.integers(0, 2**40 - 1)
events = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["m", "n"]), *(tokens for _ in KINDS)), max_size=12
)


@given(rows, events, st.sampled_from(["JPY", "USD", "KWD"]))
def test_lines_before_rounding_are_the_events_to_the_last_digit(
    rows: list[Price], events: list[Any], currency: str
) -> None:
    rows = [Price(**{**{f: getattr(r, f) for f in r.__struct_fields__}, "currency": currency})
            for r in rows]  # fmt: skip
    usage = [
        used(rows[i % len(rows)], model, **dict(zip(KINDS, quantities, strict=True)))
        for i, model, *quantities in events
    ]
    found = invoice(usage, rows, currency=currency)
    with localcontext(prec=100):
        exact = sum(
            (amount_of(x.quantity or Decimal(0), x.unit_price or Decimal(0), x.per or 1)
             for x in found.lines), Decimal(0)
        )  # fmt: skip
        assert exact == sum((u.cost for u in usage), Decimal(0))
        assert found.net == sum((line.amount for line in found.lines), Decimal(0))
    keys = [(line.model, line.token_kind, line.price_id) for line in found.lines]
    assert len(keys) == len(set(keys))
    for line in found.lines:
        assert line.amount == rounded(
            amount_of(line.quantity or Decimal(0), line.unit_price or Decimal(0), line.per or 1),
            MINOR_DIGITS[currency],
        )


def test_a_ledger_whose_sums_disagree_is_refused() -> None:
    row = price(1)
    wrong = Usage("m", 1, used(row, input=10**6).quantities, Decimal("1.000000000001"))
    with pytest.raises(DoesNotBalance, match="but 1"):
        invoice([wrong], [row])


def test_usage_without_a_price_is_a_problem_and_no_line() -> None:
    euro = price(2, "EUR")
    usage = [
        Usage("m", None, used(euro, requests=3, input=5).quantities),
        used(euro, "n", requests=2),
    ]
    found = invoice(usage, [euro])
    assert found.lines == []
    assert [(p.model, p.requests, p.currency) for p in found.problems] == [
        ("m", 3, None),
        ("n", 2, "EUR"),
    ]


def test_usage_that_was_given_a_price_since_is_none() -> None:
    row = price(1)
    usage = [Usage("m", None, used(row, requests=3, input=10**6).quantities)]
    moves = [
        Move("m", None, 1, "requests", Decimal(3)),
        Move("m", None, 1, "input", Decimal(10**6)),
    ]
    found = invoice(usage, [row], moves=moves)
    assert found.problems == []
    assert amounts(found) == [("adjustment", "1.00")]
    assert invoice(usage, [row], moves=moves[1:]).problems != []
    late = invoice([*usage, *usage], [row], moves=moves)
    assert [p.requests for p in late.problems] == [3]


def test_a_corrected_price_is_the_difference() -> None:
    old, new = price(1, input="3", output="1", reasoning="1"), price(2, input="2.5")
    moves = [Move("m", 1, 2, kind, Decimal(2 * 10**6)) for kind in ("input", "output", "reasoning")]
    found = invoice([used(old, input=4 * 10**6)], [old, new], moves=moves, terms=[])
    # Output and reasoning cost the same in both rows.
    assert [(line.kind, line.token_kind, str(line.amount)) for line in found.lines] == [
        ("usage", "input", "12.00"),
        ("adjustment", "input", "-1.00"),
        ("adjustment", "output", "4.00"),
    ]


def test_free_tokens() -> None:
    one, two = price(1), price(2, input="3")
    usage = [used(one, input=10**6, output=10**6), used(two, "n", input=10**6)]
    everywhere = invoice(usage, [one, two], terms=[term(1, "free_tokens", tokens=1_500_000)])
    free = [line for line in everywhere.lines if line.kind == "free_tokens"]
    assert [(x.model, x.token_kind, str(x.quantity), str(x.amount)) for x in free] == [
        ("m", "input", "-1000000", "-1.00"),
        ("m", "output", "-500000", "-1.00"),
    ]
    of_n = term(1, "free_tokens", tokens=10**9, model="n", token_kind="input")
    only = invoice(usage, [one, two], terms=[of_n])
    assert amounts(only)[3:] == [("free_tokens", "-3.00")]
    assert only.total == Decimal("3.00")
    # A second allowance begins where the first has ended.
    both = [term(n, "free_tokens", tokens=600_000, token_kind="input") for n in (1, 2)]
    twice = invoice([usage[0]], [one], terms=both)
    assert amounts(twice)[2:] == [("free_tokens", "-0.60"), ("free_tokens", "-0.40")]


def test_discounts_add_up_and_free_money_comes_last() -> None:
    row = price(1)
    usage = [used(row, input=1000 * 10**6), used(row, "n", input=200 * 10**6)]
    terms = [
        term(1, "free_money", amount="100"),
        term(2, "discount", percent="10"),
        term(3, "discount", percent="5", above="500"),
        term(4, "discount", percent="50", model="n"),
        term(5, "fee", amount="30"),
    ]
    found = invoice(usage, [row], terms=terms)
    assert amounts(found) == [
        ("usage", "1000.00"),
        ("usage", "200.00"),
        ("discount", "-120.00"),
        ("discount", "-35.00"),
        ("discount", "-100.00"),
        ("free_money", "-100.00"),
        ("fee", "30.00"),
    ]
    little = invoice([used(row, input=10 * 10**6)], [row], terms=terms)
    assert amounts(little)[1:] == [("discount", "-1.00"), ("free_money", "-9.00"), ("fee", "30.00")]
    whole = [term(n, "discount", percent="80") for n in (1, 2)]
    assert invoice([used(row, input=10**6)], [row], terms=whole).total == 0


def test_terms_hold_from_a_day_to_before_another() -> None:
    row = price(1)
    for starts, ends, holds in [
        (date(2026, 10, 1), None, True),
        (date(2026, 10, 1), date(2026, 11, 1), True),
        (date(2026, 11, 1), None, False),
        (date(2026, 1, 1), date(2026, 10, 1), False),
    ]:
        found = invoice(
            [used(row, input=10**6)],
            [row],
            terms=[term(1, "discount", percent="10", starts=starts, ends=ends)],
        )
        assert (len(found.lines) == 2) is holds


@pytest.mark.parametrize(
    ("month", "starts", "ends", "amount"),
    [
        # 29 March has 23 hours, 25 October 25.
        (Month(2026, 3), date(2026, 3, 29), date(2026, 3, 30), Fraction(23, 31 * 24 - 1)),
        (Month(2026, 10), date(2026, 10, 25), date(2026, 10, 26), Fraction(25, 31 * 24 + 1)),
        (Month(2026, 10), date(2026, 10, 26), None, Fraction(6 * 24, 31 * 24 + 1)),
        (Month(2026, 4), date(2026, 4, 16), None, Fraction(1, 2)),
        (Month(2026, 4), date(2026, 4, 1), date(2026, 5, 1), Fraction(1)),
        (Month(2026, 4), date(2025, 4, 1), date(2026, 4, 2), Fraction(1, 30)),
    ],
)
def test_fees_are_for_the_seconds_that_they_hold(
    month: Month, starts: date, ends: date | None, amount: Fraction
) -> None:
    fee = term(1, "fee", amount="1000", starts=starts, ends=ends)
    (line,) = invoice(terms=[fee], month=month).lines
    assert line.amount == rounded(1000 * amount, 2)


@given(st.integers(2, 30))
def test_parts_of_a_fee_are_the_whole(cut: int) -> None:
    day = date(2026, 10, cut)
    parts = [
        term(1, "fee", amount="744.99", ends=day),
        term(2, "fee", amount="744.99", starts=day),
    ]
    found = invoice(terms=parts)
    assert abs(found.total - Decimal("744.99")) <= Decimal("0.01")


def test_taxes_are_rounded_once_each_on_their_net() -> None:
    row = price(1)
    taxes = [
        Tax(name="GST", rate="5"),
        Tax(name="QST", rate="9.975"),
        Tax(name="Levy", rate="1", on="fees"),
        Tax(name="Data", rate="2", on="usage"),
    ]
    terms = [term(1, "fee", amount="33.33"), term(2, "discount", percent="50")]
    found = invoice([used(row, input=66_660_000)], [row], terms=terms, taxes=taxes)
    assert [(t.name, str(t.net), str(t.amount)) for t in found.taxes] == [
        ("GST", "66.66", "3.33"),
        ("QST", "66.66", "6.65"),
        ("Levy", "33.33", "0.33"),
        ("Data", "33.33", "0.67"),
    ]
    assert str(found.total) == "77.64"


def test_late_usage_gets_what_is_left_of_its_months_terms() -> None:
    row = price(1)
    terms = [
        term(1, "free_tokens", tokens=5 * 10**6),
        term(2, "discount", percent="10", above="10"),
        term(3, "free_money", amount="8"),
        term(4, "fee", amount="30"),
    ]
    first = invoice([used(row, input=3 * 10**6)], [row], terms=terms)
    assert amounts(first) == [("usage", "3.00"), ("free_tokens", "-3.00"), ("fee", "30.00")]
    more = [used(row, input=10 * 10**6)]
    second = invoice(more, [row], terms=terms, billed=first.lines, own=False)
    assert amounts(second) == [("late", "10.00"), ("free_tokens", "-2.00"), ("free_money", "-8.00")]
    third = invoice(more, [row], terms=terms, billed=[*first.lines, *second.lines], own=False)
    # 18.00 in all: 0.80 off what is above 10.00.
    assert amounts(third) == [("late", "10.00"), ("discount", "-0.80")]


def test_a_correction_takes_free_tokens_along() -> None:
    old, new = price(1, input="2"), price(2, input="1")
    terms = [term(1, "free_tokens", tokens=10**6), term(2, "discount", percent="50")]
    first = invoice([used(old, input=2 * 10**6)], [old], terms=terms)
    assert first.total == Decimal("1.00")
    moves = [Move("m", 1, 2, "input", Decimal(2 * 10**6))]
    second = invoice([], [old, new], moves=moves, terms=terms, billed=first.lines, own=False)
    assert amounts(second) == [
        ("adjustment", "-2.00"),
        ("free_tokens", "2.00"),
        ("free_tokens", "-1.00"),
        ("discount", "0.50"),
    ]
    assert first.total + second.total == Decimal("0.50")


quantity = st.integers(0, 3 * 10**6)
some_terms = st.lists(
    st.one_of(
        st.builds(lambda n: ("free_tokens", {"tokens": n}), st.integers(1, 4 * 10**6)),
        st.builds(lambda p: ("discount", {"percent": str(p)}), st.integers(1, 100)),
        st.builds(
            lambda p, a: ("discount", {"percent": str(p), "above": str(a)}),
            st.integers(1, 50),
            st.integers(1, 9),
        ),
        st.builds(lambda a: ("free_money", {"amount": str(a)}), st.integers(1, 6)),
    ),
    max_size=4,
)


@given(st.lists(quantity, min_size=1, max_size=6), some_terms)
def test_late_usage_costs_what_it_would_have_cost_in_time(
    parts: list[int], kinds: list[tuple[Any, Any]]
) -> None:
    row = price(1, input="1")
    terms = [term(n, kind, **given) for n, (kind, given) in enumerate(kinds, 1)]
    billed: list[Line] = []
    total = Decimal(0)
    for number, part in enumerate(parts):
        found = invoice([used(row, input=part)], [row], terms=terms, billed=billed, own=number == 0)
        billed += found.lines
        total += found.total
    by_kind: defaultdict[str, Decimal] = defaultdict(Decimal)
    for line in billed:
        by_kind[line.kind] += line.amount
    at_once = invoice([used(row, input=sum(parts))], [row], terms=terms)
    # Each line is rounded for itself, up to half a cent away from the exact amount.
    assert abs(total - at_once.total) <= Decimal("0.02") * (len(parts) + 1)
    assert by_kind["late"] + by_kind["usage"] >= 0
    # Allowances are rounded as every line is: each may take half a cent more than was used.
    assert total >= Decimal("-0.01") * len(terms)

"""What an account owes: lines, taxes and totals of quantities, prices and terms.

Pure arithmetic on exact decimals. A line is quantity times price, rounded once, half up (away from
zero for what is negative), to the currency's minor unit; totals are sums of rounded lines.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from forebay.metering.lines import EXACT, Line, MonthBooks, Price, Problem, rounded
from forebay.metering.month_lines import MonthLines
from forebay.store.billing import Tax
from forebay.store.currency import MINOR_DIGITS


class TaxAmount(msgspec.Struct, frozen=True, kw_only=True):
    """A tax on an invoice. net: the sum of the lines that it is taken of."""

    name: str
    rate: str
    on: Literal["all", "usage", "fees"]
    net: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Calculation:
    """An invoice without its head. problems: why it must not be finalised; mostly none."""

    lines: list[Line]
    taxes: list[TaxAmount]
    net: Decimal
    total: Decimal
    problems: list[Problem] = field(default_factory=list)


def calculate(
    currency: str,
    zone: ZoneInfo,
    months: Iterable[MonthBooks],
    prices: Mapping[int, Price],
    taxes: Sequence[Tax],
) -> Calculation:
    """The invoice of some months, in their order.

    prices: every row that usage, moves and billed lines name.

    Raises: DoesNotBalance.
    """
    lines: list[Line] = []
    problems: list[Problem] = []
    with localcontext(EXACT):
        for books in months:
            month = MonthLines(currency, zone, books, prices)
            lines += month.lines()
            problems += month.problems()
        return totalled(lines, taxes, currency, problems)


def totalled(
    lines: list[Line], taxes: Sequence[Tax], currency: str, problems: list[Problem]
) -> Calculation:
    """Lines with their taxes and sums: each tax is rounded once, on the net of its lines."""
    digits = MINOR_DIGITS[currency]
    charged = []
    for tax in taxes:
        net = _sum((line.amount for line in lines if taxed(line, tax)), digits)
        amount = rounded(Fraction(net) * Fraction(tax.rate) / 100, digits)
        charged.append(TaxAmount(name=tax.name, rate=tax.rate, on=tax.on, net=net, amount=amount))
    net = _sum((line.amount for line in lines), digits)
    total = _sum([net, *(tax.amount for tax in charged)], digits)
    return Calculation(lines, charged, net, total, problems)


def taxed(line: Line, tax: Tax) -> bool:
    """Whether a tax is taken of a line."""
    return tax.on == "all" or (tax.on == "fees") == (line.kind == "fee")


def _sum(amounts: Iterable[Decimal], digits: int) -> Decimal:
    """A sum with the currency's decimal places, also of nothing."""
    return sum(amounts, Decimal(0).scaleb(-digits))

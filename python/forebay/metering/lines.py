"""What invoices are made of: prices, usage, lines; and how they round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction
from typing import Literal, NamedTuple

import msgspec

from forebay.metering.period import Span
from forebay.store.terms import TOKEN_KINDS, Term, plain_decimal

EXACT = Context(prec=100, traps=[Inexact, InvalidOperation])
"""Sums and products that would lose a digit fail instead."""

KINDS = (*TOKEN_KINDS, "requests", "seconds")
"""What has a price, in the order of an invoice. cached and cache_write are not in input, nor
reasoning in output."""

MILLION = 1_000_000

LineKind = Literal[
    "usage", "late", "adjustment", "free_tokens", "free_money", "discount", "fee", "credit"
]
LABELS = {
    "input": "Input tokens",
    "cached": "Cached input tokens",
    "cache_write": "Cache write tokens",
    "output": "Output tokens",
    "reasoning": "Reasoning tokens",
    "requests": "Requests",
    "seconds": "Seconds",
}


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the price book; money for a million tokens, a request, a second."""

    id: int
    model: str
    upstream: str | None
    account: str | None
    currency: str
    input: Decimal
    cached: Decimal
    cache_write: Decimal
    output: Decimal
    reasoning: Decimal
    request: Decimal
    second: Decimal
    effective_from: datetime
    effective_to: datetime | None
    superseded: bool = False

    def of(self, kind: str) -> Decimal:
        """The price of a kind, for `per` of it."""
        name = {"requests": "request", "seconds": "second"}.get(kind, kind)
        price: Decimal = getattr(self, name)
        return price


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used of a model by one price row; None: rated by none.

    quantities: by kind, all of `KINDS` or some. cost: as summed up from the events.
    """

    model: str
    price_id: int | None
    quantities: Mapping[str, Decimal]
    cost: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Move:
    """So much of one kind that is rated by another row than before; old None: by none before."""

    model: str
    old: int | None
    new: int
    kind: str
    quantity: Decimal


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an invoice.

    month: whose usage or fee it is. quantity times unit_price over per is the amount before it was
    rounded, where they are given. term: the allowance, discount or fee. credits: the line of
    another invoice that a credit note's line takes back.
    """

    kind: LineKind
    month: str
    description: str
    amount: Decimal
    model: str | None = None
    token_kind: str | None = None
    price_id: int | None = None
    old_price_id: int | None = None
    quantity: Decimal | None = None
    unit_price: Decimal | None = None
    per: int | None = None
    term: int | None = None
    credits: int | None = None


@dataclass(frozen=True, slots=True)
class MonthBooks:
    """A month, as far as the invoice is about it.

    own: it is the invoice's own month; else one that was invoiced before, of which something came
    late. usage, moves: what no invoice has yet. billed: the lines on it that earlier invoices
    have. terms: those that may hold in it.
    """

    month: str
    span: Span
    own: bool
    usage: Sequence[Usage] = ()
    moves: Sequence[Move] = ()
    billed: Sequence[Line] = ()
    terms: Sequence[Term] = ()


class Problem(NamedTuple):
    """Requests of a model that cannot be billed. currency: of the price they have, if any."""

    month: str
    model: str
    requests: int
    currency: str | None


class DoesNotBalance(Exception):
    """The lines do not sum up to what the events cost: a fault in the ledger."""


def rounded(value: Decimal | Fraction, digits: int) -> Decimal:
    """Rounded half up, away from zero for what is negative, to so many decimal places."""
    fraction = Fraction(value)
    whole = math.floor(abs(fraction) * 10**digits + Fraction(1, 2))
    return Decimal(-whole if fraction < 0 else whole).scaleb(-digits, EXACT)


def per_of(kind: str) -> int:
    """How many of a kind its price is for."""
    return MILLION if kind in TOKEN_KINDS else 1


def amount_of(quantity: Decimal, unit_price: Decimal, per: int) -> Decimal:
    """Quantity times price over per, exactly; per is a power of ten."""
    return EXACT.multiply(quantity, unit_price).scaleb(1 - len(str(per)), EXACT)


def billed_kind(kind: str, price: Price) -> str:
    """Reasoning tokens are output tokens where they cost the same."""
    return "output" if kind == "reasoning" and price.reasoning == price.output else kind


def price_text(price: Decimal) -> str:
    """A price with two decimal places, or as many more as it takes."""
    text = plain_decimal(price)
    whole, _, part = text.partition(".")
    return f"{whole}.{part.ljust(2, '0')}"

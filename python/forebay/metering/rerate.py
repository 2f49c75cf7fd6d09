"""Which usage is to be rated by another price row than before. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from forebay.metering.lines import KINDS, Move, Price, amount_of, per_of
from forebay.metering.period import Span


@dataclass(frozen=True, slots=True)
class Rated:
    """Usage of an account in one month that the same row should rate.

    origin: the row by which it was rated; None: by none. bucket: the stretch between two of
    `boundaries` in which it was admitted, 0 before the first.
    """

    model: str
    upstream: str | None
    origin: int | None
    bucket: int
    quantities: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Shift:
    """A move, and the row by which the events themselves were rated."""

    origin: int | None
    move: Move


class EventsMissing(Exception):
    """More was rated anew than there are events: some are no longer there."""


def boundaries(prices: Iterable[Price], span: Span) -> list[datetime]:
    """The instants within a span at which some row begins or ends to hold, in order."""
    found = {
        instant
        for price in prices
        if not price.superseded
        for instant in (price.effective_from, price.effective_to)
        if instant is not None and span.start < instant < span.stop
    }
    return sorted(found)


def in_force(
    prices: Iterable[Price], account: str, model: str, upstream: str | None, at: datetime
) -> Price | None:
    """The row that holds for a request admitted at an instant: the most specific one."""
    held = [
        price
        for price in prices
        if not price.superseded
        and price.model == model
        and price.account in (None, account)
        and price.upstream in (None, upstream)
        and price.effective_from <= at
        and (price.effective_to is None or at < price.effective_to)
    ]
    return max(
        held,
        key=lambda price: (price.account is not None, price.upstream is not None),
        default=None,
    )


def shifts(
    account: str,
    currency: str,
    span: Span,
    rated: Iterable[Rated],
    done: Iterable[Shift],
    prices: Sequence[Price],
) -> list[Shift]:
    """What is still to be moved so that all usage of a month is rated by the row in force.

    rated: all of the month's usage. done: what was moved before. Where no row in the account's
    currency holds, usage stays with the row that rated its events.

    Raises: EventsMissing.
    """
    marks = [span.start, *boundaries(prices, span)]
    here: defaultdict[_Pile, defaultdict[int | None, Decimal]]
    here = defaultdict(lambda: defaultdict(Decimal))
    there: defaultdict[_Pile, defaultdict[int | None, Decimal]]
    there = defaultdict(lambda: defaultdict(Decimal))
    for usage in rated:
        row = in_force(prices, account, usage.model, usage.upstream, marks[usage.bucket])
        if row is not None and row.currency != currency:
            row = None
        for kind, quantity in usage.quantities.items():
            pile = (usage.model, usage.origin, kind)
            here[pile][usage.origin] += quantity
            there[pile][usage.origin if row is None else row.id] += quantity
    for shift in done:
        pile = (shift.move.model, shift.origin, shift.move.kind)
        here[pile][shift.move.old] -= shift.move.quantity
        here[pile][shift.move.new] += shift.move.quantity
    found = []
    for pile in sorted(here, key=_order):
        if any(quantity < 0 for quantity in here[pile].values()):
            raise EventsMissing
        for old, new, quantity in _moved(here[pile], there[pile]):
            model, origin, kind = pile
            found.append(Shift(origin, Move(model, old, new, kind, quantity)))
    return found


_Pile = tuple[str, int | None, str]
"""Model, row by which the events were rated, kind."""


def _order(pile: _Pile) -> tuple[str, int, int]:
    model, origin, kind = pile
    return model, origin or 0, KINDS.index(kind)


def _moved(
    here: Mapping[int | None, Decimal], there: Mapping[int | None, Decimal]
) -> Iterable[tuple[int | None, int, Decimal]]:
    """Pair what is too much at one row with what is missing at another."""
    zero = Decimal(0)
    rows = sorted({*here, *there}, key=lambda row: row or 0)
    much = {row: over for row in rows if (over := here.get(row, zero) - there.get(row, zero)) > 0}
    few = {
        row: under
        for row in rows
        if row is not None and (under := there.get(row, zero) - here.get(row, zero)) > 0
    }
    for old in much:
        for new in few:
            quantity = min(much[old], few[new])
            if quantity > 0:
                much[old] -= quantity
                few[new] -= quantity
                yield old, new, quantity


def value(move: Move, prices: Mapping[int, Price], currency: str) -> Decimal:
    """What a move changes, exactly; a row in another currency was never billed."""
    old = None if move.old is None else prices.get(move.old)
    before = Decimal(0) if old is None or old.currency != currency else old.of(move.kind)
    return amount_of(move.quantity, prices[move.new].of(move.kind) - before, per_of(move.kind))

"""The lines of one month.

A month is computed whole each time it is touched. Usage and corrections become lines of their own;
of allowances and discounts, those of the whole month as it is known now, less what earlier
invoices gave already.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

from forebay.metering.lines import (
    KINDS,
    LABELS,
    DoesNotBalance,
    Line,
    LineKind,
    MonthBooks,
    Price,
    Problem,
    amount_of,
    billed_kind,
    per_of,
    price_text,
    rounded,
)
from forebay.metering.period import held, seconds
from forebay.store.currency import MINOR_DIGITS
from forebay.store.terms import TOKEN_KINDS, Term

_OF_USAGE = ("usage", "late", "adjustment", "free_tokens")
"""Kinds of lines whose sum is what a discount is taken of."""

_Key = tuple[str, str, int]
"""Model, kind, price row."""


class MonthLines:
    """The lines of one month."""

    def __init__(
        self, currency: str, zone: ZoneInfo, books: MonthBooks, prices: Mapping[int, Price]
    ) -> None:
        self._currency = currency
        self._digits = MINOR_DIGITS[currency]
        self._zone = zone
        self._books = books
        self._prices = prices
        self._terms = [
            term
            for term in books.terms
            if term.kind != "fee" and held(term.starts, term.ends, books.span, zone)
        ]

    def _native(self, price_id: int | None) -> Price | None:
        """The price row, where it is one in the account's currency."""
        price = None if price_id is None else self._prices.get(price_id)
        return price if price is not None and price.currency == self._currency else None

    def problems(self) -> list[Problem]:
        """What has no price in the account's currency and was not given one since."""
        left: defaultdict[tuple[str, str | None], Decimal] = defaultdict(Decimal)
        for usage in self._books.usage:
            if self._native(usage.price_id) is None:
                left[usage.model, self._foreign(usage.price_id)] += usage.quantities["requests"]
        for move in self._books.moves:
            if move.kind == "requests" and self._native(move.old) is None:
                left[move.model, self._foreign(move.old)] -= move.quantity
            if move.kind == "requests" and self._native(move.new) is None:
                left[move.model, self._foreign(move.new)] += move.quantity
        return [
            Problem(self._books.month, model, int(requests), currency)
            for (model, currency), requests in sorted(left.items(), key=str)
            if requests > 0
        ]

    def _foreign(self, price_id: int | None) -> str | None:
        price = None if price_id is None else self._prices.get(price_id)
        return None if price is None else price.currency

    def lines(self) -> list[Line]:
        """All lines on the month that the invoice has."""
        lines = self._usage_lines()
        lines += self._move_lines()
        lines += self._free_token_lines(lines)
        lines += self._discount_lines(lines)
        lines += self._free_money_lines(lines)
        if self._books.own:
            lines += self._fee_lines()
        return lines

    def _line(
        self, kind: LineKind, key: _Key, quantity: Decimal, description: str, term: int | None
    ) -> Line:
        model, token_kind, price_id = key
        unit_price = self._prices[price_id].of(token_kind)
        per = per_of(token_kind)
        return Line(
            kind=kind,
            month=self._books.month,
            description=description,
            amount=rounded(amount_of(quantity, unit_price, per), self._digits),
            model=model,
            token_kind=token_kind,
            price_id=price_id,
            quantity=quantity,
            unit_price=unit_price,
            per=per,
            term=term,
        )

    def _usage_lines(self) -> list[Line]:
        quantities: defaultdict[_Key, Decimal] = defaultdict(Decimal)
        costs = Decimal(0)
        for usage in self._books.usage:
            price = self._native(usage.price_id)
            if price is None:
                continue
            costs += usage.cost
            for kind, quantity in usage.quantities.items():
                quantities[usage.model, billed_kind(kind, price), price.id] += quantity
        lines = []
        exact = Decimal(0)
        for key in self._ordered(quantities):
            model, kind, price_id = key
            price = self._prices[price_id]
            exact += amount_of(quantities[key], price.of(kind), per_of(kind))
            if quantities[key] == 0 or (kind not in TOKEN_KINDS and price.of(kind) == 0):
                continue
            noted = self._note(price, {p for m, k, p in quantities if (m, k) == (model, kind)})
            lines.append(
                self._line(
                    "usage" if self._books.own else "late",
                    key,
                    quantities[key],
                    f"{LABELS[kind]}{noted}",
                    None,
                )
            )
        if exact != costs:
            raise DoesNotBalance(
                f"usage of {self._books.month} cost {costs} {self._currency} event by event, but"
                f" {exact} by the price book"
            )
        return lines

    def _note(self, price: Price, rows: set[int]) -> str:
        """What tells a price row from the others of the same line."""
        parts = []
        if price.upstream is not None:
            parts.append(f"via {price.upstream}")
        if len(rows) > 1:
            start = price.effective_from.astimezone(self._zone)
            if start > self._books.span.start:
                parts.append(f"from {start:%Y-%m-%d}")
            elif price.effective_to is not None:
                parts.append(f"before {price.effective_to.astimezone(self._zone):%Y-%m-%d}")
        return f" ({', '.join(parts)})" if parts else ""

    def _ordered(self, keys: Iterable[_Key]) -> list[_Key]:
        return sorted(
            keys,
            key=lambda key: (
                key[0],
                KINDS.index(key[1]),
                self._prices[key[2]].effective_from,
                key[2],
            ),
        )

    def _move_lines(self) -> list[Line]:
        quantities: defaultdict[tuple[str, str, int | None, int], Decimal] = defaultdict(Decimal)
        for move in self._books.moves:
            new = self._native(move.new)
            if new is None:
                continue
            old = self._native(move.old)
            kind = move.kind
            if old is None or billed_kind(kind, new) == billed_kind(kind, old):
                kind = billed_kind(kind, new)
            quantities[move.model, kind, move.old, move.new] += move.quantity
        lines = []
        for key in sorted(quantities, key=lambda k: (k[0], KINDS.index(k[1]), k[2] or 0, k[3])):
            model, kind, old_id, new_id = key
            old = self._native(old_id)
            new_price = self._prices[new_id].of(kind)
            difference = new_price - (Decimal(0) if old is None else old.of(kind))
            if difference == 0:
                continue
            told = (
                f"new price {price_text(new_price)}"
                if old is None
                else f"price {price_text(old.of(kind))} corrected to {price_text(new_price)}"
            )
            lines.append(
                Line(
                    kind="adjustment",
                    month=self._books.month,
                    description=f"{LABELS[kind]}, {told}",
                    amount=rounded(
                        amount_of(quantities[key], difference, per_of(kind)), self._digits
                    ),
                    model=model,
                    token_kind=kind,
                    price_id=new_id,
                    old_price_id=old_id,
                    quantity=quantities[key],
                    unit_price=difference,
                    per=per_of(kind),
                )
            )
        return lines

    def _effective(self) -> dict[_Key, Decimal]:
        """Tokens of the whole month, billed before or now, where their price is now."""
        found: defaultdict[_Key, Decimal] = defaultdict(Decimal)
        for usage in self._books.usage:
            if (price := self._native(usage.price_id)) is not None:
                for kind, quantity in usage.quantities.items():
                    found[usage.model, billed_kind(kind, price), price.id] += quantity
        moves = [(m.model, m.kind, m.old, m.new, m.quantity) for m in self._books.moves]
        for line in self._books.billed:
            if line.model is None or line.token_kind is None or line.quantity is None:
                continue
            if line.kind in ("usage", "late") and line.price_id is not None:
                found[line.model, line.token_kind, line.price_id] += line.quantity
            elif line.kind == "adjustment" and line.price_id is not None:
                moves.append(
                    (line.model, line.token_kind, line.old_price_id, line.price_id, line.quantity)
                )
        for model, kind, old_id, new_id, quantity in moves:
            if (old := self._native(old_id)) is not None:
                found[model, billed_kind(kind, old), old.id] -= quantity
            if (new := self._native(new_id)) is not None:
                found[model, billed_kind(kind, new), new.id] += quantity
        return {k: q for k, q in found.items() if q > 0 and k[1] in TOKEN_KINDS}

    def _free_token_lines(self, _: list[Line]) -> list[Line]:
        left = self._effective()
        lines = []
        for term in self._terms:
            if term.kind != "free_tokens" or term.tokens is None:
                continue
            granted: dict[_Key, Decimal] = {}
            rest = Decimal(term.tokens)
            for key in self._ordered(left):
                if term.model not in (None, key[0]) or term.token_kind not in (None, key[1]):
                    continue
                granted[key] = min(rest, left[key])
                rest -= granted[key]
                left[key] -= granted[key]
            given: defaultdict[_Key, Decimal] = defaultdict(Decimal)
            for line in self._of_term(term, self._books.billed):
                if line.model and line.token_kind and line.price_id and line.quantity:
                    given[line.model, line.token_kind, line.price_id] -= line.quantity
            for key in self._ordered({**given, **granted}):
                more = granted.get(key, Decimal(0)) - given.get(key, Decimal(0))
                if more != 0:
                    described = f"{term.description}: {LABELS[key[1]].lower()}"
                    lines.append(self._line("free_tokens", key, -more, described, term.id))
        return lines

    def _of_term(self, term: Term, lines: Iterable[Line]) -> Iterable[Line]:
        return (line for line in lines if line.term == term.id)

    def _base(self, lines: list[Line], model: str | None) -> Decimal:
        return sum(
            (
                line.amount
                for line in [*self._books.billed, *lines]
                if line.kind in _OF_USAGE and model in (None, line.model)
            ),
            Decimal(0),
        )

    def _discount_lines(self, lines: list[Line]) -> list[Line]:
        left = max(Decimal(0), self._base(lines, None))
        found = []
        for term in self._terms:
            if term.kind != "discount" or term.percent is None:
                continue
            above = Decimal(term.above or 0)
            base = max(Decimal(0), self._base(lines, term.model) - above)
            whole = min(left, rounded(base * Decimal(term.percent) / 100, self._digits))
            left -= whole
            found += self._difference("discount", term, whole)
        return found

    def _free_money_lines(self, lines: list[Line]) -> list[Line]:
        left = self._base(lines, None) + sum(
            (line.amount for line in [*self._books.billed, *lines] if line.kind == "discount"),
            Decimal(0),
        )
        left = max(Decimal(0), left)
        found = []
        for term in self._terms:
            if term.kind != "free_money" or term.amount is None:
                continue
            whole = min(left, rounded(Decimal(term.amount), self._digits))
            left -= whole
            found += self._difference("free_money", term, whole)
        return found

    def _difference(self, kind: LineKind, term: Term, whole: Decimal) -> list[Line]:
        """What of a month's allowance or discount no invoice has given yet."""
        given = sum((line.amount for line in self._of_term(term, self._books.billed)), Decimal(0))
        amount = -whole - given
        if amount == 0:
            return []
        return [
            Line(
                kind=kind,
                month=self._books.month,
                description=term.description,
                amount=amount,
                model=term.model,
                term=term.id,
            )
        ]

    def _fee_lines(self) -> list[Line]:
        lines = []
        for term in self._books.terms:
            part = held(term.starts, term.ends, self._books.span, self._zone)
            if term.kind != "fee" or term.amount is None or part is None:
                continue
            share = Fraction(seconds(part), seconds(self._books.span))
            described = term.description
            if share < 1:
                first, stop = (instant.astimezone(self._zone) for instant in part)
                last = stop.date() - timedelta(days=1)
                described += f" ({first:%Y-%m-%d} to {last:%Y-%m-%d})"
            lines.append(
                Line(
                    kind="fee",
                    month=self._books.month,
                    description=described,
                    amount=rounded(Fraction(term.amount) * share, self._digits),
                    term=term.id,
                )
            )
        return lines

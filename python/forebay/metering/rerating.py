"""Rating usage anew after prices were corrected or added: adjustments of accounts."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec

from forebay.metering.invoicing import quantities_of, to_move, to_price
from forebay.metering.lines import price_text
from forebay.metering.period import Month, Span, month_of, months_between, span_of
from forebay.metering.rerate import EventsMissing, Rated, Shift, boundaries, shifts, value
from forebay.store import invoices
from forebay.store.billing import billing_of, lock_account
from forebay.store.errors import BadValue, NotBillable
from forebay.store.limits import check_name
from forebay.store.terms import FIRST_YEAR, LAST_YEAR, plain_decimal

if TYPE_CHECKING:
    from forebay.store.database import Database


_UTC = ZoneInfo("UTC")


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """So much of one kind of token that another price row rates now; decimal numbers as text.

    old_price, new_price: ids of price rows; old null: there was none. amount: what that changes,
    exactly.
    """

    account: str
    month: str
    model: str
    token_kind: str
    old_price: int | None
    new_price: int
    quantity: str
    amount: str
    currency: str


class NotAllRated(NotBillable):
    """Some accounts could not be rated anew; the message says which, and why. The others were.

    adjustments: theirs.
    """

    def __init__(self, reasons: list[str], adjustments: list[Adjustment]) -> None:
        super().__init__("; ".join(reasons))
        self.adjustments = adjustments


async def rerate(
    database: "Database",
    *,
    since: datetime,
    until: datetime,
    model: str | None = None,
    account: str | None = None,
) -> list[Adjustment]:
    """Rate the usage of some months by the price rows in force now; returns what that changed.

    Every month that has an instant from `since` to before `until`, in the account's time zone, is
    looked at whole: so it does not matter how ranges are cut, and doing it twice changes nothing.
    model: of this one only. account: None takes all that have usage then. The next invoice of an
    account that is finalised has the adjustments of its own month and of those before that are
    final.

    Raises: AccountNotFound; BadValue; NotBillable where events are no longer there: of one account
    among all NotAllRated, once the others are rated.
    """
    for field, instant in (("since", since), ("until", until)):
        if not FIRST_YEAR <= instant.year <= LAST_YEAR:
            raise BadValue(field, f"must be in the years {FIRST_YEAR} to {LAST_YEAR}")
    if until <= since:
        raise BadValue("until", "must be after since")
    if model is not None:
        check_name("model", model)
    if account is not None:
        await billing_of(database.pool, account)
        accounts = [account]
    else:
        accounts = await invoices.active_accounts(database.pool, *_months_anywhere(since, until))
    watermark = await invoices.watermark(database)
    found = []
    reasons = []
    for name in accounts:
        try:
            found += await _rerate_account(database, name, since, until, model, watermark)
        except NotBillable as error:
            if account is not None:
                raise
            reasons.append(str(error))
    if reasons:
        raise NotAllRated(reasons, found)
    return found


def _months_anywhere(since: datetime, until: datetime) -> Span:
    """A span that has, in every time zone, the months with an instant of a range."""
    day = timedelta(days=1)  # More than zones are apart from UTC.
    first, last = month_of(since - day, _UTC), month_of(until + day, _UTC)
    return Span(span_of(first, _UTC).start - day, span_of(last, _UTC).stop + day)


async def _rerate_account(
    database: "Database",
    account: str,
    since: datetime,
    until: datetime,
    model: str | None,
    watermark: int,
) -> list[Adjustment]:
    found = []
    async with database.pool.acquire() as connection, connection.transaction():
        await lock_account(connection, account)
        _, billing = await billing_of(connection, account)
        zone = ZoneInfo(billing.time_zone)
        known = max(watermark, await invoices.known_watermark(connection, account))
        for month in months_between(since, until, zone):
            work = _MonthOfAccount(connection, account, month, known)
            found += await work.rerate(billing.currency, zone, model)
    return found


class _MonthOfAccount:
    def __init__(self, connection: Any, account: str, month: Month, watermark: int) -> None:
        self._connection = connection
        self._account = account
        self._month = month
        self._watermark = watermark

    async def rerate(self, currency: str, zone: ZoneInfo, model: str | None) -> list[Adjustment]:
        connection, account = self._connection, self._account
        span = span_of(self._month, zone)
        prices = [to_price(row) for row in await invoices.prices_for(connection, account)]
        rows = await invoices.rated(
            connection,
            account,
            *span,
            boundaries(prices, span),
            model,
            self._watermark,
        )
        if await invoices.events_taken(connection, account, *span) is not None:
            raise self._missing()
        if await invoices.events_missing(connection, account, *span):
            raise self._missing()
        rated = [
            Rated(row["model"], row["upstream"], row["price_id"], row["bucket"], quantities_of(row))
            for row in rows
        ]
        done = [
            Shift(row["origin"], to_move(row))
            for row in await invoices.adjustments(
                connection, account, [str(self._month)], waiting=False
            )
            if model in (None, row["model"])
        ]
        try:
            found = shifts(account, currency, span, rated, done, prices)
        except EventsMissing:
            raise self._missing() from None
        by_id = {price.id: price for price in prices}
        amounts = [value(shift.move, by_id, currency) for shift in found]
        await invoices.add_adjustments(
            connection,
            [
                self._row(shift, currency, amount)
                for shift, amount in zip(found, amounts, strict=True)
            ],
        )
        return [
            Adjustment(
                account=account,
                month=str(self._month),
                model=shift.move.model,
                token_kind=shift.move.kind,
                old_price=shift.move.old,
                new_price=shift.move.new,
                quantity=plain_decimal(shift.move.quantity),
                amount=price_text(amount),
                currency=currency,
            )
            for shift, amount in zip(found, amounts, strict=True)
            if amount != 0
        ]

    def _missing(self) -> NotBillable:
        return NotBillable(
            f"{self._month} of {self._account} cannot be re-rated: not all of its events are still"
            " in usage_events"
        )

    def _row(self, shift: Shift, currency: str, amount: Decimal) -> tuple[Any, ...]:
        move = shift.move
        return (
            self._account,
            str(self._month),
            move.model,
            shift.origin,
            move.old,
            move.new,
            move.kind,
            move.quantity,
            currency,
            amount,
            self._watermark,
        )

"""Drafts of invoices, and finalising them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from forebay.metering import document as documents
from forebay.metering.document import Document, DocumentPeriod
from forebay.metering.invoice import Calculation, calculate
from forebay.metering.lines import KINDS, DoesNotBalance, Line, MonthBooks, Move, Price, Usage
from forebay.metering.period import Month, Span, month_of, parse_month, span_of
from forebay.store import invoices
from forebay.store.billing import Billing, billing_of, lock_account, seller_of
from forebay.store.errors import BadValue, InvoiceNotFound, NotBillable
from forebay.store.invoices import NewInvoice, Period
from forebay.store.terms import terms_of

if TYPE_CHECKING:
    from forebay.store.database import Database


class InvoiceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice in a list. id: its place in the order of finalising."""

    id: int
    number: str
    kind: documents.Kind
    account: str
    month: str
    currency: str
    net: str
    tax: str
    total: str
    issued_on: str
    refers_to: str | None


class Finalized(NamedTuple):
    """A finalised document as its JSON. new: it was finalised now, not before."""

    document: bytes
    new: bool


class _Sheet(NamedTuple):
    """All that an invoice is made of."""

    name: str
    billing: Billing
    zone: ZoneInfo
    month: Month
    span: Span
    calculation: Calculation
    prices: dict[int, Price]
    moves: list[int]


def read_month(text: str) -> Month:
    """Raises: BadValue on what is no month."""
    try:
        return parse_month(text)
    except ValueError:
        raise BadValue("month", "must be a month such as 2026-11") from None


def to_price(row: Any) -> Price:
    """A row of the price book."""
    return Price(**{name: row[name] for name in Price.__struct_fields__})


def to_move(row: Any) -> Move:
    """A row of the table of adjustments."""
    return Move(
        row["model"], row["old_price"], row["new_price"], row["token_kind"], row["quantity"]
    )


def quantities_of(row: Any) -> dict[str, Decimal]:
    """The sums in a row, by kind."""
    return {kind: Decimal(row[kind]) for kind in KINDS}


class Books:
    """Invoices of accounts by month."""

    def __init__(self, database: "Database"):
        self._database = database
        self._pool = database.pool

    async def draft(self, account: str, month: str, *, now: datetime | None = None) -> bytes:
        """The invoice of a month as it would be now, as JSON; finalised, as it is.

        Raises: AccountNotFound; BadValue on what is no month, or one that has not begun.
        """
        wanted = read_month(month)
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            _, billing = await billing_of(connection, account)
            done = await invoices.document_of(connection, account, month)
            if done is not None:
                return done.encode()
            moment = now or await connection.fetchval("SELECT now()")
            zone = ZoneInfo(billing.time_zone)
            if month_of(moment, zone) < wanted:
                raise BadValue("month", "must not lie in the future")
            until = await invoices.newest(connection)
            sheet = await self._sheet(connection, account, wanted, until)
            document = await self._document(connection, account, sheet)
        return documents.encode(document)

    async def finalize(self, account: str, month: str, *, now: datetime | None = None) -> Finalized:
        """Finalise the invoice of a month; one that is final already stays as it is.

        A month whose total is negative becomes a credit note.

        Raises: AccountNotFound; BadValue on what is no month; NotBillable when it is not over,
        or something in it has no price in the account's currency.
        """
        wanted = read_month(month)
        async with self._pool.acquire() as connection:
            _, billing = await billing_of(connection, account)
            done = await invoices.document_of(connection, account, month)
            if done is not None:
                return Finalized(done.encode(), False)
            moment = now or await connection.fetchval("SELECT now()")
        _check_over(wanted, billing, moment)
        until = await invoices.watermark(self._database)
        async with self._pool.acquire() as connection, connection.transaction():
            await lock_account(connection, account)
            done = await invoices.document_of(connection, account, month)
            if done is not None:
                return Finalized(done.encode(), False)
            # Each of these was exact when it was read, so the highest is exact.
            until = max(until, await invoices.known_watermark(connection, account))
            sheet = await self._sheet(connection, account, wanted, until)
            _check_over(wanted, sheet.billing, moment)
            if sheet.calculation.problems:
                told = documents.explained(sheet.calculation.problems, sheet.billing.currency)
                raise NotBillable(
                    f"{account} cannot be invoiced for {month}: {'; '.join(told)}"
                    " (set prices, then forebay invoice rerate)"
                )
            await self._check_events(connection, account, sheet)
            return Finalized(await self._store(connection, account, sheet, until, moment), True)

    async def _check_events(self, connection: Any, account: str, sheet: _Sheet) -> None:
        taken = await invoices.events_taken(connection, account, *sheet.span)
        if taken is not None:
            raise NotBillable(
                f"{account} cannot be invoiced for {sheet.month}: retention has taken events from"
                f" before {taken}"
            )
        missing = await invoices.events_missing(connection, account, *sheet.span)
        if missing:
            raise NotBillable(
                f"{account} cannot be invoiced for {sheet.month}: {missing} of its events are no"
                " longer in usage_events"
            )

    async def _sheet(self, connection: Any, account: str, month: Month, until: int) -> _Sheet:
        name, billing = await billing_of(connection, account)
        zone = ZoneInfo(billing.time_zone)
        span = span_of(month, zone)
        before = await invoices.finalized_periods(connection, account)
        periods = [Period(str(month), *span, -1), *before]
        rows = await invoices.usage(connection, account, periods, until)
        moves = await invoices.adjustments(
            connection, account, [period.month for period in periods], waiting=True
        )
        touched = {row["month"] for row in (*rows, *moves)} | {str(month)}
        late = sorted(touched - {str(month)})
        lines = await invoices.billed_lines(connection, account, late)
        months = []
        for period in periods:
            if period.month not in touched:
                continue
            of_month = parse_month(period.month)
            months.append(
                MonthBooks(
                    month=period.month,
                    span=Span(period.start, period.stop),
                    own=period.month == str(month),
                    usage=[
                        Usage(row["model"], row["price_id"], quantities_of(row), row["cost"])
                        for row in rows
                        if row["month"] == period.month
                    ],
                    moves=[to_move(row) for row in moves if row["month"] == period.month],
                    billed=[_line(row) for row in lines if row["month"] == period.month],
                    terms=await terms_of(connection, account, of_month.first, of_month.next.first),
                )
            )
        ids = {row["price_id"] for row in (*rows, *lines)}
        ids |= {row["old_price_id"] for row in lines}
        ids |= {row[name] for row in moves for name in ("old_price", "new_price")}
        found = await invoices.prices_by_id(connection, sorted(ids - {None}))
        prices = {row["id"]: to_price(row) for row in found}
        try:
            calculation = calculate(billing.currency, zone, months, prices, billing.taxes)
        except DoesNotBalance as error:
            raise NotBillable(f"{account}: {error}") from None
        return _Sheet(
            name, billing, zone, month, span, calculation, prices, [row["id"] for row in moves]
        )

    async def _document(
        self,
        connection: Any,
        account: str,
        sheet: _Sheet,
        *,
        number: str | None = None,
        until: int | None = None,
        now: datetime | None = None,
    ) -> Document:
        calculation, billing = sheet.calculation, sheet.billing
        issued = None if now is None else now.astimezone(sheet.zone).date()
        due = None if issued is None else issued + timedelta(days=billing.payment_days)
        credit = calculation.total < 0
        return Document(
            number=number,
            kind="credit_note" if credit else "invoice",
            status="draft" if number is None else "final",
            account=account,
            month=str(sheet.month),
            period=period_of(sheet.span, sheet.zone),
            currency=billing.currency,
            issued_on=None if issued is None else str(issued),
            due_on=None if due is None or credit else str(due),
            refers_to=None,
            reason=None,
            watermark=until,
            seller=await seller_of(connection),
            customer=documents.customer_of(account, sheet.name, billing),
            lines=documents.document_lines(calculation.lines, billing.currency),
            **documents.sums(calculation, billing.currency),
            prices=documents.document_prices(calculation.lines, sheet.prices),
            problems=documents.explained(calculation.problems, billing.currency),
        )

    async def _store(
        self, connection: Any, account: str, sheet: _Sheet, until: int, now: datetime
    ) -> bytes:
        calculation = sheet.calculation
        new = NewInvoice(
            series="credit_note" if calculation.total < 0 else "invoice",
            account=account,
            month=str(sheet.month),
            start=sheet.span.start,
            stop=sheet.span.stop,
            currency=sheet.billing.currency,
            net=calculation.net,
            tax=calculation.total - calculation.net,
            total=calculation.total,
            watermark=until,
            refers=None,
            issued_on=now.astimezone(sheet.zone).date(),
            finalized_at=now,
        )
        # Whoever finalises next waits from here on.
        serial, number = await invoices.take_number(connection, new.series)
        invoice = await invoices.new_id(connection)
        await add_lines(connection, invoice, calculation.lines)
        document = documents.encode(
            await self._document(connection, account, sheet, number=number, until=until, now=now)
        )
        await invoices.add_invoice(connection, invoice, serial, number, new, document.decode())
        await invoices.take_up(connection, sheet.moves, invoice)
        return document

    async def get(self, number: str) -> bytes:
        """A finalised document's JSON.

        Raises: InvoiceNotFound.
        """
        row = await invoices.by_number(self._pool, number)
        if row is None:
            raise InvoiceNotFound(f"no invoice has the number {number!r}")
        return str(row["document"]).encode()

    async def list(
        self, *, account: str | None = None, after: int | None = None, limit: int | None = None
    ) -> "Summaries":
        """Invoices and credit notes in the order of finalising, after the one with an id.

        Raises: AccountNotFound.
        """
        if account is not None:
            await billing_of(self._pool, account)
        rows = await invoices.page(self._pool, account=account, after=after, limit=limit)
        return [
            InvoiceSummary(
                id=row["id"],
                number=row["number"],
                kind=row["series"],
                account=row["account"],
                month=row["month"],
                currency=row["currency"],
                **{f: documents.money(row[f], row["currency"]) for f in ("net", "tax", "total")},
                issued_on=str(row["issued_on"]),
                refers_to=row["refers_to"],
            )
            for row in rows
        ]


Summaries = list[InvoiceSummary]
"""Named, because `Books.list` hides the type's name inside the class."""


async def add_lines(connection: Any, invoice: int, lines: list[Line]) -> None:
    """Store lines in their order."""
    await invoices.add_lines(
        connection,
        invoice,
        [[getattr(line, name) for name in invoices.LINE_COLUMNS] for line in lines],
    )


def _line(row: Any) -> Line:
    return Line(**{name: row[name] for name in invoices.LINE_COLUMNS})


def period_of(span: Span, zone: ZoneInfo) -> DocumentPeriod:
    """A span as a document has it."""
    start, stop = (instant.astimezone(zone).isoformat() for instant in span)
    return DocumentPeriod(start=start, end=stop, time_zone=str(zone))


def _check_over(month: Month, billing: Billing, now: datetime) -> None:
    zone = ZoneInfo(billing.time_zone)
    stop = span_of(month, zone).stop
    if now < stop:
        ends = stop.astimezone(zone)
        raise NotBillable(
            f"{month} is not over before {ends:%Y-%m-%d %H:%M} in {zone}"
            f" ({stop.astimezone(UTC):%Y-%m-%d %H:%M} UTC), so it cannot be finalised"
        )

"""Statements on the tables of invoices, for `forebay.metering.invoicing`."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from forebay.store.errors import StoreUnavailable
from forebay.store.limits import is_name

if TYPE_CHECKING:
    from forebay.store.database import Database

LONG_S = 300.0
"""Seconds that a sum over a month's events may take."""
_LOCK_WAIT = "9s"

SERIES = ("invoice", "credit_note")


class Period(NamedTuple):
    """A month of an account's, and the ingest number after which its events are looked for."""

    month: str
    start: datetime
    stop: datetime
    after: int


class NewInvoice(NamedTuple):
    """A row to store, but for what is known once its number is taken."""

    series: str
    account: str
    month: str
    start: datetime
    stop: datetime
    currency: str
    net: Decimal
    tax: Decimal
    total: Decimal
    watermark: int
    refers: int | None
    issued_on: date
    finalized_at: datetime


_READ_WATERMARK = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM usage_batches"
_TOKENS = "coalesce(e.prompt_tokens, 0) + coalesce(e.completion_tokens, 0) > 0"
_CACHED = "least(coalesce(e.cached_tokens, 0), coalesce(e.prompt_tokens, 0))"
_WRITTEN = f"least(e.cache_write_tokens, coalesce(e.prompt_tokens, 0) - {_CACHED})"
_REASONED = "least(coalesce(e.reasoning_tokens, 0), coalesce(e.completion_tokens, 0))"
# As costs are computed: a part is never more than the whole.
_SUMS = f"""
    count(*) AS requests,
    sum(coalesce(e.prompt_tokens, 0) - {_CACHED} - {_WRITTEN}) AS input,
    sum({_CACHED}) AS cached,
    sum({_WRITTEN}) AS cache_write,
    sum(coalesce(e.completion_tokens, 0) - {_REASONED}) AS output,
    sum({_REASONED}) AS reasoning,
    sum(round(coalesce(e.duration_ms, 0) * 1000)::numeric) * 0.000001 AS seconds
"""
_MODEL = "coalesce(e.model_served, e.model_asked, '')"
# A request that failed before anything was read or said needs no price. What cost something without
# a row of the price book is from before there was one: no invoice has it until it is rated.
_BILLABLE = (
    "(e.price_id IS NOT NULL OR e.cost > 0"
    f" OR e.cost IS NULL AND (e.outcome <> 'error' OR {_TOKENS}))"
)


async def watermark(database: "Database") -> int:
    """The ingest number up to which every event that will ever be there is there.

    For the moment that it takes, nothing is shipped.

    Raises: StoreUnavailable where something else keeps the table locked.
    """
    async with database.pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
        try:
            await connection.execute("LOCK TABLE usage_events IN SHARE MODE", timeout=60.0)
        except asyncpg.LockNotAvailableError:
            raise StoreUnavailable("usage_events stays locked by something else") from None
        number: int = await connection.fetchval(_READ_WATERMARK)
        return number


async def newest(connection: Any) -> int:
    """The last ingest number given out; events of it may not be there yet."""
    number: int = await connection.fetchval(_READ_WATERMARK)
    return number


async def known_watermark(connection: Any, account: str) -> int:
    """The highest watermark by which anything of an account was done."""
    number: int = await connection.fetchval(
        "SELECT greatest((SELECT max(watermark) FROM invoices WHERE account = $1),"
        " (SELECT max(watermark) FROM adjustments WHERE account = $1), 0)",
        account,
    )
    return number


async def finalized_periods(connection: Any, account: str) -> list[Period]:
    """The months that are invoiced; usage in them that no invoice has came after `after`."""
    rows = await connection.fetch(
        "SELECT month, period_start, period_end, max(watermark) OVER () AS after FROM invoices"
        " WHERE account = $1 AND refers IS NULL ORDER BY month",
        account,
    )
    return [
        Period(row["month"], row["period_start"], row["period_end"], row["after"]) for row in rows
    ]


async def usage(connection: Any, account: str, periods: Sequence[Period], until: int) -> list[Any]:
    """Sums of an account's events up to an ingest number, by month, model and price row."""
    rows: list[Any] = []
    # One statement for each number to begin after: months that are invoiced share theirs, and with
    # it known the few new events among all of theirs are found by the index on it.
    for after in sorted({period.after for period in periods}):
        those = [period for period in periods if period.after == after]
        rows += await connection.fetch(
            f"""
            WITH p AS MATERIALIZED (
                SELECT month, event_floor(start) AS low, event_floor(stop) AS high
                FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) t (month, start, stop)
            )
            SELECT p.month, {_MODEL} AS model, e.price_id, coalesce(sum(e.cost), 0) AS cost, {_SUMS}
            FROM usage_events e JOIN p ON e.event_id >= p.low AND e.event_id < p.high
            WHERE e.account = $1 AND e.batch > $5 AND e.batch <= $6 AND {_BILLABLE}
                AND e.event_id >= event_floor($7) AND e.event_id < event_floor($8)
            GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
            """,
            account,
            [period.month for period in those],
            [period.start for period in those],
            [period.stop for period in those],
            after,
            until,
            min(period.start for period in those),
            max(period.stop for period in those),
            timeout=LONG_S,
        )
    return rows


async def rated(
    connection: Any,
    account: str,
    start: datetime,
    stop: datetime,
    marks: Sequence[datetime],
    model: str | None,
    until: int,
) -> list[Any]:
    """Sums of an account's events, by model, upstream, price row and stretch between marks."""
    rows: list[Any] = await connection.fetch(
        f"""
        SELECT {_MODEL} AS model, e.upstream, e.price_id,
            width_bucket(e.admitted_at, $4::timestamptz[]) AS bucket, {_SUMS}
        FROM usage_events e
        WHERE e.account = $1 AND e.event_id >= event_floor($2) AND e.event_id < event_floor($3)
            AND e.batch <= $6
            AND ($5::text IS NULL OR {_MODEL} = $5) AND {_BILLABLE}
        GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        """,
        account,
        start,
        stop,
        list(marks),
        model,
        until,
        timeout=LONG_S,
    )
    return rows


async def events_missing(connection: Any, account: str, start: datetime, stop: datetime) -> int:
    """How many events of the days within a span the sums know and the table has no more."""
    number: int = await connection.fetchval(
        """
        WITH days AS (
            SELECT day, sum(requests) AS requests FROM usage_daily
            WHERE account = $1 AND day >= ($2::timestamptz AT TIME ZONE 'UTC')::date
                AND day < ($3::timestamptz AT TIME ZONE 'UTC')::date
                AND day >= ($2::timestamptz AT TIME ZONE 'UTC')
            GROUP BY day)
        SELECT greatest(0, (coalesce((SELECT sum(requests) FROM days), 0) - (
            SELECT count(*) FROM usage_events
            WHERE account = $1 AND event_id >= event_floor($2) AND event_id < event_floor($3)
                AND (event_time(event_id) AT TIME ZONE 'UTC')::date IN (SELECT day FROM days)
        )))::bigint
        """,
        account,
        start,
        stop,
        timeout=LONG_S,
    )
    return number


async def events_taken(
    connection: Any, account: str, start: datetime, stop: datetime
) -> date | None:
    """The day (UTC) before which retention has taken events, where it took some of a span's days.

    Days on which the span begins or ends count whole: their sums do not tell the hours. None: it
    took none that the account had. To be asked after the events were read: from then on until the
    transaction ends, none of those can be taken.
    """
    day: date | None = await connection.fetchval(
        "SELECT events_from FROM ledger_state WHERE EXISTS (SELECT FROM usage_daily"
        " WHERE account = $1 AND day < events_from"
        " AND day >= ($2::timestamptz AT TIME ZONE 'UTC')::date"
        " AND day < $3::timestamptz AT TIME ZONE 'UTC')",
        account,
        start,
        stop,
    )
    return day


async def active_accounts(connection: Any, since: datetime, until: datetime) -> list[str]:
    """The accounts with events admitted from one instant to before another."""
    rows = await connection.fetch(
        "SELECT a.id FROM accounts a WHERE EXISTS (SELECT FROM usage_events e"
        " WHERE e.account = a.id AND e.event_id >= event_floor($1)"
        " AND e.event_id < event_floor($2)) ORDER BY a.id",
        since,
        until,
        timeout=LONG_S,
    )
    return [row["id"] for row in rows]


_PRICE = (
    "SELECT id, model, upstream, account, currency, input, cached, cache_write, output, reasoning,"
    " request, second, effective_from, effective_to, superseded_at IS NOT NULL AS superseded"
    " FROM prices"
)


async def prices_by_id(connection: Any, ids: Sequence[int]) -> list[Any]:
    """Rows of the price book."""
    rows: list[Any] = await connection.fetch(f"{_PRICE} WHERE id = ANY($1) ORDER BY id", list(ids))
    return rows


async def prices_for(connection: Any, account: str) -> list[Any]:
    """Rows of the price book that may rate an account's usage, or did."""
    rows: list[Any] = await connection.fetch(
        f"{_PRICE} WHERE account IS NULL OR account = $1 ORDER BY id", account
    )
    return rows


async def adjustments(
    connection: Any, account: str, months: Sequence[str], *, waiting: bool
) -> list[Any]:
    """What was rated anew of some months; waiting: what no invoice has yet."""
    rows: list[Any] = await connection.fetch(
        "SELECT id, month, model, origin, old_price, new_price, token_kind, quantity"
        " FROM adjustments WHERE account = $1 AND month = ANY($2)"
        " AND NOT ($3 AND invoice IS NOT NULL) ORDER BY id",
        account,
        list(months),
        waiting,
    )
    return rows


async def add_adjustments(connection: Any, rows: Sequence[Sequence[Any]]) -> None:
    """Store what is rated anew, in the order of the table's columns after its id."""
    await connection.executemany(
        "INSERT INTO adjustments (account, month, model, origin, old_price, new_price, token_kind,"
        " quantity, currency, amount, watermark)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        rows,
    )


LINE_COLUMNS = (
    "kind",
    "month",
    "description",
    "model",
    "token_kind",
    "price_id",
    "old_price_id",
    "quantity",
    "unit_price",
    "per",
    "amount",
    "term",
    "credits",
)


async def billed_lines(connection: Any, account: str, months: Sequence[str]) -> list[Any]:
    """What invoices have on some months of an account."""
    rows: list[Any] = await connection.fetch(
        f"SELECT {', '.join(f'l.{name}' for name in LINE_COLUMNS)} FROM invoice_lines l"
        " JOIN invoices i ON i.id = l.invoice WHERE i.account = $1 AND l.month = ANY($2)"
        " AND l.kind <> 'credit' ORDER BY i.id, l.position",
        account,
        list(months),
    )
    return rows


async def document_of(connection: Any, account: str, month: str) -> str | None:
    """The finalised document of a month."""
    document: str | None = await connection.fetchval(
        "SELECT document FROM invoices WHERE account = $1 AND month = $2 AND refers IS NULL",
        account,
        month,
    )
    return document


async def by_number(connection: Any, number: str) -> Any:
    """The row of an invoice; None without."""
    if not is_name(number):
        return None
    return await connection.fetchrow("SELECT * FROM invoices WHERE number = $1", number)


async def credits_of(connection: Any, invoice: int) -> list[Any]:
    """The documents of all credit notes to an invoice."""
    rows: list[Any] = await connection.fetch(
        "SELECT document FROM invoices WHERE refers = $1 ORDER BY serial", invoice
    )
    return rows


async def page(
    connection: Any, *, account: str | None, after: int | None, limit: int | None
) -> list[Any]:
    """Invoices and credit notes in the order in which they were finalised."""
    rows: list[Any] = await connection.fetch(
        "SELECT i.id, i.number, i.series, i.account, i.month, i.currency, i.net, i.tax, i.total,"
        " i.issued_on, r.number AS refers_to"
        " FROM invoices i LEFT JOIN invoices r ON r.id = i.refers"
        " WHERE ($1::text IS NULL OR i.account = $1) AND ($2::bigint IS NULL OR i.id > $2)"
        " ORDER BY i.id LIMIT $3",
        account,
        after,
        limit,
    )
    return rows


async def new_id(connection: Any) -> int:
    """An id for an invoice, which lines refer to before it is stored."""
    number: int = await connection.fetchval("SELECT nextval('invoice_ids')")
    return number


async def add_lines(connection: Any, invoice: int, lines: Sequence[Sequence[Any]]) -> None:
    """Store the lines of an invoice that is stored after them. Columns: `LINE_COLUMNS`."""
    marks = ", ".join(f"${i + 3}" for i in range(len(LINE_COLUMNS)))
    await connection.executemany(
        f"INSERT INTO invoice_lines (invoice, position, {', '.join(LINE_COLUMNS)})"
        f" VALUES ($1, $2, {marks})",
        [(invoice, position, *line) for position, line in enumerate(lines, 1)],
    )


async def take_number(connection: Any, series: str) -> tuple[int, str]:
    """The next serial and number of a series; whoever comes next waits for this transaction."""
    row = await connection.fetchrow(
        "UPDATE invoice_series SET next = next + 1 WHERE series = $1"
        " RETURNING prefix, next - 1 AS serial",
        series,
    )
    return row["serial"], f"{row['prefix']}{row['serial']:06d}"


async def add_invoice(
    connection: Any, invoice: int, serial: int, number: str, new: NewInvoice, document: str
) -> None:
    """Store an invoice, which closes it."""
    await connection.execute(
        "INSERT INTO invoices (id, serial, number, document, series, account, month, period_start,"
        " period_end, currency, net, tax, total, watermark, refers, issued_on, finalized_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        invoice,
        serial,
        number,
        document,
        *new,
    )


async def take_up(connection: Any, adjustments: Sequence[int], invoice: int) -> None:
    """Let an invoice have adjustments."""
    await connection.execute(
        "UPDATE adjustments SET invoice = $2 WHERE id = ANY($1)", list(adjustments), invoice
    )

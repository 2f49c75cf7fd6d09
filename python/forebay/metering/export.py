"""The ledger for others: events and sums as files, row by row, whatever their number."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from forebay.metering.export_formats import (
    CsvWriter,
    JsonLines,
    ParquetWriter,
    Writer,
    openmeter_event,
    openmeter_hour,
    stripe_event,
    stripe_hour,
)

if TYPE_CHECKING:
    from forebay.store.database import Database

What = Literal["usage", "rollups"]
Format = Literal["parquet", "csv", "openmeter", "stripe"]

USAGE: dict[str, str] = {
    "event_id": "text",
    "node": "text",
    "boot": "text",
    "seq": "integer",
    "batch": "integer",
    "request_id": "text",
    "account": "text",
    "key_id": "text",
    "admitted_at": "time",
    "first_byte_at": "time",
    "ended_at": "time",
    "model_asked": "text",
    "model_served": "text",
    "upstream": "text",
    "front": "text",
    "endpoint": "text",
    "stream": "boolean",
    "outcome": "text",
    "status": "integer",
    "finish_reason": "text",
    "error_kind": "text",
    "attempts": "integer",
    "prompt_tokens": "integer",
    "cached_tokens": "integer",
    "cache_write_tokens": "integer",
    "completion_tokens": "integer",
    "reasoning_tokens": "integer",
    "source": "text",
    "duration_ms": "real",
    "ttft_ms": "real",
    "tokens_per_second": "real",
    "price_id": "integer",
    "cost": "money",
    "tags": "text",
    "attempt_log": "text",
}
"""Columns of an export of events, and their kinds: text, integer, real, boolean, time, money."""

ROLLUPS: dict[str, str] = {
    "hour": "time",
    "account": "text",
    "key_id": "text",
    "model": "text",
    "upstream": "text",
    "price_id": "integer",
    "requests": "integer",
    "errors": "integer",
    "estimated": "integer",
    "prompt_tokens": "integer",
    "cached_tokens": "integer",
    "cache_write_tokens": "integer",
    "completion_tokens": "integer",
    "reasoning_tokens": "integer",
    "duration_us": "integer",
    "cost": "money",
}
"""Columns of an export of sums by hour."""

ROWS = 5_000
"""Rows that are in memory at a time."""

_TEXT = {"event_id", "boot", "tags", "attempt_log"}


def _query(what: What) -> str:
    if what == "usage":
        columns = ", ".join(f"{name}::text" if name in _TEXT else name for name in USAGE)
        return (
            f"SELECT {columns} FROM usage_events"
            " WHERE event_id >= event_floor($1) AND event_id < event_floor($2)"
            " AND ($3::text IS NULL OR account = $3) ORDER BY usage_events.event_id"
        )
    return (
        f"SELECT {', '.join(ROLLUPS)} FROM usage_hourly WHERE hour >= $1 AND hour < $2"
        " AND ($3::text IS NULL OR account = $3)"
        " ORDER BY hour, account, key_id, model, upstream, price_id"
    )


async def rows(
    database: "Database", what: What, *, since: datetime, until: datetime, account: str | None
) -> AsyncGenerator[list[Any], None]:
    """What there is from `since` until before `until`, in portions, in order of time.

    All of it is of one moment: what is written meanwhile is not in it.
    """
    async with (
        database.pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        cursor = await connection.cursor(_query(what), since, until, account)
        while portion := await cursor.fetch(ROWS, timeout=600):
            yield portion


async def export(
    database: "Database",
    what: What,
    format: Format,
    out: IO[bytes],
    *,
    since: datetime,
    until: datetime,
    account: str | None = None,
) -> int:
    """Write events or sums by hour, and return how many of them.

    out: is not closed. since, until: the time of the request; of sums, the beginning of the hour.

    Raises: MissingExtra for ``parquet`` without pyarrow.
    """
    writer = _writer(what, format, out)
    count = 0
    async with contextlib.aclosing(
        rows(
            database,
            what,
            since=since.astimezone(UTC),
            until=until.astimezone(UTC),
            account=account,
        )
    ) as portions:
        async for portion in portions:
            writer.write(portion)
            count += len(portion)
    writer.close()
    return count


def _writer(what: What, format: Format, out: IO[bytes]) -> Writer:
    columns = USAGE if what == "usage" else ROLLUPS
    if format == "parquet":
        return ParquetWriter(out, columns)
    if format == "csv":
        return CsvWriter(out, columns)
    if format == "openmeter":
        return JsonLines(out, openmeter_event if what == "usage" else openmeter_hour)
    return JsonLines(out, stripe_event if what == "usage" else stripe_hour)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name once it is whole; a failed one leaves nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

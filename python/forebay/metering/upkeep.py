"""Partitions made ahead, and rows taken away whose time is over. All of it is safe to repeat."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from forebay.store.database import Connection

AHEAD = 3
"""Months after the current one that have a partition."""

# Whoever waits for a strong lock makes all who come after wait too: rather try again later.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '3s'"
_MOST_MONTHS = 36
_TIMEOUT_S = 600.0


async def make_partitions(connection: Connection, now: datetime) -> dict[str, Any]:
    """Make the partitions of this month, the next three, and those that stray events need.

    Events in the default partition move to that of their month, unless retention has dropped it.
    Returns ``{"partitions": ["2026-11", …]}``, those that were made.
    """
    first = now.astimezone(UTC).date().replace(day=1)
    months = [later(first, ahead) for ahead in range(AHEAD + 1)]
    strays = await connection.fetch(
        "SELECT DISTINCT date_trunc('month', event_time(event_id) AT TIME ZONE 'UTC')::date AS m"
        " FROM usage_events_default, ledger_state"
        " WHERE event_id < event_floor($1::timestamp AT TIME ZONE 'UTC')"
        " AND (events_from IS NULL"
        " OR event_id >= event_floor(events_from::timestamp AT TIME ZONE 'UTC'))"
        " ORDER BY m DESC LIMIT $2",
        datetime.combine(later(first, AHEAD + 1), datetime.min.time()),
        _MOST_MONTHS,
        timeout=_TIMEOUT_S,
    )
    made = []
    for month in sorted({*months, *(row["m"] for row in strays)}):
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            if await connection.fetchval("SELECT usage_partition($1)", month, timeout=_TIMEOUT_S):
                made.append(f"{month:%Y-%m}")
    return {"partitions": made}


async def apply_retention(
    connection: Connection,
    now: datetime,
    *,
    usage_days: int | None = None,
    hourly_days: int | None = None,
    rejected_days: int | None = None,
) -> dict[str, Any]:
    """Take away what is older than so many days; None keeps it.

    usage_days: events, by whole months; their sums stay. hourly_days: sums by hour; those by day
    stay. rejected_days: rows that were set aside.

    Returns ``{"dropped": ["2025-11", …], "hourly": rows, "rejected": rows}``.
    """
    dropped: list[str] = []
    if usage_days is not None:
        dropped = await _drop_months(connection, _day(now, usage_days))
    hourly = rejected = 0
    if hourly_days is not None:
        until = _day(now, hourly_days)
        async with connection.transaction():
            gone = await connection.execute(
                "DELETE FROM usage_hourly WHERE hour < $1::timestamp AT TIME ZONE 'UTC'",
                datetime.combine(until, datetime.min.time()),
                timeout=_TIMEOUT_S,
            )
            hourly = int(gone.split()[-1])
            await connection.execute(
                "UPDATE ledger_state SET hourly_from = greatest(hourly_from, $1)", until
            )
    if rejected_days is not None:
        gone = await connection.execute(
            "DELETE FROM usage_rejected WHERE rejected_at < $1",
            now - timedelta(days=rejected_days),
            timeout=_TIMEOUT_S,
        )
        rejected = int(gone.split()[-1])
    return {"dropped": dropped, "hourly": hourly, "rejected": rejected}


async def _drop_months(connection: Connection, until: date) -> list[str]:
    dropped = []
    for row in await connection.fetch("SELECT month, name FROM usage_partitions ORDER BY month"):
        end = later(row["month"], 1)
        if end > until:
            break
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(f'DROP TABLE IF EXISTS "{row["name"]}"')
            await connection.execute(
                "UPDATE ledger_state SET events_from = greatest(events_from, $1)", end
            )
        dropped.append(f"{row['month']:%Y-%m}")
    # What came for a month after it was dropped.
    await connection.execute(
        "DELETE FROM usage_events_default USING ledger_state"
        " WHERE event_id < event_floor(events_from::timestamp AT TIME ZONE 'UTC')",
        timeout=_TIMEOUT_S,
    )
    return dropped


def later(month: date, months: int) -> date:
    """The first day of the month that is so many months later."""
    years, index = divmod(month.month - 1 + months, 12)
    return date(month.year + years, index + 1, 1)


def _day(now: datetime, days: int) -> date:
    return now.astimezone(UTC).date() - timedelta(days=days)

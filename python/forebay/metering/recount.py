"""Do the sums agree with the events? Counted again, and replaced where they do not."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import structlog

from forebay.metering.merge import KEYS, SUMS, daily, hourly
from forebay.store.database import Connection

_TIMEOUT_S = 600.0
_COLUMNS = ", ".join((*KEYS, *SUMS))

# One statement sees one state of the database, in which every event is with its sums: nobody has
# to wait while it is looked.
_COUNTED = hourly(
    "(SELECT * FROM usage_events"
    " WHERE event_id >= event_floor($1) AND event_id < event_floor($2)) e"
)


def _differing(counted: str, kept: str, time: str) -> str:
    found = ", ".join(f"c.{name}" for name in SUMS)
    there = ", ".join(f"k.{name}" for name in SUMS)
    return (
        f"(SELECT count(*) FROM {counted} c FULL JOIN {kept} k"
        f" USING ({time}, {', '.join(KEYS)}) WHERE ({found}) IS DISTINCT FROM ({there}))"
    )


_COMPARE = (
    f"WITH counted AS MATERIALIZED ({_COUNTED}), counted_days AS ({daily('counted')}),"
    f" kept AS (SELECT hour, {_COLUMNS} FROM usage_hourly WHERE hour >= $1 AND hour < $2),"
    f" kept_days AS (SELECT day, {_COLUMNS} FROM usage_daily"
    " WHERE day = ($1 AT TIME ZONE 'UTC')::date)"
    f" SELECT {_differing('counted', 'kept', 'hour')}"
    f" + {_differing('counted_days', 'kept_days', 'day')}"
)
_REPLACE = (
    "DELETE FROM usage_hourly WHERE hour >= $1 AND hour < $2",
    "DELETE FROM usage_daily"
    " WHERE day >= ($1 AT TIME ZONE 'UTC')::date AND day < ($2 AT TIME ZONE 'UTC')::date",
    f"INSERT INTO usage_hourly (hour, {_COLUMNS}) {_COUNTED}",
    f"INSERT INTO usage_daily (day, {_COLUMNS})"
    f" {daily('(SELECT * FROM usage_hourly WHERE hour >= $1 AND hour < $2) h')}",
)

_log = structlog.stdlib.get_logger(__name__)


async def recount_day(connection: Connection, day: date) -> int:
    """Compare a day's sums (UTC), by hour and by day, with its events, and replace what differs.

    Returns how many sums differed. While they are replaced, events have to wait. A day whose events
    or hours retention has taken away is left alone.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    span = (start, start + timedelta(days=1))
    if not await connection.fetchval(_COMPARE, *span, timeout=_TIMEOUT_S):
        return 0
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '10s'")
        # Events and other recounts come in order with this one; reading goes on.
        await connection.execute("LOCK TABLE usage_events IN SHARE ROW EXCLUSIVE MODE")
        # Retention may have taken the events since the day was chosen; from here on it cannot.
        oldest = await _oldest(connection)
        if oldest is not None and day < oldest:
            return 0
        differing: int = await connection.fetchval(_COMPARE, *span, timeout=_TIMEOUT_S)
        if differing:
            for statement in _REPLACE:
                await connection.execute(statement, *span, timeout=_TIMEOUT_S)
            await connection.execute(
                "UPDATE ledger_state SET differences = differences + $1", differing
            )
    if differing:
        _log.error("usage_sums_replaced", day=day.isoformat(), sums=differing)
    return differing


async def recount(
    connection: Connection, now: datetime, since: date | None = None
) -> dict[str, Any]:
    """Count again the days (UTC) whose events came since the last time, today's excepted.

    since: count every day from this one on instead, today too. Days whose events or hours
    retention has taken away are left out.

    Returns ``{"days": counted, "differences": sums replaced, "differing": ["2026-11-03", …]}``.
    """
    today = now.astimezone(UTC).date()
    state = await connection.fetchrow("SELECT * FROM ledger_state")
    assert state is not None
    watermark = None
    if since is None:
        watermark = await _watermark(connection)
        days = await _touched(connection, state["recounted"], watermark, today)
        if state["recounted_day"] is not None:
            days |= set(_days(state["recounted_day"], today))
    else:
        days = await _present(connection, since, today)
    oldest = await _oldest(connection)
    counted = sorted(day for day in days if oldest is None or day >= oldest)
    found = {day: await recount_day(connection, day) for day in counted}
    if watermark is not None:
        await connection.execute(
            "UPDATE ledger_state SET recounted = greatest(recounted, $1),"
            " recounted_day = greatest(recounted_day, $2)",
            watermark,
            today,
        )
    return {
        "days": len(counted),
        "differences": sum(found.values()),
        "differing": [day.isoformat() for day, sums in found.items() if sums],
    }


async def _oldest(connection: Connection) -> date | None:
    """The first day of which retention has taken neither events nor hours; None: it took none."""
    oldest: date | None = await connection.fetchval(
        "SELECT greatest(events_from, hourly_from) FROM ledger_state"
    )
    return oldest


async def _watermark(connection: Connection) -> int:
    """The last batch that is visible, as are all before it."""
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '10s'")
        await connection.execute("LOCK TABLE usage_events IN SHARE MODE")
        last: int = await connection.fetchval("SELECT last_value FROM usage_batches")
    return last


async def _touched(connection: Connection, after: int, until: int, today: date) -> set[date]:
    """Days before today to which batches after `after` brought events."""
    rows = await connection.fetch(
        "SELECT DISTINCT (event_time(event_id) AT TIME ZONE 'UTC')::date AS day FROM usage_events"
        " WHERE batch > $1 AND batch <= $2"
        " AND event_id < event_floor($3::timestamp AT TIME ZONE 'UTC')",
        after,
        until,
        datetime.combine(today, datetime.min.time()),
        timeout=_TIMEOUT_S,
    )
    return {row["day"] for row in rows}


async def _present(connection: Connection, since: date, today: date) -> set[date]:
    """Days from `since` to today that there may be something about."""
    rows = await connection.fetch(
        "SELECT DISTINCT day FROM usage_daily WHERE day >= $1 AND day <= $2", since, today
    )
    first = await connection.fetchval(
        "SELECT min(event_time(event_id) AT TIME ZONE 'UTC')::date FROM (SELECT event_id"
        " FROM usage_events WHERE event_id >= event_floor($1::timestamp AT TIME ZONE 'UTC')"
        " ORDER BY event_id LIMIT 1) e",
        datetime.combine(since, datetime.min.time()),
    )
    days = {row["day"] for row in rows}
    if first is not None and first <= today:
        days |= {*_days(max(first, since), today), today}
    return days


def _days(first: date, until: date) -> list[date]:
    """Every day from `first` until the one before `until`."""
    return [first + timedelta(days=n) for n in range((until - first).days)]

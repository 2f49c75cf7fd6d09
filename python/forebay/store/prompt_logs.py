"""The table of prompt logs: its columns, and the days that it is made of.

Days are made ahead and dropped when they are too old.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from forebay.store.database import Connection

COLUMNS = (
    "event_id",
    "request_id",
    "account",
    "key_id",
    "model",
    "at",
    "level",
    "status",
    "request_bytes",
    "answer_bytes",
    "request_truncated",
    "answer_truncated",
    "redactions",
    "enc_key",
    "request",
    "answer",
)
"""The columns of ``prompt_logs`` in the order in which they are shipped."""

AHEAD = 7
"""Days that are made ahead."""
_LOCK = (7166410, 7)
"""Advisory lock held while days are made and dropped."""

_EXISTING = (
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'prompt_logs'::regclass"
)
_PREFIX = "prompt_logs_"


async def maintain(connection: Connection, now: datetime, days: int) -> None:
    """Make the partitions of today and the days to come, and drop what is older than `days`.

    now: with a time zone. A day goes once all of it is too old. Rows that came before their day was
    made are moved to it.
    """
    today = now.astimezone(UTC).date()
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", *_LOCK)
        names = {row["relname"] for row in await connection.fetch(_EXISTING)}
        # Yesterday too: requests that were admitted then end now.
        for offset in range(-1, AHEAD + 1):
            day = today + timedelta(days=offset)
            if _name(day) not in names:
                await _make(connection, day)
        oldest = today - timedelta(days=days)
        for name in sorted(names):
            day_of = _day(name)
            if day_of is not None and day_of < oldest:
                await connection.execute(f"DROP TABLE {name}")
        await connection.execute(
            "DELETE FROM prompt_logs_default WHERE event_id < event_floor($1)", _midnight(oldest)
        )


async def _make(connection: Connection, day: date) -> None:
    name = _name(day)
    bounds: list[Any] = [
        await connection.fetchval("SELECT event_floor($1)", _midnight(day + timedelta(days=d)))
        for d in (0, 1)
    ]
    # Nothing may come to the default partition between the move and the new one's attachment.
    await connection.execute("LOCK TABLE prompt_logs_default IN ACCESS EXCLUSIVE MODE")
    await connection.execute(f"CREATE TABLE {name} (LIKE prompt_logs INCLUDING ALL)")
    await connection.execute(
        "WITH moved AS (DELETE FROM prompt_logs_default"
        " WHERE event_id >= $1 AND event_id < $2 RETURNING *)"
        f" INSERT INTO {name} SELECT * FROM moved",
        *bounds,
    )
    await connection.execute(
        f"ALTER TABLE prompt_logs ATTACH PARTITION {name}"
        f" FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')"
    )


def _name(day: date) -> str:
    return f"{_PREFIX}{day:%Y%m%d}"


def _day(name: str) -> date | None:
    try:
        return datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").date()
    except ValueError:
        return None


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)

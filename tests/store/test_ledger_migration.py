"""The third migration: events that are there already are carried over, with their sums."""

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from forebay.metering.recount import recount
from forebay.store import Database
from forebay.store.database import migrations

from tests.support.ledger import DAY_US, NOW_US, balanced, event_id

COLUMNS = (
    "event_id, request_id, account, key_id, admitted_at, model_asked, model_served, upstream,"
    " stream, outcome, prompt_tokens, completion_tokens, source, duration_ms, cost"
)


def row(us: int, **changes: Any) -> tuple[Any, ...]:
    fields: dict[str, Any] = {
        "event_id": uuid.UUID(bytes=event_id(us)),
        "request_id": "r",
        "account": "acme",
        "key_id": "k",
        "admitted_at": datetime.fromtimestamp(us / 1e6, UTC),
        "model_asked": "m",
        "model_served": None,
        "upstream": "gpu",
        "stream": False,
        "outcome": "ok",
        "prompt_tokens": 5,
        "completion_tokens": None,
        "source": "reported",
        "duration_ms": 1.5,
        "cost": Decimal("0.000000003"),
    }
    return tuple({**fields, **changes}.values())


@pytest.mark.asyncio
async def test_rows_are_carried_over(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = migrations()
    stray = uuid.UUID(int=(1 << 128) - 1)
    async with await Database.connect(empty_database_url) as database:
        monkeypatch.setattr("forebay.store.database.migrations", lambda: shipped[:2])
        assert await database.migrate() == [1, 2]
        rows = [
            row(NOW_US),
            row(NOW_US + 1000, outcome="error", source="estimated", upstream=None, cost=None),
            row(NOW_US + 60 * DAY_US, duration_ms=None),
            # Not one that the gateway made, but it is there.
            row(NOW_US, event_id=stray),
        ]
        marks = ", ".join(f"${n}" for n in range(1, len(rows[0]) + 1))
        await database.pool.executemany(
            f"INSERT INTO usage_events ({COLUMNS}) VALUES ({marks})", rows
        )
        query = f"SELECT {COLUMNS} FROM usage_events ORDER BY event_id"
        before = [tuple(found) for found in await database.pool.fetch(query)]
        monkeypatch.undo()
        assert 3 in await database.migrate()
        assert [tuple(found) for found in await database.pool.fetch(query)] == before
        assert await balanced(database.pool)
        names = [r["month"] for r in await database.pool.fetch("TABLE usage_partitions")]
        assert names[0] == date(2023, 11, 1)
        assert names[-1] > datetime.now(UTC).date()
        assert await database.pool.fetchval("SELECT count(*) FROM usage_events_2024_01") == 1
        days = await database.pool.fetch(
            "SELECT day, model, requests, errors, estimated, duration_us, cost FROM usage_daily"
            " WHERE day BETWEEN '2023-11-14' AND '2024-01-13' ORDER BY day, upstream"
        )
        assert [tuple(day) for day in days] == [
            (date(2023, 11, 14), "m", 1, 1, 1, 1500, 0),
            (date(2023, 11, 14), "m", 1, 0, 0, 1500, Decimal("0.000000003")),
            (date(2024, 1, 13), "m", 1, 0, 0, 0, Decimal("0.000000003")),
        ]
        spent = await database.pool.fetch(
            "SELECT day, account, key_id, cost FROM spend ORDER BY day"
        )
        assert [tuple(day) for day in spent] == [
            (date(2023, 11, 14), "acme", "k", Decimal("0.000000003")),
            (date(2024, 1, 13), "acme", "k", Decimal("0.000000003")),
            (date(9999, 12, 31), "acme", "k", Decimal("0.000000003")),
        ]
        async with database.pool.acquire() as connection:
            found = await recount(connection, datetime.now(UTC), since=date(2023, 1, 1))
        assert found["differences"] == 0
        assert found["days"] > 2


@pytest.mark.asyncio
async def test_the_first_batch_is_one(database: Database) -> None:
    assert await database.pool.fetchval("SELECT last_value FROM usage_batches") == 0
    assert await database.pool.fetchval("SELECT nextval('usage_batches')") == 1


# What gateways of the version before the ledger run, with the rows given rather than staged.
_MERGE_BEFORE = (
    f"WITH inserted AS (INSERT INTO usage_events ({COLUMNS})"
    f" VALUES ({', '.join(f'${n}' for n in range(1, 16))})"
    " ON CONFLICT (event_id) DO NOTHING RETURNING *),"
    " spent AS (INSERT INTO spend AS s (day, account, key_id, model, cost)"
    " SELECT (admitted_at AT TIME ZONE 'UTC')::date, account, key_id,"
    " coalesce(model_served, model_asked, ''), sum(cost)"
    " FROM inserted WHERE cost > 0 GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
    " ON CONFLICT (day, account, key_id, model) DO UPDATE SET cost = s.cost + EXCLUDED.cost)"
    " SELECT count(*) FROM inserted"
)


@pytest.mark.asyncio
async def test_gateways_of_the_version_before_go_on_writing(database: Database) -> None:
    first = row(NOW_US)
    assert [await database.pool.fetchval(_MERGE_BEFORE, *first) for _ in range(2)] == [1, 0]
    assert await database.pool.fetchval(_MERGE_BEFORE, *row(NOW_US)) == 1
    assert await database.pool.fetchval("SELECT cost FROM spend") == Decimal("0.000000006")
    batches = "SELECT count(DISTINCT batch) FROM usage_events WHERE batch > 0"
    assert await database.pool.fetchval(batches) == 2
    # Their sums come with the next recount.
    assert not await balanced(database.pool)
    async with database.pool.acquire() as connection:
        await recount(connection, datetime.now(UTC))
    assert await balanced(database.pool)

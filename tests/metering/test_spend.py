"""Spend: the sum of the events' costs, whatever happens to the writers."""

import asyncio
from collections import defaultdict
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from forebay.metering import UsageWriter
from forebay.store import Database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import run_apart
from tests.metering.test_usage_writer import Source, event
from tests.support.ledger import DAY_US, event_id

MIDNIGHT_US = 1_700_006_400_000_000  # 2023-11-15 00:00 UTC

Spend = dict[tuple[date, str, str, str], Decimal]


async def spend(database: Database) -> Spend:
    rows = await database.pool.fetch(
        "SELECT day, account, key_id, model, cost FROM usage_daily WHERE cost > 0"
    )
    return {(r["day"], r["account"], r["key_id"], r["model"]): r["cost"] for r in rows}


async def spend_by_events(database: Database) -> Spend:
    """The same, counted again from the events."""
    rows = await database.pool.fetch(
        "SELECT event_id, account, key_id, cost,"
        " coalesce(model_served, model_asked, '') AS model FROM usage_events WHERE cost > 0"
    )
    sums: Spend = defaultdict(Decimal)
    for row in rows:
        day = datetime.fromtimestamp((row["event_id"].int >> 80) / 1000, UTC).date()
        sums[(day, row["account"], row["key_id"], row["model"])] += row["cost"]
    return dict(sums)


async def write(database: Database, *batches: list[tuple[Any, ...]], batch: int = 100) -> None:
    """Every batch by a writer of its own, all at once."""
    writers = []
    for events in batches:
        source = Source()
        source.events = list(events)
        writers.append(UsageWriter(database, source.drain, batch=batch))
    try:
        assert all(await asyncio.gather(*(writer.flush(20) for writer in writers)))
    finally:
        for writer in writers:
            await writer.stop()


@pytest.mark.asyncio
async def test_an_event_counts_once(database: Database) -> None:
    first = event(cost=1_000_000_001)
    await write(database, [first, event(cost=500), first])
    await write(database, [first])
    ((key, cost),) = (await spend(database)).items()
    assert key == (date(2023, 11, 14), "default", "k1", "served")
    assert cost == Decimal("0.001000000501")


@pytest.mark.asyncio
async def test_the_day_is_that_of_admission_in_utc(database: Database) -> None:
    name = await database.pool.fetchval("SELECT current_database()")
    await database.pool.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    await write(
        database,
        [event(cost=1, admitted_at=MIDNIGHT_US - 1), event(cost=2, admitted_at=MIDNIGHT_US)],
    )
    assert {key[0]: cost.scaleb(12) for key, cost in (await spend(database)).items()} == {
        date(2023, 11, 14): 1,
        date(2023, 11, 15): 2,
    }


@pytest.mark.asyncio
async def test_without_cost_or_model(database: Database) -> None:
    await write(
        database,
        [
            event(cost=None),
            event(cost=0),
            event(cost=7, model_served=None),
            event(cost=8, model_served=None, model_asked=None),
        ],
    )
    found = {key[3]: cost.scaleb(12) for key, cost in (await spend(database)).items()}
    assert found == {"asked": 7, "": 8}


@pytest.mark.asyncio
async def test_a_batch_that_is_split_counts_once(database: Database) -> None:
    good = [event(cost=3) for _ in range(13)]
    await write(database, [*good[:6], event(cost=5, prompt_tokens=-1), *good[6:]])
    assert [cost.scaleb(12) for cost in (await spend(database)).values()] == [39]


@pytest.mark.asyncio
async def test_writers_of_the_same_keys_neither_block_nor_miscount(database: Database) -> None:
    # Every writer has every key in an order of its own, and half of its events others have too.
    shared = [event(cost=1, key_id=f"k{i % 20}") for i in range(200)]
    batches = []
    for number in range(4):
        own = [event(cost=1, key_id=f"k{(i * 7 + number) % 20}") for i in range(200)]
        mixed = shared + own
        batches.append(
            mixed[number::3] + mixed[(number + 1) % 3 :: 3] + mixed[(number + 2) % 3 :: 3]
        )
    await write(database, *batches, batch=37)
    assert await database.pool.fetchval("SELECT count(*) FROM usage_events") == 1000
    found = await spend(database)
    assert len(found) == 20
    assert sum(found.values()).scaleb(12) == 1000
    deadlocks = await database.pool.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert deadlocks == 0


events = st.builds(
    lambda number, admitted_at, **fields: event(
        event_id=event_id(admitted_at, number), admitted_at=admitted_at, **fields
    ),
    number=st.integers(0, 3),
    account=st.sampled_from(["a", "b"]),
    key_id=st.sampled_from(["k1", "k2"]),
    model_served=st.sampled_from(["m", "n", None]),
    admitted_at=st.sampled_from([MIDNIGHT_US + d * DAY_US // 3 - 1000 for d in range(-4, 5)]),
    cost=st.one_of(st.none(), st.integers(0, 10**16)),
    prompt_tokens=st.sampled_from([1, 2, -1]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(events, max_size=25), min_size=1, max_size=3))
def test_spend_is_the_sum_of_the_events(database_url: str, batches: list[Any]) -> None:
    async def run() -> None:
        async with await Database.connect(database_url) as database:
            await database.pool.execute(
                "TRUNCATE usage_hourly, usage_daily, usage_events, usage_rejected"
            )
            await write(database, *batches, batch=10)
            assert await spend(database) == await spend_by_events(database)

    run_apart(run)


def test_the_constant() -> None:
    assert datetime.fromtimestamp(MIDNIGHT_US / 1e6, UTC) == datetime(2023, 11, 15, tzinfo=UTC)

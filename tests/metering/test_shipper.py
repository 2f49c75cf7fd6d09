"""The shipper: every event once, its sums with it, whatever the database does meanwhile."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from forebay.metering.shipper import COLUMNS, Shipper
from forebay.store import Database, EmbeddedPostgres

from tests.support.ledger import BOOT, HOUR_US, NOW_US, Spool, balanced, by_hour, event, until

pytestmark = pytest.mark.asyncio


@pytest.fixture
def spool() -> Spool:
    return Spool()


@pytest_asyncio.fixture
async def shipper(database: Database, spool: Spool) -> AsyncIterator[Shipper]:
    shipper = Shipper(database, spool, interval_s=0.02, batch=100)
    yield shipper
    await shipper.stop()


async def count(database: Database, table: str = "usage_events") -> int:
    return int(await database.pool.fetchval(f"SELECT count(*) FROM {table}"))


async def shipped(database: Database, boot: bytes = BOOT) -> int | None:
    found: int | None = await database.pool.fetchval(
        "SELECT shipped FROM spools WHERE boot = $1", uuid.UUID(bytes=boot)
    )
    return found


REQUIRED = ("event_id", "request_id", "account", "key_id", "admitted_at", "stream", "outcome")


async def test_every_column_arrives(database: Database, spool: Spool, shipper: Shipper) -> None:
    full = event(seq=0)
    bare = event(**{name: None for name in COLUMNS if name not in REQUIRED}, request_id="r-2")
    spool.events = [full, bare]
    assert await shipper.flush(5)
    rows = await database.pool.fetch("SELECT * FROM usage_events ORDER BY request_id")
    assert set(rows[0].keys()) == {*COLUMNS, "cost", "batch"} - {"cost_pico"}
    for row, sent in zip(rows, (full, bare), strict=True):
        for name, value in sent.items():
            got = row["cost" if name == "cost_pico" else name]
            if got is None:
                pass
            elif isinstance(value, bytes):
                got = got.bytes
            elif name.endswith("_at"):
                got = round(got.timestamp() * 1e6)
            elif name == "cost_pico":
                got = got.scaleb(12)
            elif name == "tags":
                got = json.loads(got)
            elif name == "cache_write_tokens":
                value = value or 0
            assert got == value, name
    ((key, sums),) = [(k, v) for k, v in (await by_hour(database.pool)).items() if k[3] == "served"]
    hour = datetime(2023, 11, 14, 22, tzinfo=UTC)
    assert key == (hour, "default", "k1", "served", "gpu-a", 4)
    assert sums == (1, 0, 0, 10, 2, 1, 5, 3, 12_500, Decimal("1.250000000001"))


async def test_the_background_task_ships_by_itself(
    database: Database, spool: Spool, shipper: Shipper
) -> None:
    spool.events = [event() for _ in range(250)]  # two and a half batches
    shipper.start()
    await until(lambda: spool.shipped == 250)
    assert await count(database) == shipper.written == await shipped(database) == 250
    assert (shipper.lag_s, shipper.healthy) == (0.0, True)
    batches = await database.pool.fetch("SELECT batch, count(*) AS n FROM usage_events GROUP BY 1")
    assert sorted(row["n"] for row in batches) == [50, 100, 100]
    assert await balanced(database.pool)


async def test_the_same_event_twice_counts_once(
    database: Database, spool: Spool, shipper: Shipper
) -> None:
    first = event()
    spool.events = [first, event(), first]
    assert await shipper.flush(5)
    spool.events = [first]
    assert await shipper.flush(5)
    assert await count(database) == 2
    assert (shipper.written, shipper.duplicates, await shipped(database)) == (2, 2, 4)
    assert await balanced(database.pool)


async def test_an_event_of_a_month_without_partition_goes_to_the_default_one(
    database: Database, spool: Spool, shipper: Shipper
) -> None:
    spool.events = [event(), event(0), event(4_102_444_800_000_000), event(time.time_ns() // 1000)]
    assert await shipper.flush(5)
    assert await count(database, "usage_events_default") == 3
    assert await count(database) == 4
    assert await balanced(database.pool)


async def test_an_outage_loses_nothing_and_takes_no_more(
    postgres: EmbeddedPostgres, database: Database, spool: Spool, shipper: Shipper
) -> None:
    spool.events = [event() for _ in range(120)]
    shipper.start()
    await until(lambda: spool.shipped == 120)
    await asyncio.to_thread(postgres.stop)
    spool.events = [event() for _ in range(350)]
    await until(lambda: shipper.failures >= 2)
    assert len(spool.events) == 350
    assert shipper.lag_s > 0
    assert not shipper.healthy
    assert shipper.last_error
    assert not await shipper.flush(0.3)
    await asyncio.to_thread(postgres.start)
    shipper.kick()
    assert await shipper.flush(10)
    assert shipper.healthy
    async with await Database.connect(database.url, max_size=1) as fresh:
        assert await count(fresh) == shipper.written == 470
        assert await balanced(fresh.pool)
        assert await shipped(fresh) == 470


@pytest.mark.parametrize("where", ["usage_events", "usage_daily", "spools"])
async def test_a_connection_cut_within_the_transaction(
    database: Database, spool: Spool, shipper: Shipper, where: str
) -> None:
    """Cut where it waits for a lock in its middle: nothing of it stays, and it is repeated."""
    spool.events = [event()]
    assert await shipper.flush(5)
    spool.events = [event() for _ in range(50)]
    async with database.pool.acquire() as blocker:
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute(f"LOCK TABLE {where} IN EXCLUSIVE MODE")
        flushing = asyncio.create_task(shipper.flush(10))
        while not shipper.failures:
            await blocker.execute(
                "SELECT pg_terminate_backend(pid), pg_sleep(0.01) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        assert await blocker.fetchval("SELECT count(*) FROM usage_events") == 1
        await transaction.rollback()
    assert await flushing
    assert (await count(database), await shipped(database)) == (51, 51)
    assert await balanced(database.pool)


async def test_a_commit_whose_answer_is_lost(
    database: Database, spool: Spool, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shipper._write
    lost = iter([True])

    async def and_lose(self: Shipper, *arguments: Any, **options: Any) -> int:
        inserted = await write(self, *arguments, **options)
        if next(lost, False):
            raise ConnectionResetError("the answer to COMMIT never came")
        return inserted

    monkeypatch.setattr(Shipper, "_write", and_lose)
    spool.events = [event() for _ in range(30)]
    assert await shipper.flush(5)
    assert (shipper.written, shipper.duplicates, shipper.failures) == (0, 30, 1)
    assert (await count(database), await shipped(database)) == (30, 30)
    assert await balanced(database.pool)


async def test_a_stop_in_the_middle_loses_nothing(
    database: Database, spool: Spool, shipper: Shipper
) -> None:
    async with database.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE")
        spool.events = [event() for _ in range(10)]
        assert not await shipper.flush(0.2)
        assert len(spool.events) == 10
    assert await shipper.flush(5)
    assert await count(database) == 10


BAD: dict[str, dict[str, Any]] = {
    "negative": {"prompt_tokens": -1},
    "too large": {"completion_tokens": 1 << 40},
    "nul": {"model_asked": "a\0b"},
    "not UTF-8": {"model_asked": b"\xff\xfe"},
    "short id": {"event_id": b"1"},
    "outcome": {"outcome": "odd"},
    "missing": {"request_id": None},
    "no number": {"duration_ms": float("nan")},
    "cost below zero": {"cost_pico": -1},
    "tags no object": {"tags": [1]},
    "tags no JSON": {"tags": "{"},
    "tags with a NUL": {"tags": {"a": "\0"}},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
async def test_a_bad_row_is_set_aside_and_the_rest_written(
    database: Database, spool: Spool, shipper: Shipper, changes: dict[str, Any]
) -> None:
    bad = event(**changes)
    spool.events = [*(event() for _ in range(7)), bad, *(event() for _ in range(6))]
    assert await shipper.flush(10)
    assert await count(database) == shipper.written == 13
    assert (shipper.rejected, shipper.healthy, await shipped(database)) == (1, True, 14)
    row = await database.pool.fetchrow("SELECT event::text AS event, reason FROM usage_rejected")
    assert "default" in row["event"]
    assert row["reason"]
    spool.events = [bad]  # again: still one
    assert await shipper.flush(10)
    assert await count(database, "usage_rejected") == 1
    assert await shipped(database) == 15
    assert await balanced(database.pool)


async def test_many_bad_rows_and_an_outage_between(
    database: Database, spool: Spool, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject = Shipper._reject
    failures = iter([True, False, True])

    async def sometimes(self: Shipper, connection: Any, *rest: Any) -> None:
        if next(failures, False):
            connection.terminate()
            raise ConnectionResetError("away")
        await reject(self, connection, *rest)

    monkeypatch.setattr(Shipper, "_reject", sometimes)
    spool.events = [event(prompt_tokens=-1 if n in (3, 4, 9, 49) else 1) for n in range(50)]
    assert await shipper.flush(10)
    assert (shipper.written, shipper.duplicates, shipper.rejected) == (46, 0, 4)
    assert await shipped(database) == 50
    assert await balanced(database.pool)


async def test_a_source_that_fails_does_not_end_the_shipping(
    database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = spool.batch
    failures = iter([True])

    def batch(limit: int) -> Any:
        if next(failures, False):
            raise RuntimeError("not now")
        return take(limit)

    monkeypatch.setattr(spool, "batch", batch)
    spool.events = [event()]
    shipper = Shipper(database, spool, interval_s=0.01)
    shipper.start()
    try:
        await until(lambda: spool.shipped == 1)
    finally:
        await shipper.stop()


async def test_a_position_that_cannot_be_noted_blames_no_event(
    database: Database, spool: Spool, shipper: Shipper
) -> None:
    spool.events = [event() for _ in range(5)]
    spool.node = "a\0b"
    assert not await shipper.flush(0.3)
    assert shipper.failures
    assert "position of spool" in str(shipper.last_error)
    assert (shipper.rejected, await count(database, "usage_rejected")) == (0, 0)
    assert await count(database) == 0


async def test_a_position_never_falls(database: Database) -> None:
    """A spool that another adopts may be shipped again from further back."""
    for start, events in ((0, 10), (0, 4)):
        spool = Spool()
        spool.shipped = start
        spool.events = [event(number=n + 1) for n in range(events)]
        shipper = Shipper(database, spool)
        assert await shipper.flush(5)
        await shipper.stop()
    assert (await count(database), await shipped(database)) == (10, 10)


async def test_shippers_of_the_same_events_and_sums_never_deadlock(database: Database) -> None:
    shared = [event(NOW_US + n * HOUR_US // 50, key_id=f"k{n % 20}") for n in range(200)]
    spools, shippers = [], []
    for number in range(4):
        spool = Spool(bytes([number]) * 16)
        own = [event(key_id=f"k{(n * 7 + number) % 20}") for n in range(200)]
        mixed = shared + own
        spool.events = (
            mixed[number::3] + mixed[(number + 1) % 3 :: 3] + mixed[(number + 2) % 3 :: 3]
        )
        spools.append(spool)
        shippers.append(Shipper(database, spool, batch=37))
    assert all(await asyncio.gather(*(shipper.flush(20) for shipper in shippers)))
    for shipper in shippers:
        await shipper.stop()
    assert await count(database) == 1000
    assert await balanced(database.pool)
    deadlocks = await database.pool.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert deadlocks == 0


async def test_a_watermark_is_exact(database: Database, spool: Spool, shipper: Shipper) -> None:
    """What the lock lets one see is all up to the sequence's value; what comes later is above."""
    spool.events = [event() for _ in range(1000)]
    shipper.start()
    seen = []
    connection = await asyncpg.connect(database.url)
    try:
        while len(spool.events) or not seen:
            async with connection.transaction():
                await connection.execute("LOCK TABLE usage_events IN SHARE MODE")
                batch = await connection.fetchval("SELECT last_value FROM usage_batches")
                rows = await connection.fetchval("SELECT count(*) FROM usage_events")
            seen.append((batch, rows))
            await asyncio.sleep(0)
        for batch, rows in seen:
            later = await connection.fetchval(
                "SELECT count(*) FROM usage_events WHERE batch <= $1", batch
            )
            assert later == rows
    finally:
        await connection.close()

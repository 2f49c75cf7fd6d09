"""What keeps the ledger: partitions, retention, the recount, and who does it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from forebay.metering.recount import recount, recount_day
from forebay.metering.scheduler import Job, Scheduler, by_hand, last_runs, ledger_jobs
from forebay.metering.shipper import Shipper
from forebay.metering.upkeep import apply_retention, later, make_partitions
from forebay.store import Database, EmbeddedPostgres

from tests.support.ledger import (
    DAY_US,
    HOUR_US,
    NOW_US,
    Event,
    Spool,
    balanced,
    by_day,
    by_hour,
    event,
    until,
)

pytestmark = pytest.mark.asyncio

DAY = date(2023, 11, 14)
NOW = datetime.fromtimestamp(NOW_US / 1e6, UTC)
TOMORROW = NOW + timedelta(days=1)


async def ship(database: Database, *events: Event) -> None:
    spool = Spool()
    spool.events = list(events)
    shipper = Shipper(database, spool)
    assert await shipper.flush(10)
    await shipper.stop()


@pytest_asyncio.fixture
async def connection(database: Database) -> AsyncIterator[Any]:
    async with database.pool.acquire() as connection:
        yield connection


async def months(connection: Any) -> list[str]:
    return [f"{row['month']:%Y-%m}" for row in await connection.fetch("TABLE usage_partitions")]


async def count(connection: Any, table: str = "usage_events") -> int:
    return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def test_partitions_are_made_ahead_and_stray_events_moved(
    database: Database, connection: Any
) -> None:
    before = await months(connection)
    await ship(database, event(), event(NOW_US - 40 * DAY_US), event(NOW_US + 300 * DAY_US))
    assert await count(connection, "usage_events_default") == 3
    made = await make_partitions(connection, NOW)
    assert made == {
        "partitions": ["2023-10", "2023-11", "2023-12", "2024-01", "2024-02"],
    }
    # An event of a month that is far ahead has to wait for it.
    assert await count(connection, "usage_events_default") == 1
    assert await count(connection, "usage_events_2023_11") == 1
    assert await months(connection) == sorted([*made["partitions"], *before])
    assert await make_partitions(connection, NOW) == {"partitions": []}
    await ship(database, event(), event(number=1), event(number=1))
    assert await count(connection, "usage_events_2023_11") == 3
    assert await balanced(connection)


async def test_the_year_turns() -> None:
    assert later(date(2026, 11, 1), 3) == date(2027, 2, 1)
    assert later(date(2026, 12, 1), 0) == date(2026, 12, 1)


async def test_partitions_are_made_while_events_come(database: Database, connection: Any) -> None:
    spool = Spool()
    spool.events = [event(NOW_US + n * HOUR_US) for n in range(2000)]
    shipper = Shipper(database, spool, interval_s=0.001, batch=50)
    shipper.start()
    others = [await asyncpg.connect(database.url) for _ in range(2)]
    while spool.events:
        await asyncio.gather(*(make_partitions(other, NOW) for other in others))
    for other in others:
        await other.close()
    await shipper.stop()
    assert await count(connection) == 2000
    assert await count(connection, "usage_events_default") == 0
    assert await balanced(connection)


async def test_retention_takes_whole_months_and_leaves_their_sums(
    database: Database, connection: Any
) -> None:
    old = NOW_US - 45 * DAY_US  # 2023-09-30
    await ship(database, event(), event(old), event(old, prompt_tokens=-1))
    await make_partitions(connection, NOW)
    sums = await by_day(connection)
    nothing = {"dropped": [], "hourly": 0, "rejected": 0}
    assert await apply_retention(connection, NOW) == nothing
    # The 30th is too old from then on, but to the month's end not all of it is.
    assert await apply_retention(connection, NOW, usage_days=46) == nothing
    kept = {"usage_days": 14, "hourly_days": 3, "rejected_days": 1}
    soon = datetime.now(UTC) + timedelta(days=2)
    done = await apply_retention(connection, NOW, **kept)
    assert done == {"dropped": ["2023-09"], "hourly": 1, "rejected": 0}
    assert await count(connection) == 1
    assert await by_day(connection) == sums
    assert len(await by_hour(connection)) == 1
    assert (await apply_retention(connection, soon, rejected_days=1))["rejected"] == 1
    # What comes too late counts, and is not kept.
    await ship(database, event(old))
    assert (await make_partitions(connection, NOW))["partitions"] == []
    assert (await apply_retention(connection, NOW, **kept))["dropped"] == []
    assert await count(connection) == 1
    assert sum(row[0] for row in (await by_day(connection)).values()) == 3
    # And no recount makes less of it.
    again = await recount(connection, NOW, since=date(2023, 1, 1))
    assert (again["days"], again["differences"]) == (1, 0)
    assert sum(row[0] for row in (await by_day(connection)).values()) == 3


async def test_a_day_whose_events_went_meanwhile_is_left_alone(
    database: Database, connection: Any
) -> None:
    old = NOW_US - 45 * DAY_US
    await ship(database, event(), event(old))
    await make_partitions(connection, NOW)
    sums = await by_day(connection)
    # As when a recount has chosen the day, and then another session's retention takes its events.
    await apply_retention(connection, NOW, usage_days=14)
    assert await recount_day(connection, DAY - timedelta(days=45)) == 0
    assert await by_day(connection) == sums


DAMAGE = {
    "a sum by day": "UPDATE usage_daily SET cost = cost + 0.000000000001",
    "a sum by hour": "UPDATE usage_hourly SET requests = requests - 1",
    "one too few": "DELETE FROM usage_hourly",
    "one too many": "INSERT INTO usage_daily VALUES ('2023-11-14', 'x', 'k', 'm')",
    "both": "UPDATE usage_daily SET errors = 9; UPDATE usage_hourly SET errors = 9",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_recount_mends_a_sum(database: Database, connection: Any, damage: str) -> None:
    await ship(database, event(), event(price_id=None), event(NOW_US + DAY_US))
    good = await by_hour(connection), await by_day(connection)
    assert await recount_day(connection, DAY) == 0
    await connection.execute(damage)
    found = await recount(connection, TOMORROW, since=DAY)
    assert found["differences"] >= 1
    assert "2023-11-14" in found["differing"]
    assert (await by_hour(connection), await by_day(connection)) == good
    assert (await recount(connection, TOMORROW, since=DAY))["differences"] == 0
    alarms = await connection.fetchval("SELECT differences FROM ledger_state")
    assert alarms == found["differences"]


async def test_a_recount_is_incremental(database: Database, connection: Any) -> None:
    await ship(database, event(), event(NOW_US + DAY_US))
    assert (await recount(connection, TOMORROW))["days"] == 1, "today is not over"
    assert (await recount(connection, TOMORROW))["days"] == 0
    await connection.execute("UPDATE usage_daily SET requests = 7")
    # The day that has ended since, though nothing came.
    found = await recount(connection, TOMORROW + timedelta(days=1))
    assert (found["days"], found["differing"]) == (1, ["2023-11-15"])
    # A late event brings its day to notice.
    await ship(database, event(NOW_US - 3 * DAY_US), event())
    found = await recount(connection, TOMORROW + timedelta(days=1))
    assert (found["days"], found["differing"]) == (2, ["2023-11-14"])
    assert await balanced(connection)


async def test_a_recount_while_events_come(database: Database, connection: Any) -> None:
    spool = Spool()
    spool.events = [event(NOW_US + n) for n in range(3000)]
    shipper = Shipper(database, spool, interval_s=0.001, batch=50)
    shipper.start()
    other = await asyncpg.connect(database.url)
    rounds = 0
    while spool.events:
        rounds += 1
        if rounds % 3 == 0:
            await other.execute("UPDATE usage_daily SET requests = requests + 1")
        else:
            found = await recount_day(connection, DAY)
            assert found in ((0,) if rounds % 3 == 2 else (0, 1)), "only what was damaged"
    await other.close()
    await shipper.stop()
    await recount_day(connection, DAY)
    assert await count(connection) == 3000
    assert await balanced(connection)


class Clock:
    """Unix seconds that a test sets."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


class Log:
    """A job that notes its runs and fails when it is told to."""

    def __init__(self) -> None:
        self.runs: list[datetime] = []
        self.failing = False

    async def __call__(self, connection: Any, now: datetime) -> dict[str, Any]:
        self.runs.append(now)
        if self.failing:
            raise RuntimeError("no luck\nat all")
        return {"n": len(self.runs)}


async def test_one_leads_and_another_follows_it(database: Database) -> None:
    clock, log = Clock(), Log()
    jobs = [Job("hourly", 3600, 0, log)]
    first, second = (Scheduler(database, jobs, clock=clock) for _ in range(2))
    try:
        assert await first.step() == ["hourly"]
        assert await second.step() == []
        assert (first.leads, second.leads) == (True, False)
        clock.now += 3600
        assert await second.step() == []
        assert await first.step() == ["hourly"]
        assert await first.step() == [], "once an hour"
        await first.stop()
        clock.now += 60
        while not second.leads:  # the server needs a moment to notice that the first has gone
            assert await second.step() == [], "done in this hour, by the one before"
        clock.now += 3600
        assert await second.step() == ["hourly"]
        assert await first.step() == []
        assert len(log.runs) == 3
    finally:
        await first.stop()
        await second.stop()


async def test_a_leader_that_is_cut_off_leads_no_more(database: Database) -> None:
    clock, log = Clock(), Log()
    first, second = (
        Scheduler(database, [Job("j", 60, 0, log)], clock=clock, interval_s=0.01) for _ in range(2)
    )
    try:
        await first.step()
        await database.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND pid <> pg_backend_pid()"
        )
        while not second.leads:
            await second.step()
        clock.now += 60
        assert await first.step() == []
        assert not first.leads
        first.start()
        second.start()
        clock.now += 60
        await until(lambda: len(log.runs) == 2)
    finally:
        await first.stop()
        await second.stop()
    assert not second.leads


async def test_a_job_that_fails_is_told_of_and_tried_again(database: Database) -> None:
    clock, log, other = Clock(), Log(), Log()
    log.failing = True
    scheduler = Scheduler(
        database, [Job("bad", 3600, 0, log), Job("good", 3600, 0, other)], clock=clock
    )
    try:
        assert await scheduler.step() == ["bad", "good"]
        assert scheduler.state() == "degraded: bad: no luck"
        bad, good = await last_runs(database)
        assert (bad.name, bad.ago, bad.error, good.error) == ("bad", "never", "no luck", None)
        ran = []
        for _ in range(11):
            clock.now += 31
            ran.append("bad" in await scheduler.step())
        # After 1, 2 and 4 minutes.
        assert ran == [False, True, False, False, False, True] + [False] * 5
        log.failing = False
        clock.now += 120
        assert await scheduler.step() == ["bad"]
        assert scheduler.state() == "ok"
        detail = await database.pool.fetchval("SELECT detail->>'n' FROM jobs WHERE name = 'bad'")
        assert detail == "4"
    finally:
        await scheduler.stop()


async def test_without_a_database_jobs_wait(postgres: EmbeddedPostgres, database: Database) -> None:
    clock, log = Clock(), Log()
    scheduler = Scheduler(database, [Job("j", 60, 0, log)], clock=clock)
    try:
        assert await scheduler.step() == ["j"]
        await asyncio.to_thread(postgres.stop)
        for _ in range(2):
            assert await scheduler.step() == []
        assert not scheduler.leads
        await asyncio.to_thread(postgres.start)
        clock.now += 60
        assert await scheduler.step() == ["j"]
    finally:
        await scheduler.stop()


async def test_the_ledgers_jobs(database: Database, connection: Any) -> None:
    await ship(database, event(NOW_US - 60 * DAY_US), event(NOW_US - DAY_US))
    clock = Clock()
    scheduler = Scheduler(database, ledger_jobs(usage_days=30), clock=clock)
    try:
        assert await scheduler.step() == [
            "expiry",
            "prompt_logs",
            "partitions",
            "retention",
            "recount",
        ]
        assert await months(connection) != []
        assert await count(connection) == 1
        clock.now += 3600
        assert await scheduler.step() == ["expiry", "prompt_logs", "partitions", "retention"]
        clock.now += 2 * 3600  # it is 01:13 now
        assert await scheduler.step() == [
            "expiry",
            "prompt_logs",
            "partitions",
            "retention",
            "recount",
        ]
    finally:
        await scheduler.stop()
    done = await by_hand(connection, TOMORROW + timedelta(days=1), usage_days=30)
    assert done["recount"]["days"] == 1
    assert done["retention"]["dropped"] == []

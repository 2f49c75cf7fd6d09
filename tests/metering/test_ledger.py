"""The books: sums are those of the events, whatever came in which order and died when."""

import asyncio
from collections import Counter
from typing import Any

import asyncpg
import pytest
from forebay.metering.shipper import Shipper
from forebay.metering.upkeep import make_partitions
from forebay.store import Database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.databases import run_apart
from tests.support.ledger import DAY_US, HOUR_US, NOW_US, Event, Spool, balanced, event

EMPTY = "TRUNCATE usage_hourly, usage_daily, usage_events, usage_rejected, spools"

times = st.one_of(
    # Around the ends of an hour, a day and a month, long ago, and in a month with a partition.
    st.sampled_from([1_701_388_800_000_000 + n * HOUR_US // 2 for n in range(-3, 4)]),
    st.sampled_from([0, NOW_US, NOW_US + DAY_US, 1_795_000_000_000_000]),
)
events = st.builds(
    event,
    times,
    st.integers(1, 6),
    account=st.sampled_from(["a", "b", "ä"]),
    key_id=st.sampled_from(["k1", "k2"]),
    model_served=st.sampled_from(["m", "n", None]),
    upstream=st.sampled_from(["x", None]),
    price_id=st.sampled_from([None, 1, 2]),
    outcome=st.sampled_from(["ok", "error", "gateway_died"]),
    source=st.sampled_from(["reported", "estimated"]),
    prompt_tokens=st.sampled_from([None, 0, 7, (1 << 40) - 1, -1]),
    cached_tokens=st.sampled_from([None, 3]),
    cost_pico=st.one_of(st.none(), st.integers(0, (1 << 63) - 1)),
    duration_ms=st.one_of(st.none(), st.floats(0, 1e9)),
)
spools = st.lists(st.lists(events, max_size=25), min_size=1, max_size=3)
# What happens at each step of a shipper: nothing, or its connection dies before, within or after.
fates = st.lists(st.sampled_from(["before", "within", "after", None]), max_size=12)


class Dying(Shipper):
    """A shipper that suffers these fates, one at each transaction, and then works."""

    fates: list[str | None]

    async def _write(self, connection: Any, *arguments: Any, **options: Any) -> int:
        fate = self.fates.pop() if self.fates else None
        if fate == "before":
            raise ConnectionResetError
        if fate == "within":
            async with connection.transaction():
                await super()._write(connection, *arguments, **options)
                raise ConnectionResetError
        inserted = await super()._write(connection, *arguments, **options)
        if fate == "after":
            raise ConnectionResetError
        return inserted


async def ship(database: Database, spool: Spool, fates: list[str | None]) -> Shipper:
    shipper = Dying(database, spool, batch=10)
    shipper.fates = fates
    try:
        assert await shipper.flush(20)
    finally:
        await shipper.stop()
    return shipper


def good(item: Event) -> bool:
    return item["prompt_tokens"] != -1


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(spools, st.lists(fates, min_size=3, max_size=3))
def test_sums_are_those_of_the_events(
    database_url: str, spools: list[list[Event]], fates: list[list[str | None]]
) -> None:
    async def run() -> None:
        async with await Database.connect(database_url) as database:
            await database.pool.execute(EMPTY)
            sources = []
            for number, items in enumerate(spools):
                source = Spool(bytes([number]) * 16)
                source.events = list(items)
                sources.append(source)
            await asyncio.gather(
                *(ship(database, *pair) for pair in zip(sources, fates, strict=False))
            )
            assert await balanced(database.pool)
            kept = {
                row["event_id"].bytes
                for row in await database.pool.fetch("SELECT event_id FROM usage_events")
            }
            sent = [item for items in spools for item in items]
            assert kept == {item["event_id"] for item in sent if good(item)}
            rejected = await database.pool.fetchval("SELECT count(*) FROM usage_rejected")
            assert rejected == len({str(item) for item in sent if not good(item)})
            shipped = await database.pool.fetch("SELECT boot, shipped FROM spools")
            assert {row["boot"].bytes: row["shipped"] for row in shipped} == {
                source.boot: len(items)
                for source, items in zip(sources, spools, strict=True)
                if items
            }
            months = await database.pool.fetch("SELECT * FROM usage_monthly")
            days = await database.pool.fetch("SELECT * FROM usage_daily")
            by_month: Counter[Any] = Counter()
            for row in days:
                by_month[row["day"].replace(day=1), row["account"]] += row["requests"]
            for row in months:
                by_month[row["month"], row["account"]] -= row["requests"]
            assert not any(by_month.values())

    run_apart(run)


@pytest.mark.asyncio
async def test_a_days_events_are_looked_for_in_their_partition_alone(database: Database) -> None:
    spool = Spool()
    spool.events = [event(NOW_US + n * 40 * DAY_US) for n in range(4)]
    await ship(database, spool, [])
    async with database.pool.acquire() as connection:
        from datetime import UTC, datetime

        now = datetime.fromtimestamp(NOW_US / 1e6, UTC)
        await make_partitions(connection, now)

        async def plan(query: str, *arguments: Any) -> str:
            rows = await connection.fetch(f"EXPLAIN {query}", *arguments)
            return "\n".join(row[0] for row in rows)

        day = (
            "SELECT count(*) FROM usage_events WHERE event_id >= event_floor('2023-11-14Z')"
            " AND event_id < event_floor('2023-11-15Z')"
        )
        shown = await plan(day)
        assert "usage_events_2023_11" in shown
        assert "usage_events_20" not in shown.replace("usage_events_2023_11", "")
        assert "usage_events_default" not in shown
        # One account's month: its index alone.
        await connection.execute("SET enable_seqscan = off")
        mine = await plan(day.replace("WHERE", "WHERE account = 'a' AND"))
        assert mine.count("Index") >= 1
        assert "usage_events_default" not in mine
        # With parameters, as programs ask, once the plan is generic.
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(
            "PREPARE day AS SELECT count(*) FROM usage_events"
            " WHERE event_id >= event_floor($1) AND event_id < event_floor($2)"
        )
        generic = await plan("EXECUTE day('2023-11-14Z', '2023-11-15Z')")
        assert "Subplans Removed" in generic


@pytest.mark.asyncio
async def test_times_and_ids_agree(database: Database) -> None:
    for at in (
        "1970-01-01Z",
        "2023-11-14 22:13:20.123Z",
        "2026-12-31 23:59:59.999Z",
        "2100-01-01Z",
    ):
        back = await database.pool.fetchval(
            "SELECT event_time(event_floor($1::text::timestamptz)) = $1::text::timestamptz", at
        )
        assert back, at
    floor = await database.pool.fetchval(
        "SELECT event_floor('2023-11-14 22:13:20.123456Z'::timestamptz)"
    )
    assert floor.version == 7
    assert floor.bytes <= event()["event_id"]
    assert floor.int >> 80 == NOW_US // 1000


@pytest.mark.asyncio
async def test_what_is_no_event_is_refused(database: Database) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await database.pool.execute(
            "INSERT INTO usage_events (event_id, request_id, account, key_id, admitted_at, stream,"
            " outcome) VALUES (gen_random_uuid(), 'r', 'a', 'k', now(), true, 'odd')"
        )

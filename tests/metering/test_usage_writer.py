"""Usage events: each written once, whatever the database does meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from forebay.metering import COLUMNS, GROUPS, UsageWriter, usage
from forebay.store import Database, EmbeddedPostgres, KeyStore

from tests.support.ledger import NOW_US, event_id


def event(**changes: Any) -> tuple[Any, ...]:
    """One event in the order of COLUMNS."""
    fields: dict[str, Any] = {
        "event_id": event_id(max(0, changes.get("admitted_at", NOW_US))),
        "request_id": "r-1",
        "account": "default",
        "key_id": "k1",
        "admitted_at": NOW_US,
        "first_byte_at": NOW_US + 1,
        "ended_at": NOW_US + 2,
        "model_asked": "asked",
        "model_served": "served",
        "upstream": "gpu-a",
        "front": "http",
        "endpoint": "/v1/chat/completions",
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "finish_reason": "stop",
        "error_kind": None,
        "attempts": 1,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "completion_tokens": 5,
        "reasoning_tokens": 0,
        "source": "reported",
        "duration_ms": 12.5,
        "ttft_ms": 3.25,
        "tokens_per_second": 40.0,
        "cost": 1_250_000_000_001,
        "price_id": 7,
    }
    assert tuple(fields) == COLUMNS
    assert changes.keys() <= fields.keys()
    return tuple({**fields, **changes}.values())


class Source:
    """Stands for the core: a list that gives its events away once."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.asked = 0

    def drain(self, most: int) -> list[tuple[Any, ...]]:
        self.asked += 1
        taken, self.events = self.events[:most], self.events[most:]
        return taken


@pytest.fixture
def source() -> Source:
    return Source()


@pytest_asyncio.fixture
async def writer(database: Database, source: Source) -> AsyncIterator[UsageWriter]:
    writer = UsageWriter(database, source.drain, interval_s=0.02, batch=100)
    yield writer
    await writer.stop()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


async def count(database: Database, table: str = "usage_events") -> int:
    return int(await database.pool.fetchval(f"SELECT count(*) FROM {table}"))


@pytest.mark.asyncio
async def test_every_column_arrives(database: Database, source: Source, writer: UsageWriter):
    full = event()
    bare = event(
        **{name: None for name in COLUMNS if name not in REQUIRED}, request_id="r-2", stream=False
    )
    source.events = [full, bare]
    assert await writer.flush(5)
    rows = await database.pool.fetch("SELECT * FROM usage_events ORDER BY request_id")
    for row, sent in zip(rows, (full, bare), strict=True):
        for name, value in zip(COLUMNS, sent, strict=True):
            got = row[name]
            if name == "event_id":
                got = got.bytes
            elif name.endswith("_at") and got is not None:
                got = round(got.timestamp() * 1e6)
            elif name == "cost" and got is not None:
                got = got.scaleb(12)
            assert got == value, name


REQUIRED = ("event_id", "request_id", "account", "key_id", "admitted_at", "stream", "outcome")


@pytest.mark.asyncio
async def test_the_background_task_writes_by_itself(
    database: Database, source: Source, writer: UsageWriter
) -> None:
    source.events = [event() for _ in range(250)]  # two and a half batches
    writer.start()
    await until(lambda: writer.written >= 250)
    assert await count(database) == writer.written == 250
    assert (writer.backlog, writer.lag_s, writer.healthy) == (0, 0.0, True)


@pytest.mark.asyncio
async def test_the_same_event_twice_is_one_row(
    database: Database, source: Source, writer: UsageWriter
) -> None:
    first = event()
    source.events = [first, event(), first]
    assert await writer.flush(5)
    source.events = [first]
    assert await writer.flush(5)
    assert await count(database) == 2
    assert (writer.written, writer.duplicates) == (2, 2)


@pytest.mark.asyncio
async def test_an_outage_loses_nothing_and_stops_the_draining(
    postgres: EmbeddedPostgres, database: Database, source: Source, writer: UsageWriter
) -> None:
    source.events = [event() for _ in range(120)]
    writer.start()
    await until(lambda: writer.written >= 120)
    await asyncio.to_thread(postgres.stop)
    source.events = [event() for _ in range(350)]
    await until(lambda: writer.failures >= 2)
    assert writer.backlog == 100, "one batch is held"
    assert len(source.events) == 250, "and no more is taken"
    assert writer.lag_s > 0
    assert not writer.healthy
    assert writer.last_error
    assert not await writer.flush(0.3)
    assert writer.backlog == 100
    await asyncio.to_thread(postgres.start)
    writer.kick()
    assert await writer.flush(10)
    assert writer.healthy
    async with await Database.connect(database.url, max_size=1) as fresh:
        assert await count(fresh) == 470
    assert writer.written == 470


@pytest.mark.asyncio
async def test_a_connection_that_dies_between_batches(
    database: Database, source: Source, writer: UsageWriter
) -> None:
    source.events = [event()]
    assert await writer.flush(5)
    await database.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    source.events = [event()]
    assert await writer.flush(5)
    assert await count(database) == 2
    assert writer.failures <= 1


@pytest.mark.asyncio
async def test_a_stop_in_the_middle_keeps_the_batch(
    database: Database, source: Source, writer: UsageWriter
) -> None:
    async with database.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE")
        source.events = [event() for _ in range(10)]
        assert not await writer.flush(0.2)
        assert writer.backlog == 10
    assert await writer.flush(5)
    assert await count(database) == 10


BAD = {
    "negative": {"prompt_tokens": -1},
    "too large": {"completion_tokens": 1 << 40},
    "beyond int64": {"completion_tokens": 1 << 70},
    "wrong type": {"status": "ok"},
    "nul": {"model_asked": "a\0b"},
    "surrogate": {"model_asked": "\ud800"},
    "short id": {"event_id": b"1"},
    "outcome": {"outcome": "odd"},
    "missing": {"request_id": None},
    "time out of range": {"admitted_at": -(1 << 63)},
    "not a number": {"prompt_tokens": float("nan")},
    "cost below zero": {"cost": -1},
    "cost too large": {"cost": 1 << 63},
}


@pytest.mark.asyncio
@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
async def test_a_bad_row_is_set_aside_and_the_rest_written(
    database: Database, source: Source, writer: UsageWriter, changes: dict[str, Any]
) -> None:
    bad = event(**changes)
    source.events = [event() for _ in range(7)] + [bad] + [event() for _ in range(6)]
    assert await writer.flush(10)
    assert await count(database) == writer.written == 14 - 1
    assert writer.rejected == 1
    assert writer.healthy
    row = await database.pool.fetchrow("SELECT event->>'account' AS a, reason FROM usage_rejected")
    assert row["a"] == "default"
    assert row["reason"]
    source.events = [bad]  # again: still one
    assert await writer.flush(10)
    assert await count(database, "usage_rejected") == 1


@pytest.mark.asyncio
async def test_a_tuple_that_is_too_short_is_set_aside(
    database: Database, source: Source, writer: UsageWriter
) -> None:
    source.events = [event(), event()[:5], event()]
    assert await writer.flush(10)
    assert (writer.written, writer.rejected) == (2, 1)


@pytest.mark.asyncio
async def test_a_source_that_fails_does_not_end_the_writing(
    database: Database, source: Source
) -> None:
    failures = iter([True])

    def drain(most: int) -> list[tuple[Any, ...]]:
        if next(failures, False):
            raise RuntimeError("not now")
        return source.drain(most)

    writer = UsageWriter(database, drain, interval_s=0.01)
    source.events = [event()]
    writer.start()
    try:
        await until(lambda: writer.written >= 1)
    finally:
        await writer.stop()


@pytest.mark.asyncio
async def test_the_report(database: Database, source: Source, writer: UsageWriter) -> None:
    record, _ = await KeyStore(database).create(name="shop", account="acme")
    now_us = int(time.time() * 1e6)
    mine = {"key_id": record.id, "account": "acme", "admitted_at": now_us}
    source.events = [
        event(**mine),
        event(**mine, outcome="client_closed", ttft_ms=None, model_served=None),
        event(admitted_at=now_us, prompt_tokens=1, completion_tokens=None, reasoning_tokens=3),
        event(admitted_at=now_us - 8 * 86_400_000_000),
    ]
    assert await writer.flush(5)
    week_s = 7 * 86_400
    first, second = await usage(database, by="key", since_s=week_s)
    assert (first.group, first.label, first.requests, first.failed) == (record.id, "shop", 2, 1)
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (20, 4, 10)
    assert first.ttft_ms_p50 == 3.25
    assert (second.group, second.label, second.completion_tokens) == ("k1", "k1", 0)
    groups = {by: [r.group for r in await usage(database, by=by, since_s=week_s)] for by in GROUPS}
    assert groups["model"] == ["served", "asked"]
    assert groups["account"] == ["acme", "default"]
    assert groups["upstream"] == ["gpu-a"]
    assert len(groups["day"]) == len(groups["month"]) == 1
    assert len(await usage(database, by="day", since_s=30 * 86_400)) == len(groups["day"]) + 1

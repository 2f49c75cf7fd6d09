"""Events, spools and the books, for tests of metering."""

import asyncio
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from typing import Any

import asyncpg

from tests.support.copy import encode

NOW_US = 1_700_000_000_123_456  # 2023-11-14 22:13:20 UTC
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
LAST_MS = 253_402_300_799_999
"""The last millisecond of 9999."""
BOOT = uuid.UUID(int=7).bytes

Event = dict[str, Any]
Books = dict[tuple[Any, ...], tuple[Any, ...]]

_numbers = count(1_000_000)


def event_id(us: int, number: int | None = None) -> bytes:
    """A UUIDv7 of that time; the same for the same number, else a new one."""
    tail = next(_numbers) if number is None else number
    return uuid.UUID(int=(us // 1000 << 80) | 7 << 76 | 2 << 62 | tail).bytes


def event(us: int = NOW_US, number: int | None = None, **changes: Any) -> Event:
    """One event, admitted at `us`, as a spool has it."""
    fields: Event = {
        "event_id": event_id(us, number),
        "node": "node-1",
        "boot": BOOT,
        "seq": 0,
        "request_id": "r-1",
        "account": "default",
        "key_id": "k1",
        "admitted_at": us,
        "first_byte_at": us + 1,
        "ended_at": us + 2,
        "model_asked": "asked",
        "model_served": "served",
        "upstream": "gpu-a",
        "front": "http",
        "endpoint": "chat",
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "finish_reason": "stop",
        "error_kind": None,
        "attempts": 1,
        "prompt_tokens": 10,
        "cached_tokens": 2,
        "cache_write_tokens": 1,
        "completion_tokens": 5,
        "reasoning_tokens": 3,
        "source": "reported",
        "duration_ms": 12.5,
        "ttft_ms": 3.25,
        "tokens_per_second": 40.0,
        "price_id": 4,
        "cost_pico": 1_250_000_000_001,
        "tags": {"team": "blue"},
        "attempt_log": None,
    }
    assert changes.keys() <= fields.keys()
    return {**fields, **changes}


class SpoolBatch:
    """Some events of a spool."""

    def __init__(self, spool: "Spool", events: list[Event]) -> None:
        self.boot = spool.boot
        self.node = spool.node
        self.position = spool.shipped + len(events)
        self.events = events

    def __len__(self) -> int:
        return len(self.events)

    def copy(self, start: int, stop: int) -> bytes:
        return encode(self.events[start:stop])

    def json(self, index: int) -> str:
        row = self.events[index]
        return json.dumps({k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()})


class Spool:
    """Stands for the core: events wait until they are done."""

    def __init__(self, boot: bytes = BOOT, node: str = "node-1") -> None:
        self.boot = boot
        self.node = node
        self.events: list[Event] = []
        self.shipped = 0
        self.asked = 0
        self.largest = 0

    def batch(self, limit: int) -> SpoolBatch | None:
        self.asked += 1
        self.largest = max(self.largest, limit)
        return SpoolBatch(self, self.events[:limit]) if self.events else None

    def done(self, batch: Any) -> None:
        assert batch.position == self.shipped + len(batch)
        self.shipped = batch.position
        del self.events[: len(batch)]


Connection = Any


async def by_hour(connection: Connection) -> Books:
    """What `usage_hourly` says."""
    return _books(await connection.fetch("SELECT * FROM usage_hourly"), "hour")


async def by_day(connection: Connection) -> Books:
    """What `usage_daily` says."""
    return _books(await connection.fetch("SELECT * FROM usage_daily"), "day")


def _books(rows: list[asyncpg.Record], time: str) -> Books:
    keys = (time, "account", "key_id", "model", "upstream", "price_id")
    return {
        tuple(row[key] for key in keys): tuple(v for k, v in row.items() if k not in keys)
        for row in rows
    }


async def counted(connection: Connection, *, daily: bool) -> Books:
    """The same, from the events, counted here."""
    sums: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0] * 9 + [Decimal(0)])
    for row in await connection.fetch("SELECT * FROM usage_events"):
        at = datetime.fromtimestamp(min(row["event_id"].int >> 80, LAST_MS) / 1000, UTC)
        hour = at.replace(minute=0, second=0, microsecond=0)
        model = row["model_served"] if row["model_served"] is not None else row["model_asked"]
        who = (row["account"], row["key_id"], model or "", row["upstream"] or "")
        entry = sums[(hour.date() if daily else hour, *who, row["price_id"] or 0)]
        values = [
            1,
            row["outcome"] != "ok",
            row["source"] == "estimated",
            row["prompt_tokens"] or 0,
            row["cached_tokens"] or 0,
            row["cache_write_tokens"],
            row["completion_tokens"] or 0,
            row["reasoning_tokens"] or 0,
            round((row["duration_ms"] or 0) * 1000),
            row["cost"] or Decimal(0),
        ]
        for index, value in enumerate(values):
            entry[index] += value
    return {key: tuple(values) for key, values in sums.items()}


async def balanced(connection: Connection) -> bool:
    """Whether both sums are those of the events."""
    return (
        await by_hour(connection) == await counted(connection, daily=False)
        and await by_day(connection) == await counted(connection, daily=True)
    )  # fmt: skip


async def until(condition: Callable[[], bool]) -> None:
    """Wait, for 10 s at most, until it is so."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)

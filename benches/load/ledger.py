"""How fast are questions to a ledger of millions? How fast does it grow? ``--help``.

Fills a database with synthetic events of two months and times the usual queries; then ships events
from a spool that is ready, beside the same rows by a bare COPY and by one INSERT a row.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from forebay.metering import report
from forebay.metering.merge import KEYS, SUMS, daily, hourly
from forebay.metering.recount import recount_day
from forebay.metering.shipper import COLUMNS, Shipper
from forebay.metering.upkeep import make_partitions
from forebay.store import Database, EmbeddedPostgres
from forebay.store.database import Connection
from forebay.store.spend import SPENT

ACCOUNTS, KEYS_EACH, MODELS, DAYS = 200, 3, 5, 60
ROUNDS = 7

_FILL = """
INSERT INTO usage_events (event_id, node, boot, seq, batch, request_id, account, key_id,
    admitted_at, first_byte_at, ended_at, model_asked, model_served, upstream, front, endpoint,
    stream, outcome, status, finish_reason, attempts, prompt_tokens, cached_tokens,
    cache_write_tokens, completion_tokens, reasoning_tokens, source, duration_ms, ttft_ms,
    tokens_per_second, price_id, cost)
SELECT (lpad(to_hex(ms), 12, '0') || '7' || lpad(to_hex(n % 4096), 3, '0')
        || '8' || lpad(to_hex(n), 15, '0'))::uuid,
    'node-' || n % 4, md5('boot' || n % 4)::uuid, n, 0, 'req-' || to_hex(n * 7919),
    'account-' || account, 'key-' || account || '-' || n % {keys}, at,
    at + interval '80 ms', at + interval '1 s', model, model, 'gpu-' || right(model, 1), 'http',
    'chat', n % 3 <> 0, CASE WHEN n % 50 = 0 THEN 'error' ELSE 'ok' END, 200, 'stop', 1,
    100 + n % 900, n % 100, 0, 50 + n % 400, 0,
    CASE WHEN n % 97 = 0 THEN 'estimated' ELSE 'reported' END,
    500 + n % 1000, 40 + n % 200, 60, 1 + account % 10, (n % 5000) * 0.000000000001 + 0.0001
FROM (
    SELECT n, ms, 'epoch'::timestamptz + ms * interval '1 ms' AS at,
        -- A few accounts have most of it.
        (({accounts} * power(h % 1000 / 1000.0, 2))::int) % {accounts} AS account,
        'model-' || (h / 1000 % 2 + n % {keys}) % {models} AS model
    FROM (
        SELECT n, $1::bigint + n * 86400000 / $2 AS ms, abs(hashint8(n + $1::bigint)) AS h
        FROM generate_series(0, $2::bigint - 1) n
    ) t
) e
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time questions to a large ledger, and shipping.")
    parser.add_argument("--events", type=int, default=10_000_000, help="synthetic events in all")
    parser.add_argument("--ship", type=int, default=400_000, help="events to ship; 0: none")
    parser.add_argument("--batch", type=int, default=5_000, help="events in a shipment")
    parser.add_argument("--database-url", help="a database that may be filled; default: embedded")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


async def fill(database: Database, events: int, now: datetime) -> float:
    """Insert events of the days before `now`, with their sums; seconds it took."""
    start = time.perf_counter()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    days = [midnight - timedelta(days=n) for n in range(DAYS - 1, -1, -1)]
    async with database.pool.acquire() as connection:
        for month in sorted({day.date().replace(day=1) for day in days}):
            await connection.execute("SELECT usage_partition($1)", month)
        await make_partitions(connection, now)
        # Of rows that are there an index is made sooner.
        indexes = [
            row["indexdef"]
            for row in await connection.fetch(
                "SELECT indexdef FROM pg_indexes WHERE tablename = 'usage_events'"
                " AND indexname <> 'usage_events_pkey'"
            )
        ]
        await connection.execute("DROP INDEX usage_events_account, usage_events_batch")
    left = list(enumerate(days, 1))

    async def some() -> None:
        async with database.pool.acquire() as connection:
            await connection.execute("SET synchronous_commit = off; SET jit = off")
            while left:
                number, day = left.pop(0)
                share = events * number // DAYS - events * (number - 1) // DAYS
                await fill_day(connection, day, max(share, 1))
                print(f"\rday {number} of {DAYS} ", end="", file=sys.stderr, flush=True)

    await asyncio.gather(some(), some())
    print(file=sys.stderr)
    async with database.pool.acquire() as connection:
        for index in indexes:
            await connection.execute(index.replace(" ONLY ", " "), timeout=3600)
        for table in ("usage_events", "usage_hourly", "usage_daily"):
            await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=3600)
    return time.perf_counter() - start


async def fill_day(connection: Connection, day: datetime, events: int) -> None:
    """Insert a day's events and their sums."""
    statement = _FILL.format(accounts=ACCOUNTS, keys=KEYS_EACH, models=MODELS)
    columns = ", ".join((*KEYS, *SUMS))
    span = (day, day + timedelta(days=1))
    await connection.execute(statement, int(day.timestamp() * 1000), events, timeout=3600)
    of_day = (
        "(SELECT * FROM usage_events"
        " WHERE event_id >= event_floor($1) AND event_id < event_floor($2)) e"
    )
    await connection.execute(
        f"INSERT INTO usage_hourly (hour, {columns}) {hourly(of_day)}", *span, timeout=3600
    )
    hours = "(SELECT * FROM usage_hourly WHERE hour >= $1 AND hour < $2) h"
    await connection.execute(
        f"INSERT INTO usage_daily (day, {columns}) {daily(hours)}", *span, timeout=3600
    )


async def ask(database: Database, now: datetime) -> dict[str, dict[str, float]]:
    """Each question's time in milliseconds: first, and the median of those after it."""
    month = now.date().replace(day=1)
    begin = datetime(month.year, month.month, 1, tzinfo=UTC)
    since_s = (now - begin).total_seconds()
    last = begin - timedelta(days=1)
    before = datetime(last.year, last.month, 1, tzinfo=UTC)
    yesterday = now.date() - timedelta(days=1)
    invoice = (
        "SELECT model, price_id, sum(requests), sum(prompt_tokens), sum(cached_tokens),"
        " sum(completion_tokens), sum(duration_us), sum(cost) FROM usage_hourly"
        " WHERE account = $1 AND hour >= $2 AND hour < $3 GROUP BY 1, 2"
    )
    from_events = (
        "SELECT coalesce(model_served, model_asked, ''), price_id, count(*), sum(prompt_tokens),"
        " sum(cached_tokens), sum(completion_tokens), sum(cost) FROM usage_events"
        " WHERE account = $1 AND event_id >= event_floor($2) AND event_id < event_floor($3)"
        " GROUP BY 1, 2"
    )
    usage = report.usage

    async def recounted() -> None:
        async with database.pool.acquire() as connection:
            if await recount_day(connection, yesterday):
                raise SystemExit("the sums of the filled ledger do not agree with its events")

    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "an account's month by model": lambda: usage(
            database, by="model", since_s=since_s, account="account-7", now=now
        ),
        "all of the month by account": lambda: usage(
            database, by="account", since_s=since_s, now=now
        ),
        "60 days by day": lambda: usage(database, by="day", since_s=DAYS * 86_400, now=now),
        "60 days by key": lambda: usage(database, by="key", since_s=DAYS * 86_400, now=now),
        "an invoice's sums, small account": lambda: database.pool.fetch(
            invoice, "account-150", before, begin
        ),
        "an invoice's sums, largest account": lambda: database.pool.fetch(
            invoice, "account-0", before, begin
        ),
        "the same from events, small account": lambda: database.pool.fetch(
            from_events, "account-150", before, begin
        ),
        "what budgets read": lambda: database.pool.fetch(SPENT),
        "recount of a day": recounted,
    }
    found = {}
    for name, question in questions.items():
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            await question()
            times.append((time.perf_counter() - start) * 1e3)
        found[name] = {"first_ms": times[0], "then_ms": statistics.median(times[1:])}
    return found


_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_PACKED = {"integer": ">i", "bigint": ">q", "double precision": ">d"}


def _field(kind: str, value: Any) -> bytes:
    if value is None:
        return struct.pack(">i", -1)
    if isinstance(value, bytes):
        data = value
    elif kind in _PACKED:
        data = struct.pack(_PACKED[kind], value)
    elif kind == "timestamptz":
        data = struct.pack(">q", value - 946_684_800_000_000)
    elif kind == "boolean":
        data = bytes([value])
    else:
        data = str(value).encode()
    return struct.pack(">i", len(data)) + data


def _row(account: int, us: int) -> dict[str, Any]:
    return {
        **dict.fromkeys(COLUMNS),
        "event_id": bytes(16),
        "node": "node-1",
        "boot": bytes(16),
        "seq": 1,
        "request_id": f"0198f000-0000-7000-8000-{account:012x}",
        "account": f"account-{account}",
        "key_id": f"key-{account}-{account % KEYS_EACH}",
        "admitted_at": us,
        "first_byte_at": us + 80_000,
        "ended_at": us + 1_000_000,
        "model_asked": f"model-{account % MODELS}",
        "model_served": f"model-{account % MODELS}",
        "upstream": f"gpu-{account % 3}",
        "front": "http",
        "endpoint": "chat",
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "finish_reason": "stop",
        "attempts": 1,
        "prompt_tokens": 512,
        "cached_tokens": 128,
        "cache_write_tokens": 0,
        "completion_tokens": 200,
        "reasoning_tokens": 0,
        "source": "reported",
        "duration_ms": 1000.0,
        "ttft_ms": 80.0,
        "tokens_per_second": 217.4,
        "price_id": 1 + account % 10,
        "cost_pico": 123_456_789,
    }


class Spool:
    """Events that are encoded already, as those of the core's spool are."""

    boot = uuid.uuid4().bytes
    node = "bench"

    def __init__(self, events: int, us: int) -> None:
        # The id is the first field: after the count of columns and its own length.
        made = [
            struct.pack(">h", len(COLUMNS))
            + b"".join(_field(kind, row[name]) for name, kind in COLUMNS.items())
            for row in (_row(account, us) for account in range(ACCOUNTS))
        ]
        pick = random.Random(1)
        ms = us // 1000
        self.rows = []
        for number in range(events):
            row = made[min(pick.randrange(ACCOUNTS), pick.randrange(ACCOUNTS))]
            identity = (ms + number // 100) << 80 | 7 << 76 | 2 << 62 | number
            self.rows.append(row[:6] + identity.to_bytes(16) + row[22:])
        self.shipped = 0

    def batch(self, limit: int) -> Batch | None:
        rows = self.rows[self.shipped : self.shipped + limit]
        return Batch(self, rows) if rows else None

    def done(self, batch: Any) -> None:
        self.shipped = batch.position


class Batch:
    """A part of the spool."""

    def __init__(self, spool: Spool, rows: list[bytes]) -> None:
        self.boot, self.node = spool.boot, spool.node
        self.position = spool.shipped + len(rows)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def copy(self, start: int, stop: int) -> bytes:
        return b"".join((_HEADER, *self.rows[start:stop], _TRAILER))

    def json(self, index: int) -> str:
        return json.dumps({"row": self.rows[index].hex()})


async def ship(database: Database, events: int, batch: int, now: datetime) -> dict[str, float]:
    """Events a second: by the shipper, by a bare COPY, by one INSERT a row."""
    spool = Spool(events, int(now.timestamp() * 1e6))
    found = {}
    shipper = Shipper(database, spool, batch=batch)
    cpu, start = time.process_time(), time.perf_counter()
    if not await shipper.flush(3600) or shipper.written != events:
        raise SystemExit(f"shipping failed: {shipper.last_error}")
    found["shipper"] = events / (time.perf_counter() - start)
    found["shipper, client CPU us an event"] = (time.process_time() - cpu) * 1e6 / events
    await shipper.stop()

    async with database.pool.acquire() as connection:
        plain = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        await connection.execute(f"CREATE TABLE bench_plain ({plain})")
        spool.shipped = 0
        start = time.perf_counter()
        while (part := spool.batch(batch)) is not None:
            await connection.copy_to_table(
                "bench_plain", source=_once(part.copy(0, len(part))), format="binary"
            )
            spool.done(part)
        found["bare COPY"] = events / (time.perf_counter() - start)

        columns = [
            name for name in COLUMNS if name not in ("event_id", "boot", "tags", "cost_pico")
        ]
        insert = await connection.prepare(
            f"INSERT INTO usage_events (event_id, {', '.join(columns)}, cost)"
            f" VALUES ($1, {', '.join(f'${n}' for n in range(2, len(columns) + 2))}, 0.000123)"
            " ON CONFLICT DO NOTHING"
        )
        row = _row(3, 0)
        for name in ("admitted_at", "first_byte_at", "ended_at"):
            row[name] = now
        values = [row[name] for name in columns]
        ids = itertools.count(int(now.timestamp() * 1000) << 80 | 7 << 76 | 3 << 62)
        singles = max(min(events // 100, 5_000), 100)
        start = time.perf_counter()
        for identity in itertools.islice(ids, singles):
            await insert.fetch(uuid.UUID(int=identity), *values)
        found["one INSERT a row, without sums"] = singles / (time.perf_counter() - start)
        await connection.execute("DROP TABLE bench_plain")
    return found


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def bench(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """All of it."""
    now = datetime.now(UTC)
    async with await Database.connect(url, max_size=3) as database:
        await database.migrate()
        server = await database.pool.fetchval("SHOW server_version")
        found: dict[str, Any] = {"postgresql": str(server).split()[0], "events": options.events}
        if options.ship:
            found["events_per_second"] = await ship(database, options.ship, options.batch, now)
        if options.events:
            found["fill_s"] = await fill(database, options.events, now - timedelta(days=1))
            size = await database.pool.fetchrow(
                "SELECT sum(pg_total_relation_size(name::regclass))::bigint AS events,"
                " pg_total_relation_size('usage_hourly') AS hourly,"
                " pg_total_relation_size('usage_daily') AS daily FROM usage_partitions"
            )
            found["bytes"] = dict(size)
            found["rows"] = {
                table: await database.pool.fetchval(f"SELECT count(*) FROM {table}", timeout=600)
                for table in ("usage_events", "usage_hourly", "usage_daily")
            }
            found["queries"] = await ask(database, now)
    return found


def show(found: dict[str, Any]) -> None:
    """Print it for people."""
    print(f"PostgreSQL {found['postgresql']}")
    for name, rate in found.get("events_per_second", {}).items():
        print(f"{name:<38}{rate:>12,.1f}{'' if 'CPU' in name else ' events/s'}")
    if "queries" in found:
        rows, size = found["rows"], found["bytes"]
        print(
            f"\n{rows['usage_events']:,} events ({size['events'] / 1e9:.1f} GB),"
            f" {rows['usage_hourly']:,} sums by hour, {rows['usage_daily']:,} by day;"
            f" filled in {found['fill_s']:.0f} s\n"
        )
        print(f"{'':<38}{'first, ms':>12}{'then, ms':>12}")
        for name, times in found["queries"].items():
            print(f"{name:<38}{times['first_ms']:>12.1f}{times['then_ms']:>12.1f}")


def main(arguments: list[str]) -> int:
    """Run the bench and print what it found."""
    options = parse_arguments(arguments)
    if options.database_url is not None:
        found = asyncio.run(bench(options, options.database_url))
    else:
        with tempfile.TemporaryDirectory(prefix="forebay-ledger-") as name:
            Path(name).chmod(0o711)
            with EmbeddedPostgres(Path(name) / "pg") as postgres:
                found = asyncio.run(bench(options, postgres.url))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""A ledger for tests: prices and rated usage, written as the shipper writes them."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from forebay.store import AccountStore, Database

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
_ALL_OF = ("input", "cached", "cache_write", "output", "reasoning", "request", "second")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def uuid7(instant: datetime, random_bits: int) -> UUID:
    ms = int(instant.timestamp() * 1000)
    return UUID(int=ms << 80 | 7 << 76 | 2 << 62 | random_bits & ((1 << 62) - 1))


@dataclass(frozen=True, slots=True)
class Rate:
    """A price row as a test knows it. Money for a million tokens, a request, a second."""

    id: int
    model: str
    account: str | None
    currency: str
    prices: dict[str, Decimal]
    start: datetime
    stop: datetime | None

    def cost(self, event: "Event") -> Decimal:
        p = self.prices
        tokens = (
            (event.prompt - event.cached - event.cache_write) * p["input"]
            + event.cached * p["cached"]
            + event.cache_write * p["cache_write"]
            + (event.completion - event.reasoning) * p["output"]
            + event.reasoning * p["reasoning"]
        )
        seconds = Decimal(event.duration_us).scaleb(-6)
        return tokens.scaleb(-6) + p["request"] + p["second"] * seconds


@dataclass(frozen=True, slots=True)
class Event:
    """A request. rate: None for one without a price."""

    account: str
    model: str
    at: datetime
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    duration_us: int = 0
    rate: Rate | None = None
    outcome: str = "ok"

    @property
    def cost(self) -> Decimal | None:
        return None if self.rate is None else self.rate.cost(self)


class Ledger:
    """Writes to a database what gateways would."""

    def __init__(self, database: Database, seed: int | None = 0) -> None:
        self._database = database
        self._random = random.Random(seed)

    async def account(self, *names: str) -> None:
        for name in names:
            await AccountStore(self._database).create(name)

    async def price(
        self,
        model: str,
        *,
        account: str | None = None,
        currency: str = "USD",
        start: datetime = BEGINNING,
        stop: datetime | None = None,
        **prices: str,
    ) -> Rate:
        """A row of the price book, its defaults filled in."""
        found = {name: Decimal(value) for name, value in prices.items()}
        filled = {
            "cached": found["input"],
            "cache_write": found["input"],
            "reasoning": found["output"],
            "request": Decimal(0),
            "second": Decimal(0),
            **found,
        }
        row = await self._database.pool.fetchval(
            "INSERT INTO prices (model, account, currency, effective_from, effective_to,"
            f" {', '.join(_ALL_OF)}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
            " RETURNING id",
            *(model, account, currency, start, stop),
            *(filled[name] for name in _ALL_OF),
        )
        return Rate(row, model, account, currency, filled, start, stop)

    async def end(self, rate: Rate, stop: datetime) -> None:
        await self._database.pool.execute(
            "UPDATE prices SET effective_to = $2 WHERE id = $1", rate.id, stop
        )

    async def correct(self, rate: Rate, **prices: str) -> Rate:
        """Replace a row for its time."""
        pool = self._database.pool
        values = {**rate.prices, **{name: Decimal(value) for name, value in prices.items()}}
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE prices SET superseded_at = now() WHERE id = $1", rate.id
            )
            row = await connection.fetchval(
                "INSERT INTO prices (model, account, currency, effective_from, effective_to,"
                f" supersedes, {', '.join(_ALL_OF)})"
                f" SELECT model, account, currency, effective_from, effective_to, id,"
                f" {', '.join(f'${i + 2}' for i in range(len(_ALL_OF)))}"
                " FROM prices WHERE id = $1 RETURNING id",
                rate.id,
                *(values[name] for name in _ALL_OF),
            )
        return Rate(row, rate.model, rate.account, rate.currency, values, rate.start, rate.stop)

    async def ship(self, events: Sequence[Event]) -> int:
        """Write events and their sums in one transaction; returns its ingest number."""
        pool = self._database.pool
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE usage_events IN ROW EXCLUSIVE MODE")
            batch: int = await connection.fetchval("SELECT nextval('usage_batches')")
            await connection.executemany(
                f"INSERT INTO usage_events ({', '.join(_COLUMNS)})"
                f" VALUES ({', '.join(f'${i + 1}' for i in range(len(_COLUMNS)))})",
                [self._row(event, batch, seq) for seq, event in enumerate(events)],
            )
            await connection.executemany(_ADD, _sums(events))
        return batch

    def _row(self, event: Event, batch: int, seq: int) -> tuple[Any, ...]:
        return (
            *(uuid7(event.at, self._random.getrandbits(62)), "n", UUID(int=1), seq, "r"),
            *(event.account, "k", event.at, event.model, event.model, "gpu", False),
            *(event.outcome, event.prompt, event.cached, event.cache_write, event.completion),
            *(event.reasoning, "reported", event.duration_us / 1000),
            *(event.rate.id if event.rate else None, event.cost, batch),
        )


_COLUMNS = (
    *("event_id", "node", "boot", "seq", "request_id"),
    *("account", "key_id", "admitted_at", "model_asked", "model_served", "upstream", "stream"),
    *("outcome", "prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens"),
    *("reasoning_tokens", "source", "duration_ms", "price_id", "cost", "batch"),
)
_SUMMED = (
    *("requests", "errors", "estimated", "prompt_tokens", "cached_tokens", "cache_write_tokens"),
    *("completion_tokens", "reasoning_tokens", "duration_us", "cost"),
)
_ADD = (
    "INSERT INTO usage_daily (day, account, key_id, model, upstream, price_id,"
    f" {', '.join(_SUMMED)}) VALUES ($1, $2, 'k', $3, 'gpu', $4,"
    f" {', '.join(f'${i + 5}' for i in range(len(_SUMMED)))})"
    " ON CONFLICT (day, account, key_id, model, upstream, price_id) DO UPDATE SET"
    f" {', '.join(f'{name} = usage_daily.{name} + EXCLUDED.{name}' for name in _SUMMED)}"
)


def _sums(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    found: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0] * len(_SUMMED))
    for e in events:
        key = (e.at.astimezone(UTC).date(), e.account, e.model, e.rate.id if e.rate else 0)
        values = (
            *(1, int(e.outcome != "ok"), 0, e.prompt, e.cached, e.cache_write, e.completion),
            *(e.reasoning, e.duration_us, e.cost or Decimal(0)),
        )
        found[key] = [a + b for a, b in zip(found[key], values, strict=True)]
    return [(*key, *values) for key, values in sorted(found.items())]

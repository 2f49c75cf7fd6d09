"""Ships usage events from the spools to PostgreSQL in batches, each event exactly once."""

import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Protocol

import asyncpg
import structlog

from forebay.metering.merge import append, merge
from forebay.metering.shipping import Batch as Rows
from forebay.metering.shipping import Shipping, Source

if TYPE_CHECKING:
    from forebay.metering.shipping import Connection
    from forebay.store.database import Database

COLUMNS: dict[str, str] = {
    "event_id": "uuid",
    "node": "text",
    "boot": "uuid",
    "seq": "bigint",
    "request_id": "text",
    "account": "text",
    "key_id": "text",
    "admitted_at": "timestamptz",
    "first_byte_at": "timestamptz",
    "ended_at": "timestamptz",
    "model_asked": "text",
    "model_served": "text",
    "upstream": "text",
    "front": "text",
    "endpoint": "text",
    "stream": "boolean",
    "outcome": "text",
    "status": "integer",
    "finish_reason": "text",
    "error_kind": "text",
    "attempts": "integer",
    "prompt_tokens": "bigint",
    "cached_tokens": "bigint",
    "cache_write_tokens": "bigint",
    "completion_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "source": "text",
    "duration_ms": "double precision",
    "ttft_ms": "double precision",
    "tokens_per_second": "double precision",
    "price_id": "bigint",
    "cost_pico": "bigint",
    "tags": "jsonb",
    "attempt_log": "jsonb",
}
"""Columns of a batch's rows in their order, and their types in PostgreSQL's binary format."""

_CREATE_STAGING = (
    "CREATE TEMPORARY TABLE usage_staging ("
    + ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    + ") ON COMMIT DELETE ROWS"
)
_CONVERTED = {
    ("cost" if name == "cost_pico" else name): {
        "cost_pico": "cost_pico * 0.000000000001",
        "cache_write_tokens": "coalesce(cache_write_tokens, 0)",
    }.get(name, name)
    for name in COLUMNS
}
_MERGE = merge("usage_staging", _CONVERTED)
_APPEND = append("usage_staging", _CONVERTED, cost="coalesce(sum(cost_pico), 0) * 0.000000000001")
_ADVANCE = (
    "INSERT INTO spools AS s (boot, node, shipped, updated_at) VALUES ($1, $2, $3, now())"
    " ON CONFLICT (boot) DO UPDATE SET node = EXCLUDED.node,"
    " shipped = greatest(s.shipped, EXCLUDED.shipped), updated_at = now()"
)
_REJECT = (
    "INSERT INTO usage_rejected (fingerprint, event, reason) VALUES ($1, $2, $3)"
    " ON CONFLICT (fingerprint) DO NOTHING"
)

_log = structlog.stdlib.get_logger(__name__)


class Batch(Rows, Protocol):
    """Events of one spool, in the order in which they ended; COPY has them as `COLUMNS`.

    boot: the spool's id, 16 bytes. node: the machine's name. position: how many of the spool's
    events are shipped once this batch is; it never falls.
    """

    @property
    def boot(self) -> bytes: ...
    @property
    def node(self) -> str: ...
    @property
    def position(self) -> int: ...
    def json(self, index: int) -> str:
        """One row as a JSON object."""
        ...


class Shipper(Shipping[Batch]):
    """Ships to the ledger.

    One transaction takes a batch: rows into a staging table by binary COPY, from there those that
    are new (as a rule all, so that is tried first) into ``usage_events``, their sums into
    ``usage_hourly`` and ``usage_daily``, and the spool's position into ``spools``.

    Rows that PostgreSQL refuses for their data are set aside in ``usage_rejected`` with the reason.
    """

    what = "usage"

    def __init__(
        self,
        database: "Database",
        source: Source[Batch],
        *,
        interval_s: float = 0.25,
        batch: int = 5_000,
    ):
        super().__init__(database, source, interval_s=interval_s, batch=batch)

    async def _prepare(self, connection: "Connection") -> None:
        # Compiling a statement that takes milliseconds would take longer than it does.
        await connection.execute("SET jit = off")
        await connection.execute(_CREATE_STAGING)

    async def _write(
        self, connection: "Connection", batch: Batch, start: int, stop: int, *, last: bool
    ) -> int:
        staged = ("usage_staging", tuple(COLUMNS), batch.copy(start, stop))
        try:
            async with self._staged(connection, *staged):
                for statement in _APPEND:
                    await connection.fetchval(statement, timeout=self.timeout_s)
                if last:
                    await self._close(connection, batch)
            return stop - start
        except asyncpg.UniqueViolationError:
            # Some of them are there already, which is rare: it costs a second attempt.
            pass
        async with self._staged(connection, *staged):
            inserted: int = await connection.fetchval(_MERGE, timeout=self.timeout_s)
            if last:
                await self._close(connection, batch)
        return inserted

    async def _close(self, connection: "Connection", batch: Batch) -> None:
        """Note how far the batch's spool is shipped. Raises: RuntimeError, which blames no row."""
        boot = uuid.UUID(bytes=bytes(batch.boot))
        try:
            await connection.execute(_ADVANCE, boot, batch.node, batch.position)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise RuntimeError(f"the position of spool {boot} cannot be noted: {error}") from error

    async def _reject(
        self, connection: "Connection", batch: Batch, index: int, error: asyncpg.PostgresError
    ) -> None:
        row = batch.json(index)
        fingerprint = hashlib.sha256(row.encode("utf-8", "replace")).digest()
        why = f"{type(error).__name__}: {error}".replace("\0", "\ufffd")
        try:
            await connection.execute(_REJECT, fingerprint, row, why)
        except (asyncpg.DataError, ValueError):
            # Not even JSON that jsonb takes (a NUL, say): kept as text.
            await connection.execute(_REJECT, fingerprint, json.dumps({"row": repr(row)}), why)
        # The first line only: PostgreSQL's DETAIL repeats the row, which stays in the table.
        _log.error(
            "usage_event_rejected", fingerprint=fingerprint.hex(), reason=why.splitlines()[0]
        )

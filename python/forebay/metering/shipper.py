"""Ships usage events from the spools to PostgreSQL in batches, each event exactly once."""

import asyncio
import contextlib
import hashlib
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import asyncpg
import structlog

from forebay.metering.merge import append, merge
from forebay.store.database import open_connection

if TYPE_CHECKING:
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
# SQLSTATE classes that blame the row: data exception, integrity violation. Besides 08P01, with
# which PostgreSQL says that a value's bytes are too few; a pooler says it of a lost connection too,
# and then it is fatal.
_DATA_CLASSES = ("22", "23")
_MALFORMED = "08P01"
_BACKOFF_S = (0.1, 30.0)
_FLUSH_RETRY_S = 0.1
_STATEMENT_TIMEOUT_S = 30.0
_CHUNK_BYTES = 64 * 1024

_log = structlog.stdlib.get_logger(__name__)


class Batch(Protocol):
    """Events of one spool, in the order in which they ended.

    boot: the spool's id, 16 bytes. node: the machine's name. position: how many of the spool's
    events are shipped once this batch is; it never falls.
    """

    @property
    def boot(self) -> bytes: ...
    @property
    def node(self) -> str: ...
    @property
    def position(self) -> int: ...
    def __len__(self) -> int: ...
    def copy(self, start: int, stop: int) -> bytes:
        """These rows as a complete binary COPY, in the order of `COLUMNS`."""
        ...

    def json(self, index: int) -> str:
        """One row as a JSON object."""
        ...


class Source(Protocol):
    """Where batches come from. Neither call may block."""

    def batch(self, limit: int) -> Batch | None:
        """Up to `limit` events that are not shipped yet; None: there are none.

        Until `done` it may give the same events again.
        """
        ...

    def done(self, batch: Any) -> None:
        """The batch is durable in PostgreSQL and may be forgotten."""
        ...


class _Held(NamedTuple):
    """A batch on its way: the parts of it that are unwritten, as (start, stop), the next last."""

    batch: Batch
    parts: list[tuple[int, int]]
    since: float


class _Shipped(NamedTuple):
    """What one step did: events shipped, and whether the batch was as large as may be."""

    events: int
    full: bool


class Shipper:
    """Takes batches from `source` and writes each event exactly once.

    One transaction takes a batch: rows into a staging table by binary COPY, from there those that
    are new (as a rule all, so that is tried first) into ``usage_events``, their sums into
    ``usage_hourly`` and ``usage_daily``, and the spool's position into ``spools``. A batch whose
    fate is unknown (the connection died at commit) is written again whole, and the events' ids
    make that harmless.

    Rows that PostgreSQL refuses for their data are found by halving the batch and set aside in
    ``usage_rejected`` with the reason; the rest is written.

    interval_s: seconds between batches; a full one is followed by the next at once. batch: most
        events in one transaction.

    While PostgreSQL is away the same batch is tried again after pauses that grow to 30 s, with
    jitter; nothing more is taken from `source`.

    written, duplicates, rejected, failures: counters since start, of events, and for failures of
        attempts that found no working database.
    last_error: text of the last failure; None once a batch has been written after it.
    """

    def __init__(
        self,
        database: "Database",
        source: Source,
        *,
        interval_s: float = 0.25,
        batch: int = 5_000,
    ):
        self._url = database.url
        self._source = source
        self._interval_s = interval_s
        self._batch = batch
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._held: _Held | None = None
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        self.duplicates = 0
        self.rejected = 0
        self.failures = 0
        self.last_error: str | None = None

    @property
    def lag_s(self) -> float:
        """Seconds for which the batch that is being written has waited; 0 without one."""
        return time.monotonic() - self._held.since if self._held is not None else 0.0

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self.last_error is None

    def start(self) -> None:
        """Begin to ship in the background, on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="forebay-usage-shipper")

    def kick(self) -> None:
        """Ship now rather than at the end of the interval or of a back-off."""
        self._wake.set()

    async def flush(self, timeout_s: float) -> bool:
        """Ship everything there is, trying for up to `timeout_s`.

        Returns whether nothing was left.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (shipped := await self._step()) is None or shipped.events:
                    if shipped is None:
                        await asyncio.sleep(_FLUSH_RETRY_S)
                return True
        except TimeoutError:
            return False

    async def stop(self) -> None:
        """End the background task and close the connection; call `flush` before."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._drop_connection()

    async def _run(self) -> None:
        backoff_s = _BACKOFF_S[0]
        while True:
            shipped = await self._step()
            if shipped is None:
                wait_s = backoff_s * random.uniform(0.5, 1.0)
                backoff_s = min(backoff_s * 2, _BACKOFF_S[1])
            else:
                backoff_s = _BACKOFF_S[0]
                if shipped.full:
                    continue
                wait_s = self._interval_s
            # Not wait_for: before 3.12 it loses a cancellation that meets a result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _step(self) -> _Shipped | None:
        """Ship the batch held, or else the next; None: the database or the source failed."""
        async with self._turn:
            try:
                if self._held is None:
                    batch = self._source.batch(self._batch)
                    if batch is None or not len(batch):
                        return _Shipped(0, False)
                    self._held = _Held(batch, [(0, len(batch))], time.monotonic())
                batch = self._held.batch
                await self._ship(self._held)
                self._source.done(batch)
            except asyncio.CancelledError:
                # Mid-exchange the connection's state is unknown; the batch stays held.
                self._drop_connection()
                raise
            except Exception as error:
                self._note_failure(error)
                return None
            self._held = None
            self.last_error = None
            return _Shipped(len(batch), len(batch) >= self._batch)

    async def _ship(self, held: _Held) -> None:
        batch, parts = held.batch, held.parts
        connection = await self._connected()
        advanced = False
        while parts:
            start, stop = parts[-1]
            # Only the transaction that writes the last part moves the spool on.
            last = len(parts) == 1
            try:
                inserted = await self._write(connection, batch, start, stop, advance=last)
            except asyncpg.PostgresError as error:
                if not _blames_data(error):
                    raise
                if stop - start > 1:
                    middle = (start + stop) // 2
                    parts[-1:] = [(middle, stop), (start, middle)]
                    continue
                await self._reject(connection, batch.json(start), error)
                parts.pop()
                self.rejected += 1
                continue
            parts.pop()
            advanced = last
            self.written += inserted
            self.duplicates += stop - start - inserted
        if not advanced:
            await _advance(connection, batch)

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            connection = await open_connection(self._url)
            try:
                # Compiling a statement that takes milliseconds would take longer than it does.
                await connection.execute("SET jit = off")
                await connection.execute(_CREATE_STAGING)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    async def _write(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        batch: Batch,
        start: int,
        stop: int,
        *,
        advance: bool,
    ) -> int:
        rows = batch.copy(start, stop)
        try:
            async with self._staged(connection, rows):
                for statement in _APPEND:
                    await connection.fetchval(statement, timeout=_STATEMENT_TIMEOUT_S)
                if advance:
                    await _advance(connection, batch)
            return stop - start
        except asyncpg.UniqueViolationError:
            # Some of them are there already, which is rare: it costs a second attempt.
            pass
        async with self._staged(connection, rows):
            inserted: int = await connection.fetchval(_MERGE, timeout=_STATEMENT_TIMEOUT_S)
            if advance:
                await _advance(connection, batch)
        return inserted

    @contextlib.asynccontextmanager
    async def _staged(
        self, connection: "asyncpg.Connection[asyncpg.Record]", rows: bytes
    ) -> AsyncIterator[None]:
        """A transaction in which these rows are in the staging table."""
        async with connection.transaction():
            await connection.copy_to_table(
                "usage_staging",
                source=_chunks(rows),
                columns=tuple(COLUMNS),
                format="binary",
                timeout=_STATEMENT_TIMEOUT_S,
            )
            yield

    async def _reject(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        row: str,
        error: asyncpg.PostgresError,
    ) -> None:
        fingerprint = hashlib.sha256(row.encode("utf-8", "replace")).digest()
        reason = f"{type(error).__name__}: {error}".replace("\0", "\ufffd")
        try:
            await connection.execute(_REJECT, fingerprint, row, reason)
        except (asyncpg.DataError, ValueError):
            # Not even JSON that jsonb takes (a NUL, say): kept as text.
            await connection.execute(_REJECT, fingerprint, json.dumps({"row": repr(row)}), reason)
        # The first line only: PostgreSQL's DETAIL repeats the row, which stays in the table.
        _log.error(
            "usage_event_rejected", fingerprint=fingerprint.hex(), reason=reason.splitlines()[0]
        )

    def _note_failure(self, error: Exception) -> None:
        self._drop_connection()
        self.failures += 1
        self.last_error = str(error) or type(error).__name__
        waiting = 0 if self._held is None else len(self._held.batch)
        _log.warning("usage_not_shipped", error=self.last_error, held=waiting)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _blames_data(error: asyncpg.PostgresError) -> bool:
    state = error.sqlstate or ""
    return state[:2] in _DATA_CLASSES or (
        state == _MALFORMED and getattr(error, "severity_en", None) == "ERROR"
    )


async def _advance(connection: "asyncpg.Connection[asyncpg.Record]", batch: Batch) -> None:
    """Note how far the batch's spool is shipped. Raises: RuntimeError, which blames no row."""
    boot = uuid.UUID(bytes=bytes(batch.boot))
    try:
        await connection.execute(_ADVANCE, boot, batch.node, batch.position)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise RuntimeError(f"the position of spool {boot} cannot be noted: {error}") from error


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    """The bytes in pieces: between two the loop gets a turn where the socket is full."""
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK_BYTES):
        yield bytes(view[start : start + _CHUNK_BYTES])

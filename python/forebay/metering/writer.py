"""Writes usage events and what they cost to PostgreSQL in batches, off the request's path."""

import asyncio
import contextlib
import hashlib
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from forebay.metering.merge import merge
from forebay.store.database import open_connection

if TYPE_CHECKING:
    from forebay.store.database import Database

Event = tuple[Any, ...]

# Column and its type in the staging table. Ids and times are staged as they come, 16 bytes and
# microseconds, and converted by the server: that halves what a row costs the event loop.
_STAGED: dict[str, str] = {
    "event_id": "bytea",
    "request_id": "text",
    "account": "text",
    "key_id": "text",
    "admitted_at": "bigint",
    "first_byte_at": "bigint",
    "ended_at": "bigint",
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
    "completion_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "source": "text",
    "duration_ms": "double precision",
    "ttft_ms": "double precision",
    "tokens_per_second": "double precision",
    "cost": "bigint",
    "price_id": "bigint",
}

COLUMNS: tuple[str, ...] = tuple(_STAGED)
"""Order of an event tuple's items.

event_id: 16 bytes, a UUIDv7. admitted_at, first_byte_at, ended_at: int, Unix microseconds.
stream: bool. status, attempts and the four ``*_tokens``: int. duration_ms, ttft_ms: float,
milliseconds. tokens_per_second: float. cost: int, pico-dollars. price_id: int. All else: str.
event_id, request_id, account, key_id, admitted_at, stream and outcome are required, the others may
be None.
"""

_TIMES = ("admitted_at", "first_byte_at", "ended_at")
_CREATE_STAGING = (
    "CREATE TEMPORARY TABLE usage_staging ("
    + ", ".join(f"{name} {kind}" for name, kind in _STAGED.items())
    + ") ON COMMIT DELETE ROWS"
)


def _converted(name: str) -> str:
    if name == "event_id":
        return "encode(event_id, 'hex')::uuid"
    if name in _TIMES:
        return f"'epoch'::timestamptz + {name} * interval '1 microsecond'"
    if name == "cost":
        return "cost * 0.000000000001"
    return name


_MERGE = merge("usage_staging", {name: _converted(name) for name in COLUMNS})
_REJECT = (
    "INSERT INTO usage_rejected (fingerprint, event, reason) VALUES ($1, $2, $3)"
    " ON CONFLICT (fingerprint) DO NOTHING"
)
# SQLSTATE classes that blame the row: data exception, integrity violation. Client-side encoding
# errors are ValueError (asyncpg's own, and Unicode), TypeError, OverflowError, or LookupError for
# a tuple that is too short.
_DATA_CLASSES = ("22", "23")
_BACKOFF_S = (0.1, 30.0)
_FLUSH_RETRY_S = 0.1
_STATEMENT_TIMEOUT_S = 30.0
# Encoding a row takes 4 µs or so; the loop gets a turn after this many, so that a full batch
# never holds up a stream for longer than a millisecond.
_ROWS_A_TURN = 128

_log = structlog.stdlib.get_logger(__name__)


class UsageWriter:
    """Takes finished events from `drain` and writes each exactly once.

    Its sums are added to ``usage_hourly`` and ``usage_daily`` in the transaction that inserts it.

    drain: called with the most it may return; gives up to that many event tuples in the order
        of `COLUMNS`, and forgets them. It must not block. This is the whole seam to whatever
        keeps events until then.
    interval_s: seconds between batches. batch: most events in one transaction; a full batch is
        followed by the next at once.

    While a batch is unwritten nothing more is drained, so memory stays bounded by one batch. An
    event whose fate is unknown (the connection died at commit) is written again, and the
    event's id makes that harmless. A row that PostgreSQL refuses for its data goes to
    ``usage_rejected`` with the reason.

    written, duplicates, rejected, failures: counters since start, of events, and for failures
        of attempts that found no working database.
    last_error: text of the last failure; None once a batch has been written after it.
    """

    def __init__(
        self,
        database: "Database",
        drain: Callable[[int], list[Event]],
        *,
        interval_s: float = 0.25,
        batch: int = 5_000,
    ):
        self._url = database.url
        self._drain = drain
        self._interval_s = interval_s
        self._batch = batch
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._held: list[list[Event]] = []
        self._held_since = 0.0
        self._backoff_s = _BACKOFF_S[0]
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        self.duplicates = 0
        self.rejected = 0
        self.failures = 0
        self.last_error: str | None = None

    @property
    def backlog(self) -> int:
        """Events drained and not yet written."""
        return sum(map(len, self._held))

    @property
    def lag_s(self) -> float:
        """Seconds for which the oldest unwritten batch has waited; 0 without one."""
        return time.monotonic() - self._held_since if self._held else 0.0

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self.last_error is None

    def start(self) -> None:
        """Begin to write in the background, on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="forebay-usage-writer")

    def kick(self) -> None:
        """Write now rather than at the end of the interval or of a back-off."""
        self._wake.set()

    async def flush(self, timeout_s: float) -> bool:
        """Write everything there is, trying for up to `timeout_s`.

        Returns whether nothing was left. Events still in `backlog` afterwards remain there.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (size := await self._step()) != 0:
                    if size is None:
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
        while True:
            size = await self._step()
            if size is None:
                wait_s = self._backoff_s * random.uniform(0.5, 1.0)
                self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S[1])
            else:
                wait_s = self._interval_s
                self._backoff_s = _BACKOFF_S[0]
                if size >= self._batch:
                    continue
            # Not wait_for: before 3.12 it loses a cancellation that meets a result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _step(self) -> int | None:
        """Write the batch held, or else a fresh one.

        Returns how many events it had, 0 when there is nothing to write; None when the database
        did not take them, which leaves them held.
        """
        async with self._turn:
            if not self._held:
                try:
                    events = self._drain(self._batch)
                except Exception:
                    # A fault in the source must not end the writing for good.
                    _log.exception("usage_drain_failed")
                    return None
                if not events:
                    return 0
                self._held = [events]
                self._held_since = time.monotonic()
            size = self.backlog
            while self._held:
                events = self._held[-1]
                try:
                    connection = await self._connected()
                    try:
                        inserted = await self._write(connection, events)
                    except Exception as error:
                        if not _blames_data(error):
                            raise
                        await self._split_or_reject(connection, events, error)
                        continue
                except Exception as error:
                    self._note_failure(error)
                    return None
                except asyncio.CancelledError:
                    # Mid-exchange the connection's state is unknown; the events stay held.
                    self._drop_connection()
                    raise
                self._held.pop()
                self.written += inserted
                self.duplicates += len(events) - inserted
                self.last_error = None
            return size

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            connection = await open_connection(self._url)
            try:
                await connection.execute(_CREATE_STAGING)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    async def _write(
        self, connection: "asyncpg.Connection[asyncpg.Record]", events: list[Event]
    ) -> int:
        async with connection.transaction():
            await connection.copy_records_to_table(
                "usage_staging",
                records=_in_turns(events),
                columns=COLUMNS,
                timeout=_STATEMENT_TIMEOUT_S,
            )
            inserted: int = await connection.fetchval(_MERGE, timeout=_STATEMENT_TIMEOUT_S)
        return inserted

    async def _split_or_reject(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        events: list[Event],
        error: Exception,
    ) -> None:
        if len(events) > 1:
            middle = len(events) // 2
            self._held[-1:] = [events[middle:], events[:middle]]
            return
        text = _to_json(events[0])
        fingerprint = hashlib.sha256(text.encode()).digest()
        reason = f"{type(error).__name__}: {error}".replace("\0", "\ufffd")
        await connection.execute(_REJECT, fingerprint, text, reason)
        self._held.pop()
        self.rejected += 1
        # The first line only: PostgreSQL's DETAIL repeats the row, which stays in the table.
        _log.error(
            "usage_event_rejected", fingerprint=fingerprint.hex(), reason=reason.splitlines()[0]
        )

    def _note_failure(self, error: Exception) -> None:
        self._drop_connection()
        self.failures += 1
        self.last_error = str(error) or type(error).__name__
        _log.warning("usage_write_failed", error=self.last_error, backlog=self.backlog)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _in_turns(events: list[Event]) -> AsyncIterator[Event]:
    for start in range(0, len(events), _ROWS_A_TURN):
        for event in events[start : start + _ROWS_A_TURN]:
            yield event
        await asyncio.sleep(0)


def _blames_data(error: Exception) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _DATA_CLASSES
    return isinstance(error, ValueError | TypeError | OverflowError | LookupError)


def _to_json(event: Event) -> str:
    """Render an event as text that jsonb takes, whatever is in it."""
    named = {name: _plain(value) for name, value in zip(COLUMNS, event, strict=False)}
    if len(event) != len(COLUMNS):
        named["_items"] = len(event)
    return json.dumps(named)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.hex()
    if value is None or isinstance(value, bool | int):
        return value
    # jsonb takes no NUL, no lone surrogate, no NaN.
    text = str(value).encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return value if isinstance(value, float) and abs(value) < float("inf") else text

"""Ships prompt logs to PostgreSQL in batches, each log once."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
import structlog

from forebay.store.database import open_connection
from forebay.store.prompt_logs import COLUMNS

if TYPE_CHECKING:
    from forebay.store.database import Database

_CREATE_STAGING = (
    "CREATE TEMPORARY TABLE prompt_logs_staging (LIKE prompt_logs) ON COMMIT DELETE ROWS"
)
_MERGE = (
    f"WITH inserted AS (INSERT INTO prompt_logs ({', '.join(COLUMNS)})"
    f" SELECT {', '.join(COLUMNS)} FROM prompt_logs_staging ORDER BY event_id"
    " ON CONFLICT (event_id) DO NOTHING RETURNING 1) SELECT count(*) FROM inserted"
)
# SQLSTATE classes that blame the row: data exception, integrity violation.
_DATA_CLASSES = ("22", "23")
_BACKOFF_S = (0.1, 30.0)
_FLUSH_RETRY_S = 0.1
_STATEMENT_TIMEOUT_S = 60.0

_log = structlog.stdlib.get_logger(__name__)


class LogBatch(Protocol):
    """Logs of one spool, in the order in which they were closed."""

    def __len__(self) -> int: ...

    def copy(self, start: int, stop: int) -> bytes:
        """A complete binary COPY of these logs, in the order of `COLUMNS`."""


class LogSource(Protocol):
    """Where logs wait until they are in the database."""

    def batch(self, limit: int) -> LogBatch | None:
        """The next logs, None without any. The same may come again until they are `done`."""

    def done(self, batch: Any) -> None:
        """They are in the database: they may be forgotten."""


class LogShipper:
    """Takes batches from a source, writes them, and says so.

    interval_s: seconds between batches; a full one is followed by the next at once. batch: most
    logs in one transaction.

    A log that PostgreSQL refuses for its data is dropped and counted: nowhere but in its table may
    what it says be kept.

    written, duplicates, rejected, failures: counters since start, of logs, and for failures of
        attempts that found no working database.
    last_error: text of the last failure; None once a batch has been written after it.
    """

    def __init__(
        self,
        database: "Database",
        source: LogSource,
        *,
        interval_s: float = 0.5,
        batch: int = 200,
    ):
        self._url = database.url
        self._source = source
        self._interval_s = interval_s
        self._batch = batch
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        self.duplicates = 0
        self.rejected = 0
        self.failures = 0
        self.last_error: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self.last_error is None

    def start(self) -> None:
        """Begin to write in the background, on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="forebay-log-shipper")

    async def flush(self, timeout_s: float) -> bool:
        """Write all there is, trying for up to `timeout_s`; returns whether nothing is left."""
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
        backoff_s = _BACKOFF_S[0]
        while True:
            size = await self._step()
            if size is None:
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(backoff_s * 2, _BACKOFF_S[1])
                continue
            backoff_s = _BACKOFF_S[0]
            if size < self._batch:
                await asyncio.sleep(self._interval_s)

    async def _step(self) -> int | None:
        """Write one batch. Returns how many logs it had; None when it could not be written."""
        async with self._turn:
            try:
                batch = self._source.batch(self._batch)
                if batch is None:
                    return 0
                await self._write(await self._connected(), batch, 0, len(batch))
                self._source.done(batch)
            except Exception as error:
                self._drop_connection()
                self.failures += 1
                # The first line only: PostgreSQL's DETAIL repeats the row.
                self.last_error = (str(error) or type(error).__name__).splitlines()[0]
                _log.warning("prompt_logs_not_written", error=self.last_error)
                return None
            except asyncio.CancelledError:
                # Mid-exchange the connection's state is unknown.
                self._drop_connection()
                raise
            self.last_error = None
            return len(batch)

    async def _write(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        batch: LogBatch,
        start: int,
        stop: int,
    ) -> None:
        """Write a part of a batch, in halves where the whole is refused."""

        async def rows() -> AsyncIterator[bytes]:
            yield batch.copy(start, stop)

        try:
            async with connection.transaction():
                await connection.copy_to_table(
                    "prompt_logs_staging",
                    source=rows(),
                    columns=COLUMNS,
                    format="binary",
                    timeout=_STATEMENT_TIMEOUT_S,
                )
                inserted: int = await connection.fetchval(_MERGE, timeout=_STATEMENT_TIMEOUT_S)
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "")[:2] not in _DATA_CLASSES:
                raise
            if stop - start > 1:
                middle = (start + stop) // 2
                await self._write(connection, batch, start, middle)
                await self._write(connection, batch, middle, stop)
                return
            self.rejected += 1
            _log.error("prompt_log_rejected", reason=str(error).splitlines()[0])
            return
        self.written += inserted
        self.duplicates += stop - start - inserted

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

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

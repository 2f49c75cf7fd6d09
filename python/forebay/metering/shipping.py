"""Ships rows from spools to PostgreSQL in batches: what usage and prompt logs have in common."""

import asyncio
import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import asyncpg
import structlog

from forebay.store.database import open_connection

if TYPE_CHECKING:
    from forebay.store.database import Database

    Connection = asyncpg.Connection[asyncpg.Record]

# SQLSTATE classes that blame the row: data exception, integrity violation. Besides 08P01, with
# which PostgreSQL says that a value's bytes are too few; a pooler says it of a lost connection too,
# and then it is fatal.
_DATA_CLASSES = ("22", "23")
_MALFORMED = "08P01"
_BACKOFF_S = (0.1, 30.0)
_FLUSH_RETRY_S = 0.1
_CHUNK_BYTES = 64 * 1024

_log = structlog.stdlib.get_logger(__name__)


class Batch(Protocol):
    """Rows of one spool, in the order in which they were written."""

    def __len__(self) -> int: ...
    def copy(self, start: int, stop: int) -> bytes:
        """These rows as a complete binary COPY."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)


class Source(Protocol[BatchT_co]):
    """Where batches come from. Neither call may block."""

    def batch(self, limit: int) -> BatchT_co | None:
        """Up to `limit` rows that are not shipped yet; None: there are none.

        Until `done` it may give the same rows again.
        """
        ...

    def done(self, batch: Any) -> None:
        """The batch is durable in PostgreSQL and may be forgotten."""
        ...


@dataclass(slots=True)
class _Held(Generic[BatchT]):
    """A batch on its way: the parts of it that are unwritten, as (start, stop), the next last."""

    batch: BatchT
    parts: list[tuple[int, int]]
    since: float


class _Shipped(NamedTuple):
    """What one step did: rows shipped, and whether the batch was as large as may be."""

    rows: int
    full: bool


class Shipping(ABC, Generic[BatchT]):
    """Takes batches from `source` and writes each row once. What is particular to a table is in a
    class for it: how a connection is made ready, how rows are written, what becomes of a refused
    one.

    A batch whose fate is unknown (the connection died at commit) is written again whole; ids of the
    rows make that harmless. Rows that PostgreSQL refuses for their data are found by halving the
    batch; the rest is written.

    interval_s: seconds between batches; a full one is followed by the next at once. batch: most
        rows in one transaction.

    While PostgreSQL is away the same batch is tried again after pauses that grow to 30 s, with
    jitter; nothing more is taken from `source`.

    written, duplicates, rejected, failures: counters since start, of rows, and for failures of
        attempts that found no working database.
    last_error: text of the last failure; None once a batch has been written after it.
    """

    what: ClassVar[str]
    """What is shipped, as the log calls it."""
    timeout_s: ClassVar[float] = 30.0
    """Seconds that one statement may take."""

    def __init__(
        self, database: "Database", source: Source[BatchT], *, interval_s: float, batch: int
    ):
        self._url = database.url
        self._source = source
        self._interval_s = interval_s
        self._batch = batch
        self._connection: Connection | None = None
        self._held: _Held[BatchT] | None = None
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        self.duplicates = 0
        self.rejected = 0
        self.failures = 0
        self.last_error: str | None = None

    @abstractmethod
    async def _prepare(self, connection: "Connection") -> None:
        """Make a new connection ready."""

    @abstractmethod
    async def _write(
        self, connection: "Connection", batch: BatchT, start: int, stop: int, *, last: bool
    ) -> int:
        """Write rows in one transaction; returns how many of them were new.

        last: nothing else of the batch is unwritten.
        """

    @abstractmethod
    async def _reject(
        self, connection: "Connection", batch: BatchT, index: int, error: asyncpg.PostgresError
    ) -> None:
        """Deal with a row that PostgreSQL refuses."""

    async def _close(self, connection: "Connection", batch: BatchT) -> None:
        """Nothing of the batch is unwritten, and no `_write` was told so."""

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
            self._task = asyncio.create_task(self._run(), name=f"ship-{self.what}")

    def kick(self) -> None:
        """Ship now rather than at the end of the interval or of a back-off."""
        self._wake.set()

    async def flush(self, timeout_s: float) -> bool:
        """Ship everything there is, trying for up to `timeout_s`.

        Returns whether nothing was left.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (shipped := await self._step()) is None or shipped.rows:
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

    async def _ship(self, held: _Held[BatchT]) -> None:
        batch, parts = held.batch, held.parts
        connection = await self._connected()
        closed = False
        while parts:
            start, stop = parts[-1]
            last = len(parts) == 1
            try:
                inserted = await self._write(connection, batch, start, stop, last=last)
            except asyncpg.PostgresError as error:
                if not _blames_data(error):
                    raise
                if stop - start > 1:
                    middle = (start + stop) // 2
                    parts[-1:] = [(middle, stop), (start, middle)]
                    continue
                await self._reject(connection, batch, start, error)
                parts.pop()
                self.rejected += 1
                continue
            parts.pop()
            closed = last
            self.written += inserted
            self.duplicates += stop - start - inserted
        if not closed:
            await self._close(connection, batch)

    async def _connected(self) -> "Connection":
        if self._connection is None or self._connection.is_closed():
            connection = await open_connection(self._url)
            try:
                await self._prepare(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    @contextlib.asynccontextmanager
    async def _staged(
        self, connection: "Connection", table: str, columns: tuple[str, ...], rows: bytes
    ) -> AsyncIterator[None]:
        """A transaction in which these rows are in a staging table."""
        async with connection.transaction():
            await connection.copy_to_table(
                table,
                source=_chunks(rows),
                columns=columns,
                format="binary",
                timeout=self.timeout_s,
            )
            yield

    def _note_failure(self, error: Exception) -> None:
        self._drop_connection()
        self.failures += 1
        self.last_error = reason(error)
        waiting = 0 if self._held is None else len(self._held.batch)
        _log.warning(f"{self.what}_not_shipped", error=self.last_error, held=waiting)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def reason(error: Exception) -> str:
    """An error's first line: below, PostgreSQL's DETAIL repeats the row."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _blames_data(error: asyncpg.PostgresError) -> bool:
    state = error.sqlstate or ""
    return state[:2] in _DATA_CLASSES or (
        state == _MALFORMED and getattr(error, "severity_en", None) == "ERROR"
    )


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    """The bytes in pieces: between two the loop gets a turn where the socket is full."""
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK_BYTES):
        yield bytes(view[start : start + _CHUNK_BYTES])

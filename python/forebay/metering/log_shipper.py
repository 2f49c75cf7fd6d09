"""Ships prompt logs to PostgreSQL in batches, each log once."""

from typing import TYPE_CHECKING

import asyncpg
import structlog

from forebay.metering.shipping import Batch, Shipping, Source, reason
from forebay.store.prompt_logs import COLUMNS

if TYPE_CHECKING:
    from forebay.metering.shipping import Connection
    from forebay.store.database import Database

_CREATE_STAGING = (
    "CREATE TEMPORARY TABLE prompt_logs_staging (LIKE prompt_logs) ON COMMIT DELETE ROWS"
)
_MERGE = (
    f"WITH inserted AS (INSERT INTO prompt_logs ({', '.join(COLUMNS)})"
    f" SELECT {', '.join(COLUMNS)} FROM prompt_logs_staging ORDER BY event_id"
    " ON CONFLICT (event_id) DO NOTHING RETURNING 1) SELECT count(*) FROM inserted"
)

_log = structlog.stdlib.get_logger(__name__)


class LogShipper(Shipping[Batch]):
    """Ships to ``prompt_logs``; a batch's COPY is in the order of its columns.

    batch: most logs at once, each of up to 2 MiB.

    A log that PostgreSQL refuses for its data is dropped and counted: nowhere but in its table may
    what it says be kept.
    """

    what = "prompt_logs"
    timeout_s = 60.0

    def __init__(
        self,
        database: "Database",
        source: Source[Batch],
        *,
        interval_s: float = 0.5,
        batch: int = 32,
    ):
        super().__init__(database, source, interval_s=interval_s, batch=batch)

    async def _prepare(self, connection: "Connection") -> None:
        await connection.execute(_CREATE_STAGING)

    async def _write(
        self, connection: "Connection", batch: Batch, start: int, stop: int, *, last: bool
    ) -> int:
        rows = batch.copy(start, stop)
        async with self._staged(connection, "prompt_logs_staging", COLUMNS, rows):
            inserted: int = await connection.fetchval(_MERGE, timeout=self.timeout_s)
        return inserted

    async def _reject(
        self, connection: "Connection", batch: Batch, index: int, error: asyncpg.PostgresError
    ) -> None:
        _log.error("prompt_log_rejected", reason=reason(error))

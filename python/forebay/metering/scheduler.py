"""Runs the ledger's jobs, on one gateway among all that share a database."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import structlog

from forebay.metering.recount import recount
from forebay.metering.upkeep import apply_retention, make_partitions
from forebay.store.database import Connection, open_connection
from forebay.store.idempotency import sweep as sweep_answers
from forebay.store.prompt_logs import maintain as prompt_log_upkeep
from forebay.store.responses import sweep as sweep_responses

if TYPE_CHECKING:
    from forebay.store.database import Database

LEADER_LOCK = (7166410, 3)
"""Advisory lock of the one that runs the jobs; held as long as its connection lives."""

_INTERVAL_S = 30.0
_RETRY_S = (60.0, 3600.0)
_TEN_MINUTES_S = 600.0
_HOUR_S = 3600.0
_DAY_S = 86_400.0
_FOR_GOOD_DAYS = 36_500

_log = structlog.stdlib.get_logger(__name__)

Work = Callable[[Connection, datetime], Awaitable[dict[str, Any]]]


class Job(NamedTuple):
    """Something to be done again and again, by whoever leads.

    every_s: once in each period of so many seconds, which begin at midnight (UTC) or at whole
    multiples from there. offset_s: so much later. run: takes the leader's connection and the time;
    gives what it did, as plain data. It must be safe to repeat.
    """

    name: str
    every_s: float
    offset_s: float
    run: Work

    def due(self, succeeded_at: datetime | None, now: datetime) -> bool:
        """Whether a period has begun since the last success."""
        return succeeded_at is None or self._period(now) > self._period(succeeded_at)

    def _period(self, at: datetime) -> int:
        return int((at.timestamp() - self.offset_s) // self.every_s)


def ledger_jobs(
    *,
    usage_days: int | None = None,
    hourly_days: int | None = None,
    rejected_days: int | None = None,
    prompt_log_days: int | None = None,
) -> list[Job]:
    """What has expired every ten minutes, partitions and retention every hour, the recount at
    01:00 UTC."""

    async def retention(connection: Connection, now: datetime) -> dict[str, Any]:
        return await apply_retention(
            connection,
            now,
            usage_days=usage_days,
            hourly_days=hourly_days,
            rejected_days=rejected_days,
        )

    async def prompt_logs(connection: Connection, now: datetime) -> dict[str, Any]:
        await prompt_log_upkeep(connection, now, prompt_log_days or _FOR_GOOD_DAYS)
        return {}

    async def expiry(connection: Connection, now: datetime) -> dict[str, Any]:
        return {
            "answers": await sweep_answers(connection, now),
            "responses": await sweep_responses(connection, now),
        }

    return [
        Job("expiry", _TEN_MINUTES_S, 0, expiry),
        Job("prompt_logs", _HOUR_S, 0, prompt_logs),
        Job("partitions", _HOUR_S, 0, make_partitions),
        Job("retention", _HOUR_S, 0, retention),
        Job("recount", _DAY_S, _HOUR_S, recount),
    ]


class Scheduler:
    """Tries to become the leader and, as long as it is, runs what is due.

    The leader is whoever holds an advisory lock, on a connection of its own, on which the jobs
    run too: a leader that loses its connection leads no more. Others try again every 30 s. What
    ran when, and how it ended, is in the table ``jobs``, so that a new leader goes on where the
    last one was.

    A job that fails is tried again after a minute, then after pauses that double up to an hour.

    clock: Unix seconds.
    """

    def __init__(
        self,
        database: "Database",
        jobs: Sequence[Job],
        *,
        interval_s: float = _INTERVAL_S,
        clock: Callable[[], float] = time.time,
    ):
        self._url = database.url
        self._jobs = tuple(jobs)
        self._interval_s = interval_s
        self._clock = clock
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failing: dict[str, str] = {}

    @property
    def leads(self) -> bool:
        """Whether this one runs the jobs now."""
        return self._connection is not None and not self._connection.is_closed()

    def state(self) -> str:
        """``ok``, or which jobs failed when this one last ran them."""
        if not self.leads or not self._failing:
            return "ok"
        return "degraded: " + "; ".join(f"{job}: {why}" for job, why in self._failing.items())

    def replace(self, jobs: Sequence[Job]) -> None:
        """Do these from now on; those of the same name go on with what was done."""
        self._jobs = tuple(jobs)

    def start(self) -> None:
        """Begin, on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="forebay-scheduler")

    async def stop(self) -> None:
        """End, and leave the lead to another."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._resign()

    async def _run(self) -> None:
        while True:
            await self.step()
            await asyncio.sleep(self._interval_s)

    async def step(self) -> list[str]:
        """Lead if nobody else does, run what is due, and return the names of what ran."""
        try:
            if not self.leads and not await self._try_to_lead():
                return []
            assert self._connection is not None
            return await self._run_due(self._connection)
        except Exception as error:
            # No database, or none with our tables: the jobs can wait.
            _log.warning("jobs_interrupted", error=str(error) or type(error).__name__)
            self._resign()
            return []
        except asyncio.CancelledError:
            self._resign()
            raise

    async def _try_to_lead(self) -> bool:
        self._resign()
        connection = await open_connection(self._url)
        try:
            leads = await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", *LEADER_LOCK)
        except BaseException:
            connection.terminate()
            raise
        if not leads:
            await connection.close(timeout=1)
            return False
        self._connection = connection
        return True

    def _resign(self) -> None:
        connection, self._connection = self._connection, None
        self._failing.clear()
        if connection is not None:
            connection.terminate()

    async def _run_due(self, connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
        last = {row["name"]: row for row in await connection.fetch("SELECT * FROM jobs")}
        ran = []
        for job in self._jobs:
            now = datetime.fromtimestamp(self._clock(), UTC)
            row = last.get(job.name)
            if not job.due(None if row is None else row["succeeded_at"], now):
                continue
            if row is not None and row["failures"]:
                pause_s = min(_RETRY_S[0] * 2 ** min(row["failures"] - 1, 10), _RETRY_S[1])
                if (now - row["finished_at"]).total_seconds() < pause_s:
                    continue
            await self._run_one(connection, job, now)
            ran.append(job.name)
        return ran

    async def _run_one(
        self, connection: "asyncpg.Connection[asyncpg.Record]", job: Job, now: datetime
    ) -> None:
        detail: dict[str, Any] = {}
        failure = None
        try:
            detail = await job.run(connection, now)
            self._failing.pop(job.name, None)
        except Exception as error:
            if connection.is_closed():
                raise
            failure = (str(error) or type(error).__name__).splitlines()[0]
            self._failing[job.name] = failure
            _log.warning("job_failed", job=job.name, error=failure)
        await record(
            connection,
            job.name,
            started=now,
            finished=datetime.fromtimestamp(self._clock(), UTC),
            detail=detail,
            failure=failure,
        )


class LastRun(NamedTuple):
    """How a job ended. ago: the time since its last success. error: None after a success."""

    name: str
    ago: str
    error: str | None


async def last_runs(database: "Database") -> list[LastRun]:
    """The last run of each job, by name."""
    rows = await database.pool.fetch(
        "SELECT name, extract(epoch FROM now() - succeeded_at)::float8 AS ago_s, error FROM jobs"
        " ORDER BY name"
    )
    return [LastRun(row["name"], _ago(row["ago_s"]), row["error"]) for row in rows]


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


async def by_hand(
    connection: Connection, now: datetime, *, since: date | None = None, **kept: Any
) -> dict[str, dict[str, Any]]:
    """Run every job of the ledger now, in whoever's lead, and return what each did, by its name.

    since: as `recount` takes it. kept: as `ledger_jobs` takes it.
    """
    done = {}
    for job in ledger_jobs(**kept):
        if job.name == "recount" and since is not None:
            # Not what the nightly one would have done, so that is still due.
            done[job.name] = await recount(connection, now, since)
            continue
        done[job.name] = await job.run(connection, now)
        await record(
            connection, job.name, started=now, finished=datetime.now(UTC), detail=done[job.name]
        )
    return done


async def record(
    connection: Connection,
    job: str,
    *,
    started: datetime,
    finished: datetime,
    detail: dict[str, Any],
    failure: str | None = None,
) -> None:
    """Note in the table ``jobs`` how a run ended. failure: None after a success."""
    await connection.execute(
        "INSERT INTO jobs AS j (name, started_at, finished_at, succeeded_at, failures, error,"
        " detail) VALUES ($1, $2, $3, CASE WHEN $4::text IS NULL THEN $2::timestamptz END,"
        " CASE WHEN $4 IS NULL THEN 0 ELSE 1 END, $4, $5)"
        " ON CONFLICT (name) DO UPDATE SET started_at = EXCLUDED.started_at,"
        " finished_at = EXCLUDED.finished_at,"
        " succeeded_at = coalesce(EXCLUDED.succeeded_at, j.succeeded_at),"
        " failures = CASE WHEN $4 IS NULL THEN 0 ELSE j.failures + 1 END,"
        " error = EXCLUDED.error, detail = EXCLUDED.detail",
        job,
        started,
        finished,
        failure,
        json.dumps(detail),
    )

"""Prompt logs on their way to the database: each once, whatever the database does meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from forebay.metering.log_shipper import LogShipper
from forebay.store import Database, EmbeddedPostgres

from tests.support.prompt_logs import FIELDS, copy, log


class Batch:
    def __init__(self, logs: list[dict[str, Any]]) -> None:
        self.logs = logs

    def __len__(self) -> int:
        return len(self.logs)

    def copy(self, start: int, stop: int) -> bytes:
        return copy(self.logs[start:stop])


class Spool:
    """Gives the oldest logs until they are done."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.keeps = False

    def batch(self, limit: int) -> Batch | None:
        return Batch(self.logs[:limit]) if self.logs else None

    def done(self, batch: Batch) -> None:
        if self.keeps:
            # Died between the database's commit and this.
            self.keeps = False
            raise RuntimeError("the spool is gone")
        del self.logs[: len(batch)]


@pytest.fixture
def spool() -> Spool:
    return Spool()


@pytest_asyncio.fixture
async def shipper(database: Database, spool: Spool) -> AsyncIterator[LogShipper]:
    shipper = LogShipper(database, spool, interval_s=0.02, batch=4)
    yield shipper
    await shipper.stop()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def rows(database: Database) -> list[dict[str, Any]]:
    found = await database.pool.fetch(f"SELECT {', '.join(FIELDS)} FROM prompt_logs ORDER BY 1")
    return [{**row, "at": row["at"].timestamp()} for row in found]


async def test_they_arrive_as_they_were(
    database: Database, spool: Spool, shipper: LogShipper
) -> None:
    now = time.time()
    logs = [log(at=now + n, request_id=f"r{n}", redactions=n) for n in range(9)]
    logs.append(log(at=now + 9, request=None, answer=None, model=None, status=None))
    spool.logs = list(logs)
    shipper.start()
    await until(lambda: not spool.logs)
    assert await rows(database) == [{**entry, "at": pytest.approx(entry["at"])} for entry in logs]
    assert (shipper.written, shipper.duplicates, shipper.rejected) == (10, 0, 0)


async def test_what_comes_again_is_there_once(
    database: Database, spool: Spool, shipper: LogShipper
) -> None:
    logs = [log(), log()]
    spool.logs = list(logs)
    spool.keeps = True
    assert await shipper.flush(10)
    assert len(await rows(database)) == 2
    assert (shipper.written, shipper.duplicates, shipper.failures) == (2, 0, 1)
    assert shipper.last_error is None
    spool.logs = list(logs)  # as the next process finds them
    assert await shipper.flush(10)
    assert len(await rows(database)) == 2
    assert (shipper.written, shipper.duplicates) == (2, 2)


async def test_what_is_refused_keeps_nothing_else_back(
    database: Database, spool: Spool, shipper: LogShipper, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [log(level="everything"), log(request_id="secret words\0"), log(enc_key=None)]
    spool.logs = [log(), bad[0], log(), bad[1], bad[2]]
    assert await shipper.flush(10)
    assert len(await rows(database)) == 2
    assert (shipper.written, shipper.rejected, shipper.failures) == (2, 3, 0)
    assert "secret words" not in capsys.readouterr().out


async def test_an_outage_is_waited_for(
    database: Database, postgres: EmbeddedPostgres, spool: Spool, shipper: LogShipper
) -> None:
    spool.logs = [log()]
    assert await shipper.flush(10)
    await asyncio.to_thread(postgres.stop)
    spool.logs = [log(), log()]
    assert not await shipper.flush(0.5)
    assert shipper.last_error
    assert len(spool.logs) == 2
    await asyncio.to_thread(postgres.start)
    assert await shipper.flush(10)
    assert shipper.last_error is None
    connection = await asyncpg.connect(database.url)
    assert await connection.fetchval("SELECT count(*) FROM prompt_logs") == 3
    await connection.close()

"""Fixtures shared by every test: one real PostgreSQL a session, a fresh database a test."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import pytest_asyncio
import structlog
from forebay.store import Database, EmbeddedPostgres

# structlog's default renders the locals of every frame, which takes seconds an exception.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)

pytest_plugins = ["tests.support.fixtures"]

T = TypeVar("T")
_TEMPLATE = "forebay_template"
_numbers = count(1)


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread and event loop of its own, whatever loop the test has."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(lambda: asyncio.run(work())).result()


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short folder that the server's user can reach: pytest's own are private."""
    # In memory where there is such a place: CREATE and DROP DATABASE wait for the disk.
    memory = Path("/dev/shm")
    home = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="forebay-test-", dir=home))
    folder.chmod(0o711)
    # Spools of the gateways that tests start.
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(scratch: Path) -> Iterator[EmbeddedPostgres]:
    """A running server with a migrated template database. A test may stop and start it."""
    server = EmbeddedPostgres(scratch / "pg", durable=False)
    server.start()
    try:
        run_apart(lambda: _make_template(server))
        yield server
    finally:
        server.stop()


async def _make_template(server: EmbeddedPostgres) -> None:
    await _execute(server.url, f"CREATE DATABASE {_TEMPLATE}")
    async with await Database.connect(server.url_of(_TEMPLATE), max_size=1) as database:
        await database.migrate()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database with the current schema and no rows, this test's alone."""
    postgres.start()  # in case a test left it stopped
    name = f"t{next(_numbers)}"
    run_apart(lambda: _execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}"))
    yield postgres.url_of(name)
    postgres.start()
    run_apart(lambda: _execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database without any table."""
    postgres.start()
    name = f"t{next(_numbers)}"
    run_apart(lambda: _execute(postgres.url, f"CREATE DATABASE {name}"))
    yield postgres.url_of(name)
    run_apart(lambda: _execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on `database_url`."""
    async with await Database.connect(database_url) as opened:
        yield opened

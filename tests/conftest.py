"""Fixtures shared by every test: one real PostgreSQL a session, a fresh database a test."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
import structlog
from forebay.store import Database, EmbeddedPostgres
from hypothesis import settings

from tests.support.databases import create_database, execute, make_template, run_apart

# The same examples each time, so that a change fails by its own faults alone. New ones are sought
# by `pytest --hypothesis-profile explore`.
settings.register_profile("explore")
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

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

_numbers = count(1)


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
        make_template(server)
        yield server
    finally:
        server.stop()


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database with the current schema and no rows, this test's alone."""
    name = f"t{next(_numbers)}"
    yield create_database(postgres, name)
    postgres.start()
    run_apart(lambda: execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database without any table."""
    postgres.start()
    name = f"t{next(_numbers)}"
    run_apart(lambda: execute(postgres.url, f"CREATE DATABASE {name}"))
    yield postgres.url_of(name)
    run_apart(lambda: execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on `database_url`."""
    async with await Database.connect(database_url) as opened:
        yield opened

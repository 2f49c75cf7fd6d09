"""Databases on the tests' PostgreSQL, and coroutines beside whatever event loop a test has."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import asyncpg
from forebay.store import Database, EmbeddedPostgres

T = TypeVar("T")
_TEMPLATE = "forebay_template"


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread and event loop of its own, whatever loop the test has."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(lambda: asyncio.run(work())).result()


async def execute(url: str, statement: str) -> None:
    """One statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def make_template(server: EmbeddedPostgres) -> None:
    """The migrated database that `create_database` copies."""

    async def make() -> None:
        await execute(server.url, f"CREATE DATABASE {_TEMPLATE}")
        async with await Database.connect(server.url_of(_TEMPLATE), max_size=1) as database:
            await database.migrate()

    run_apart(make)


def create_database(server: EmbeddedPostgres, name: str) -> str:
    """URL of a new database with the current schema and no rows. Starts a server that is stopped.

    It is a ledger of its own: processes of one ledger take over each other's spools, and a copy has
    the id of what it was copied from.
    """
    server.start()
    url = server.url_of(name)

    async def make() -> None:
        await execute(server.url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        await execute(url, "UPDATE ledger SET id = gen_random_uuid()")

    run_apart(make)
    return url

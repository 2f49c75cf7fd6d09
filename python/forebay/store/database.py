"""A small connection pool and the schema's migrations."""

import asyncio
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeAlias

import asyncpg

from forebay.config.schema import mask_url
from forebay.store.actor import introduce
from forebay.store.errors import MigrationChanged, StoreUnavailable

MIGRATION_LOCK = (7166410, 1)
"""Advisory lock held while migrating; (7166410, 2) is taken by writers of API keys."""

_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 30.0
_MIGRATE_WAIT_S = 300.0
_ASKING = 2
# A month: asyncpg has no word for none here.
_STEP_TIMEOUT_S = 30 * 86_400.0

Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)
"""A connection of its own, or one from a pool."""

UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)
"""What asyncpg raises when a database is away, starting, stopping, full or refuses the login."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    version: 1, 2, …, from the file's name. checksum: SHA-256 of the text, hex.
    """

    version: int
    name: str
    sql: str
    checksum: str


def migrations() -> list[Migration]:
    """The shipped steps, in order."""
    steps = []
    folder = files("forebay.store").joinpath("migrations")
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".sql"):
            continue
        number, _, name = entry.name.removesuffix(".sql").partition("_")
        sql = entry.read_text(encoding="utf-8")
        steps.append(Migration(int(number), name, sql, hashlib.sha256(sql.encode()).hexdigest()))
    return steps


def unavailable(url: str, error: BaseException) -> StoreUnavailable:
    """The error to show for a connection to `url` that failed; carries no password."""
    text = str(error).strip().splitlines()
    reason = text[0] if text else "timed out" if isinstance(error, TimeoutError) else ""
    return StoreUnavailable(
        f"cannot reach the database {mask_url(url)}: {reason or type(error).__name__}"
    )


async def open_connection(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    """One connection outside any pool, for a task that keeps it.

    Raises: StoreUnavailable.
    """
    try:
        connection = await asyncpg.connect(
            url,
            timeout=_CONNECT_TIMEOUT_S,
            command_timeout=_COMMAND_TIMEOUT_S,
            server_settings={"application_name": "forebay"},
        )
        try:
            await introduce(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection
    except UNREACHABLE as error:
        raise unavailable(url, error) from error


class Database:
    """A pool of 1 to 4 connections. Open with `connect`, end with `close`.

    A connection knows, as long as someone has it, on whose behalf (`forebay.store.actor`).
    """

    def __init__(self, url: str, pool: "asyncpg.Pool[asyncpg.Record]"):
        self.url = url
        self.pool = pool
        self._asking = asyncio.Semaphore(_ASKING)

    async def ask(
        self, query: str, *arguments: object, timeout_s: float, upkeep: bool = False
    ) -> "list[asyncpg.Record]":
        """The rows of a query for which a request waits, within so many seconds in all.

        Such use two connections at most, however many they are, so that the rest of the pool goes
        on. upkeep: it is no request's, and does not wait for them.

        Raises: StoreUnavailable.
        """
        try:
            async with asyncio.timeout(timeout_s):
                if upkeep:
                    return await self.pool.fetch(query, *arguments, timeout=timeout_s)
                async with self._asking:
                    return await self.pool.fetch(query, *arguments, timeout=timeout_s)
        except UNREACHABLE as error:
            raise StoreUnavailable(
                f"the database cannot be reached: {str(error) or type(error).__name__}"
            ) from error

    @classmethod
    async def connect(cls, url: str, *, min_size: int = 1, max_size: int = 4) -> "Database":
        """Open the pool; the schema is left as it is (see `migrate`).

        Raises: StoreUnavailable.
        """
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=min_size,
                max_size=max_size,
                timeout=_CONNECT_TIMEOUT_S,
                command_timeout=_COMMAND_TIMEOUT_S,
                server_settings={"application_name": "forebay"},
                setup=introduce,
            )
        except UNREACHABLE as error:
            raise unavailable(url, error) from error
        return cls(url, pool)

    async def close(self) -> None:
        """Close every connection; those still busy after 5 s are cut off."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()

    async def __aenter__(self) -> "Database":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def schema_version(self) -> int:
        """The newest migration applied; 0 for a database without our tables."""
        if await self.pool.fetchval("SELECT to_regclass('schema_migrations')") is None:
            return 0
        version: int | None = await self.pool.fetchval("SELECT max(version) FROM schema_migrations")
        return version or 0

    async def migrate(self) -> list[int]:
        """Bring the schema up to date and return the versions applied now.

        Safe when several processes start together: an advisory lock lets one work while the
        others wait, and each step commits together with its record. A schema newer than this
        program (a rollback, a rolling upgrade) is left alone. A step takes as long as it takes.

        Raises: MigrationChanged; StoreUnavailable, also while another migrates for minutes.
        """
        try:
            async with self.pool.acquire() as connection:
                return await self._migrate(connection)
        except UNREACHABLE as error:
            raise unavailable(self.url, error) from error

    async def _migrate(
        self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
    ) -> list[int]:
        try:
            await connection.execute(
                "SELECT pg_advisory_lock($1, $2)", *MIGRATION_LOCK, timeout=_MIGRATE_WAIT_S
            )
        except TimeoutError:
            raise StoreUnavailable(
                f"another process has been migrating the database for {_MIGRATE_WAIT_S:g} s"
            ) from None
        try:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations ("
                " version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
            rows = await connection.fetch("SELECT version, checksum FROM schema_migrations")
            applied: dict[int, str] = {row["version"]: row["checksum"] for row in rows}
            done = []
            for step in migrations():
                if step.version in applied:
                    if applied[step.version] != step.checksum:
                        raise MigrationChanged(
                            f"migration {step.version:04d}_{step.name} was applied with"
                            " different contents"
                        )
                    continue
                async with connection.transaction():
                    # Cut off and begun anew, a step over many rows would never end.
                    await connection.execute("SET LOCAL statement_timeout = 0")
                    await connection.execute(step.sql, timeout=_STEP_TIMEOUT_S)
                    await connection.execute(
                        "INSERT INTO schema_migrations (version, name, checksum)"
                        " VALUES ($1, $2, $3)",
                        step.version,
                        step.name,
                        step.checksum,
                    )
                done.append(step.version)
            return done
        finally:
            if not connection.is_closed():
                await connection.execute("SELECT pg_advisory_unlock($1, $2)", *MIGRATION_LOCK)

"""Connections and migrations."""

import asyncio

import asyncpg
import pytest
from forebay.store import Database, EmbeddedPostgres, MigrationChanged, StoreUnavailable
from forebay.store.database import MIGRATION_LOCK, Migration, migrations


@pytest.mark.asyncio
async def test_many_processes_may_migrate_at_once(empty_database_url: str) -> None:
    databases = [await Database.connect(empty_database_url, max_size=1) for _ in range(6)]
    try:
        assert await databases[0].schema_version() == 0
        done = await asyncio.gather(*(database.migrate() for database in databases))
        shipped = [step.version for step in migrations()]
        # Each step was applied by exactly one of them.
        assert sorted(version for versions in done for version in versions) == shipped
        assert await databases[0].schema_version() == shipped[-1]
        assert await databases[0].migrate() == []
    finally:
        for database in databases:
            await database.close()


@pytest.mark.asyncio
async def test_a_failed_migration_leaves_nothing_and_can_be_repeated(
    empty_database_url: str,
) -> None:
    async with await Database.connect(empty_database_url) as database:
        # The first step meets a table that is in its way.
        await database.pool.execute("CREATE TABLE usage_rejected (x int)")
        with pytest.raises(asyncpg.DuplicateTableError):
            await database.migrate()
        assert await database.schema_version() == 0
        assert await database.pool.fetchval("SELECT to_regclass('api_keys')") is None
        await database.pool.execute("DROP TABLE usage_rejected")
        assert await database.migrate() == [step.version for step in migrations()]


@pytest.mark.asyncio
async def test_a_changed_migration_is_noticed_and_a_newer_schema_left_alone(
    database: Database,
) -> None:
    await database.pool.execute(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'future', 'x')"
    )
    assert await database.migrate() == []
    assert await database.schema_version() == 9999
    await database.pool.execute("UPDATE schema_migrations SET checksum = 'x' WHERE version = 1")
    with pytest.raises(MigrationChanged, match="0001_keys_and_usage"):
        await database.migrate()


@pytest.mark.asyncio
async def test_a_step_takes_as_long_as_it_takes(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = empty_database_url.rpartition("/")[2].partition("?")[0]
    async with await Database.connect(empty_database_url) as database:
        await database.pool.execute(f"ALTER DATABASE {name} SET statement_timeout = '200ms'")
    step = Migration(1, "long", "SELECT pg_sleep(0.5)", "x")
    monkeypatch.setattr("forebay.store.database.migrations", lambda: [step])
    monkeypatch.setattr("forebay.store.database._COMMAND_TIMEOUT_S", 0.2)
    async with await Database.connect(empty_database_url) as database:
        assert await database.migrate() == [1]


@pytest.mark.asyncio
async def test_who_waits_long_for_another_to_migrate_is_told_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.store.database._MIGRATE_WAIT_S", 0.1)
    async with database.pool.acquire() as other:
        await other.execute("SELECT pg_advisory_lock($1, $2)", *MIGRATION_LOCK)
        with pytest.raises(StoreUnavailable, match="another process has been migrating"):
            await database.migrate()


@pytest.mark.asyncio
async def test_an_unreachable_database_is_one_clear_line_without_the_password() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await Database.connect("postgresql://me:s3cret@127.0.0.1:1/x")
    assert "postgresql://me:***@127.0.0.1:1/x" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.asyncio
async def test_a_database_that_does_not_exist(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist"):
        await Database.connect(postgres.url_of("nowhere"))

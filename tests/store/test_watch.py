"""The watch over API keys: quick, complete, and back after an outage."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest
from forebay.store import Database, EmbeddedPostgres, KeyRecord, KeyStore, KeyWatcher


class Gateway:
    """What the core does with records: keep the last of each id."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyRecord] = {}
        self.calls: list[list[KeyRecord]] = []

    def apply(self, records: list[KeyRecord]) -> None:
        self.calls.append(records)
        self.keys.update({record.id: record for record in records})


async def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


@contextlib.asynccontextmanager
async def watching(database: Database, gateway: Gateway) -> AsyncIterator[KeyWatcher]:
    watcher = KeyWatcher(database, gateway.apply)
    try:
        assert await watcher.start()
        yield watcher
    finally:
        await watcher.stop()


@pytest.mark.asyncio
async def test_the_first_load_has_every_live_key(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    live, _ = await store.create(name="live")
    dead, _ = await store.create(name="dead")
    await store.revoke(dead.id)
    async with watching(database, gateway) as watcher:
        assert watcher.healthy
        assert watcher.loaded
        assert watcher.last_sync == pytest.approx(time.time(), abs=5)
        assert gateway.calls == [[live]]
    assert not watcher.healthy


@pytest.mark.asyncio
async def test_changes_arrive_within_a_second(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    async with watching(database, gateway):
        record, _ = await store.create(name="x")
        await until(lambda: record.id in gateway.keys, 1.0)
        rotated, _ = await store.rotate(record.id, overlap_s=60)
        await until(lambda: gateway.keys[record.id] == rotated, 1.0)
        await store.revoke(record.id)
        took = await until(lambda: gateway.keys[record.id].revoked, 1.0)
        assert took < 0.4, "the notification should beat the poll"


@pytest.mark.asyncio
async def test_a_lost_notification_is_made_good_within_a_second(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    record, _ = await store.create(name="x")
    await database.pool.execute("ALTER TABLE api_keys DISABLE TRIGGER api_keys_notify")
    async with watching(database, gateway):
        await store.revoke(record.id)
        await until(lambda: gateway.keys[record.id].revoked, 1.0)


@pytest.mark.asyncio
async def test_a_slow_writer_is_not_overtaken_and_missed(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    slow, _ = await store.create(name="slow")
    await database.pool.execute("ALTER TABLE api_keys DISABLE TRIGGER api_keys_notify")
    async with watching(database, gateway), database.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE api_keys SET name = 'later' WHERE id = $1", slow.id)
        quick = asyncio.create_task(store.create(name="quick"))
        await asyncio.sleep(1.2)  # two polls
        await transaction.commit()
        record, _ = await quick
        await until(lambda: record.id in gateway.keys, 1.0)
        assert gateway.keys[slow.id].name == "later"


@pytest.mark.asyncio
async def test_a_restart_of_the_database_is_survived(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    store, gateway = KeyStore(database), Gateway()
    kept, _ = await store.create(name="kept")
    async with watching(database, gateway) as watcher:
        await asyncio.to_thread(postgres.stop)
        await until(lambda: not watcher.healthy, 2.0)
        assert set(gateway.keys) == {kept.id}, "the last snapshot stays"
        assert not gateway.keys[kept.id].revoked
        await asyncio.to_thread(postgres.start)
        async with await Database.connect(database.url, max_size=1) as other:
            await KeyStore(other).revoke(kept.id)
            added, _ = await KeyStore(other).create(name="added")
        await until(lambda: watcher.healthy, 5.0)
        await until(lambda: added.id in gateway.keys and gateway.keys[kept.id].revoked, 1.0)


@pytest.mark.asyncio
async def test_a_database_restored_from_the_past_is_followed(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    lost, _ = await store.create(name="lost")
    async with watching(database, gateway) as watcher:
        synced = watcher.last_sync
        # The key and its version are gone as after a restore, and all connections with them.
        await database.pool.execute("TRUNCATE api_keys")
        await database.pool.execute("SELECT setval('api_keys_version', 1, false)")
        record, _ = await store.create(name="first")
        await database.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await until(lambda: gateway.keys[lost.id].revoked, 3.0)
        await until(lambda: record.id in gateway.keys, 1.0)
        assert watcher.last_sync > synced


@pytest.mark.asyncio
async def test_a_start_without_a_database_keeps_trying(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    gateway = Gateway()
    record, _ = await KeyStore(database).create(name="x")
    await asyncio.to_thread(postgres.stop)
    watcher = KeyWatcher(database, gateway.apply)
    try:
        assert not await watcher.start(timeout_s=0.3)
        assert (watcher.loaded, watcher.healthy, watcher.last_sync) == (False, False, 0.0)
        await asyncio.to_thread(postgres.start)
        await until(lambda: watcher.loaded, 5.0)
        assert set(gateway.keys) == {record.id}
    finally:
        await watcher.stop()


@pytest.mark.asyncio
async def test_a_callback_that_fails_is_called_again(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    record, _ = await store.create(name="x")
    failures = iter([True, True])

    def apply(records: list[KeyRecord]) -> None:
        if next(failures, False):
            raise RuntimeError("not now")
        gateway.apply(records)

    watcher = KeyWatcher(database, apply)
    try:
        assert await watcher.start(timeout_s=5.0)
        assert set(gateway.keys) == {record.id}
    finally:
        await watcher.stop()

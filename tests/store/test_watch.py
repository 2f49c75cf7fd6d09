"""The watch over API keys: quick, complete, and back after an outage."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from forebay.store import (
    AccountChanges,
    AccountStore,
    Correction,
    Database,
    EmbeddedPostgres,
    KeyChanges,
    KeyRecord,
    KeyStore,
    KeyWatcher,
    LimitChanges,
    Limits,
    LimitStore,
    NewPrice,
    Price,
    PriceStore,
    Spent,
    Subject,
    SubjectLimits,
)


class Gateway:
    """What the core does with records: keep the last of each id, and the last list of limits."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyRecord] = {}
        self.calls: list[list[KeyRecord]] = []
        self.limits: dict[str, SubjectLimits] = {}
        self.prices: list[Price] = []
        self.spent: dict[tuple[str, str, str | None], Spent] = {}
        self.order: list[str] = []

    def apply(self, records: list[KeyRecord]) -> None:
        self.order.append("keys")
        self.calls.append(records)
        self.keys.update({record.id: record for record in records})

    def apply_limits(self, subjects: list[SubjectLimits]) -> None:
        self.order.append("limits")
        self.limits = {subject.id: subject for subject in subjects}

    def apply_prices(self, prices: list[Price]) -> None:
        self.order.append("prices")
        self.prices = prices

    def apply_spent(self, spent: list[Spent]) -> None:
        assert spent
        self.order.append("spent")
        self.spent.update({(entry.scope, entry.id, entry.model): entry for entry in spent})


SOON_S = 5.0
"""More than any change takes on a busy machine."""


async def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


@contextlib.asynccontextmanager
async def watching(database: Database, gateway: Gateway) -> AsyncIterator[KeyWatcher]:
    watcher = KeyWatcher(
        database,
        gateway.apply,
        on_limits=gateway.apply_limits,
        on_spent=gateway.apply_spent,
    )
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
async def test_changes_are_told_and_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.store.watch._POLL_S", 60.0)
    store, gateway = KeyStore(database), Gateway()
    async with watching(database, gateway):
        record, _ = await store.create(name="x")
        await until(lambda: record.id in gateway.keys, SOON_S)
        rotated, _ = await store.rotate(record.id, overlap_s=60)
        await until(lambda: gateway.keys[record.id] == rotated, SOON_S)
        await store.revoke(record.id)
        await until(lambda: gateway.keys[record.id].revoked, SOON_S)


@pytest.mark.asyncio
async def test_a_lost_notification_is_made_good_within_a_second(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    record, _ = await store.create(name="x")
    await database.pool.execute("ALTER TABLE api_keys DISABLE TRIGGER api_keys_notify")
    async with watching(database, gateway):
        await store.revoke(record.id)
        await until(lambda: gateway.keys[record.id].revoked, SOON_S)


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
        await until(lambda: record.id in gateway.keys, SOON_S)
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
        await until(lambda: added.id in gateway.keys and gateway.keys[kept.id].revoked, SOON_S)


@pytest.mark.asyncio
async def test_a_database_restored_from_the_past_is_followed(database: Database) -> None:
    store, gateway = KeyStore(database), Gateway()
    lost, _ = await store.create(name="lost")
    async with watching(database, gateway) as watcher:
        synced = watcher.last_sync
        # The key and its version are gone as after a restore, and all connections with them.
        await database.pool.execute("TRUNCATE api_keys CASCADE")
        await database.pool.execute("SELECT setval('api_keys_version', 1, false)")
        record, _ = await store.create(name="first")
        await database.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await until(lambda: gateway.keys[lost.id].revoked, 3.0)
        await until(lambda: record.id in gateway.keys, SOON_S)
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


async def spend(database: Database, day: date, cost: str, **who: str) -> None:
    """Book spend as the writer of usage does."""
    who = {"account": "a", "key_id": "k", "model": "m", **who}
    await database.pool.execute(
        "INSERT INTO usage_daily (day, account, key_id, model, cost)"
        " VALUES ($1, $2, $3, $4, $5::text::numeric)",
        *(day, who["account"], who["key_id"], who["model"], cost),
    )


def today() -> date:
    return datetime.now(UTC).date()


@pytest.mark.asyncio
async def test_limits_are_there_before_keys_and_spend_after(database: Database) -> None:
    await AccountStore(database).create("acme", weight=3)
    await LimitStore(database).put(Subject("model", "m"), Limits(rpm=60))
    record, _ = await KeyStore(database).create(
        name="x", account="acme", budget="5", budget_period="total"
    )
    await spend(database, date(2020, 1, 1), "1.5", key_id=record.id)
    gateway = Gateway()
    async with watching(database, gateway):
        assert gateway.order == ["limits", "keys", "spent"]
        assert gateway.limits["acme"].weight == 3
        assert gateway.limits["acme"].limits == Limits()
        assert gateway.limits["m"].limits == Limits(rpm=60, rpm_burst=10)
        spent = gateway.spent["key", record.id, None]
        assert (spent.period_start, spent.spent_nano) == (0, 1_500_000_000)


@pytest.mark.asyncio
@pytest.mark.parametrize("notified", [True, False])
async def test_limits_arrive(
    database: Database, monkeypatch: pytest.MonkeyPatch, notified: bool
) -> None:
    if notified:
        monkeypatch.setattr("forebay.store.watch._POLL_S", 60.0)
    limits, accounts, gateway = LimitStore(database), AccountStore(database), Gateway()
    await accounts.create("acme")
    key, _ = await KeyStore(database).create(name="x", account="acme")
    if not notified:
        # Polling makes good what a notification did not tell.
        await database.pool.execute("ALTER TABLE api_keys DISABLE TRIGGER api_keys_notify")
        await database.pool.execute(
            "CREATE OR REPLACE FUNCTION limits_changed() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN UPDATE limits_version SET version = version + 1; RETURN NULL; END'"
        )
    async with watching(database, gateway):
        await limits.put(Subject("account", "acme"), Limits(concurrency=3))
        await until(lambda: "acme" in gateway.limits, SOON_S)
        assert gateway.limits["acme"].limits == Limits(concurrency=3)
        await limits.change(Subject("account", "acme"), LimitChanges(concurrency=4))
        await until(lambda: gateway.limits["acme"].limits.concurrency == 4, SOON_S)
        await accounts.update("acme", AccountChanges(weight=2))
        await until(lambda: gateway.limits["acme"].weight == 2, SOON_S)
        await limits.put(Subject("account", "acme"), Limits())
        await until(lambda: gateway.limits["acme"].limits == Limits(), SOON_S)
        await accounts.update("acme", AccountChanges(weight=1))
        await until(lambda: "acme" not in gateway.limits, SOON_S)
        await limits.put(Subject("model", "m"), Limits(rpm=6))
        await until(lambda: "m" in gateway.limits, SOON_S)
        await limits.put(Subject("key_model", key.id, "m"), Limits(tpm=5))
        await until(lambda: bool(gateway.keys[key.id].per_model), SOON_S)
        assert gateway.keys[key.id].per_model == {"m": Limits(tpm=5, tpm_burst=5)}
        assert set(gateway.limits) == {"m"}, "limits of keys travel with the keys"
        await limits.put(Subject("key_model", key.id, "m"), Limits())
        await until(lambda: not gateway.keys[key.id].per_model, SOON_S)


@pytest.mark.asyncio
async def test_an_account_that_is_only_added_disturbs_nobody(database: Database) -> None:
    gateway = Gateway()
    async with watching(database, gateway):
        await AccountStore(database).create("acme")
        await KeyStore(database).create(name="x", account="other")
        await until(lambda: len(gateway.keys) == 1, SOON_S)
        assert gateway.order == ["limits", "keys", "keys"]


@pytest.mark.asyncio
async def test_spend_of_every_subject_and_period(database: Database) -> None:
    keys, limits, gateway = KeyStore(database), LimitStore(database), Gateway()
    await AccountStore(database).create("acme")
    day = today()
    month = day.replace(day=1)
    starts = {
        "day": int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()),
        "month": int(datetime(month.year, month.month, 1, tzinfo=UTC).timestamp()),
        "total": 0,
    }
    key, _ = await keys.create(name="x", account="acme", budget="9", budget_period="day")
    subjects: list[tuple[Subject, Any]] = [
        (Subject("account", "acme"), "month"),
        (Subject("model", "m"), "total"),
        (Subject("key_model", key.id, "m"), "total"),
    ]
    for subject, period in subjects:
        await limits.put(subject, Limits(budget="9", budget_period=period))
    mine = {"account": "acme", "key_id": key.id, "model": "m"}
    await spend(database, day, "0.000000001", **mine)
    await spend(database, day, "0.00000001", **{**mine, "model": "n"})
    await spend(database, day, "0.0000001", **{**mine, "key_id": "other"})
    await spend(database, day, "0.000001", model="m")
    await spend(database, date(2020, 2, 2), "0.00001", **mine)
    async with watching(database, gateway):
        found = {
            who: (entry.period_start, entry.spent_nano) for who, entry in gateway.spent.items()
        }
    assert found == {
        ("key", key.id, None): (starts["day"], 11),
        ("account", "acme", None): (starts["month"], 111),
        ("model", "m", None): (0, 11_101),
        ("key_model", key.id, "m"): (0, 10_001),
    }


@pytest.mark.asyncio
async def test_a_new_budget_comes_with_what_was_spent(database: Database) -> None:
    keys, gateway = KeyStore(database), Gateway()
    record, _ = await keys.create(name="x")
    await spend(database, today(), "2", key_id=record.id)
    async with watching(database, gateway):
        assert not gateway.spent
        await keys.update(record.id, KeyChanges(budget="5", budget_period="day"))
        await until(lambda: bool(gateway.spent), 3.0)
        assert gateway.order[-2:] == ["keys", "spent"]
        assert gateway.spent["key", record.id, None].spent_nano == 2_000_000_000
        await LimitStore(database).put(
            Subject("model", "m"), Limits(budget="5", budget_period="day")
        )
        await until(lambda: ("model", "m", None) in gateway.spent, 3.0)


@pytest.mark.asyncio
async def test_spend_is_followed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.store.watch._SPENT_S", 0.1)
    gateway = Gateway()
    record, _ = await KeyStore(database).create(name="x", budget="5", budget_period="day")
    async with watching(database, gateway):
        assert gateway.spent["key", record.id, None].spent_nano == 0
        await spend(database, today(), "2", key_id=record.id)
        await until(lambda: gateway.spent["key", record.id, None].spent_nano > 0, SOON_S)


@pytest.mark.asyncio
async def test_a_slow_sum_keeps_no_change_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "SELECT pg_sleep(4), 'key' AS scope, 'k' AS id, NULL AS model, 0 AS period_start"
    monkeypatch.setattr("forebay.store.watch.SPENT", f"{slow}, 0::numeric AS spent")
    keys, gateway = KeyStore(database), Gateway()
    record, _ = await keys.create(name="x", budget="5", budget_period="day")
    watcher = KeyWatcher(
        database, gateway.apply, on_limits=gateway.apply_limits, on_spent=gateway.apply_spent
    )
    try:
        assert await watcher.start(timeout_s=0.5), "the start waits for it only so long"
        await keys.update(record.id, KeyChanges(budget="6"))
        await until(lambda: gateway.keys[record.id].budget == "6.00", 1.5)
        await keys.revoke(record.id)
        await until(lambda: gateway.keys[record.id].revoked, 1.5)
        assert not gateway.spent
        await until(lambda: bool(gateway.spent), 8.0)
        assert watcher.healthy
    finally:
        await watcher.stop()


@pytest.mark.asyncio
async def test_a_sum_that_fails_is_taken_again_and_ends_no_watch(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.store.watch._SPENT_S", 0.1)
    gateway = Gateway()
    failures = iter([True, True])

    def apply(spent: list[Spent]) -> None:
        if next(failures, False):
            raise RuntimeError("not now")
        gateway.apply_spent(spent)

    await KeyStore(database).create(name="x", budget="5", budget_period="day")
    watcher = KeyWatcher(database, gateway.apply, on_spent=apply)
    try:
        assert await watcher.start(timeout_s=5.0)
        assert gateway.order == ["keys", "spent"]
    finally:
        await watcher.stop()


@pytest.mark.asyncio
async def test_limits_survive_an_outage_and_are_current_after_it(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    gateway = Gateway()
    await LimitStore(database).put(Subject("model", "m"), Limits(rpm=6))
    async with watching(database, gateway) as watcher:
        await asyncio.to_thread(postgres.stop)
        await until(lambda: not watcher.healthy, 2.0)
        assert gateway.limits["m"].limits.rpm == 6, "the last snapshot stays"
        await asyncio.to_thread(postgres.start)
        async with await Database.connect(database.url, max_size=1) as other:
            await LimitStore(other).put(Subject("model", "m"), Limits(rpm=7))
        await until(lambda: gateway.limits["m"].limits.rpm == 7, 5.0)


@contextlib.asynccontextmanager
async def watching_prices(database: Database, gateway: Gateway) -> AsyncIterator[KeyWatcher]:
    watcher = KeyWatcher(
        database, gateway.apply, on_limits=gateway.apply_limits, on_prices=gateway.apply_prices
    )
    try:
        assert await watcher.start()
        yield watcher
    finally:
        await watcher.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize("notified", [True, False])
async def test_prices_arrive(
    database: Database, monkeypatch: pytest.MonkeyPatch, notified: bool
) -> None:
    if notified:
        monkeypatch.setattr("forebay.store.watch._POLL_S", 60.0)
    store, gateway = PriceStore(database), Gateway()
    if not notified:
        await database.pool.execute(
            "CREATE OR REPLACE FUNCTION prices_changed() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN UPDATE prices_version SET version = version + 1; RETURN NULL; END'"
        )
    first = await store.set(NewPrice(model="m", input="1", output="2", effective_from=1.0))
    await KeyStore(database).create(name="x")
    async with watching_prices(database, gateway):
        assert gateway.order == ["limits", "prices", "keys"]
        assert gateway.prices == [first]
        second = await store.set(NewPrice(model="m", input="3", output="4"))
        await until(lambda: len(gateway.prices) == 2, SOON_S)
        assert gateway.prices == [await store.get(first.id), second], "what is past comes too"
        (third,) = await store.correct(second.id, Correction(input="5"))
        await until(lambda: third in gateway.prices, SOON_S)
        assert [price.id for price in gateway.prices] == [first.id, third.id]
        assert gateway.order[3:] == ["prices", "prices"], "nothing else is read anew"


@pytest.mark.asyncio
async def test_prices_survive_an_outage_and_are_current_after_it(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    gateway = Gateway()
    await PriceStore(database).set(NewPrice(model="m", input="1", output="2"))
    async with watching_prices(database, gateway) as watcher:
        await asyncio.to_thread(postgres.stop)
        await until(lambda: not watcher.healthy, 2.0)
        assert len(gateway.prices) == 1, "the last snapshot stays"
        await asyncio.to_thread(postgres.start)
        async with await Database.connect(database.url, max_size=1) as other:
            await PriceStore(other).set(NewPrice(model="n", input="1", output="2"))
        await until(lambda: len(gateway.prices) == 2, 5.0)

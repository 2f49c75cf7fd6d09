"""Who is logged: kept, followed by watchers, and told to the core."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import msgspec
import pytest
from forebay.config.schema import PromptLogs
from forebay.store import (
    AccountChanges,
    AccountStore,
    Database,
    KeyChanges,
    KeyRecord,
    KeyStore,
    KeyWatcher,
    Limits,
    LimitStore,
    Subject,
    SubjectLimits,
    encode_limits,
    encode_records,
    log_settings,
)
from forebay.store.errors import BadValue

from tests.support.prompt_logs import BOTH


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_watchers_follow(database: Database) -> None:
    accounts, keys = AccountStore(database), KeyStore(database)
    await accounts.create("plain")
    await accounts.create("acme", log_level="metadata", log_sample=0.5)
    record, _ = await keys.create(name="x", account="acme", log_level="off")
    seen: dict[str, KeyRecord] = {}
    limits: dict[str, SubjectLimits] = {}

    def on_limits(subjects: list[SubjectLimits]) -> None:
        limits.clear()
        limits.update({subject.id: subject for subject in subjects})

    watcher = KeyWatcher(
        database, lambda found: seen.update({r.id: r for r in found}), on_limits=on_limits
    )
    assert await watcher.start()
    try:
        assert set(limits) == {"acme"}
        assert (limits["acme"].log_level, limits["acme"].log_sample) == ("metadata", 0.5)
        assert (seen[record.id].log_level, seen[record.id].log_sample) == ("off", None)
        await accounts.update("acme", AccountChanges(log_level="full"))
        await until(lambda: limits["acme"].log_level == "full")
        await accounts.update("acme", AccountChanges(log_sample=0.125))
        await until(lambda: limits["acme"].log_sample == 0.125)
        await keys.update(record.id, KeyChanges(log_level="full", log_sample=0.000001))
        await until(lambda: seen[record.id].log_sample == 0.000001)
        await accounts.create("third", log_level="metadata")
        await until(lambda: "third" in limits)
        await accounts.update("third", AccountChanges(log_level="off"))
        await until(lambda: "third" not in limits)
        # With limits of its own it is in the list all the same, and then says that it has no logs.
        await LimitStore(database).put(Subject("account", "plain"), Limits(rps=1))
        await until(lambda: "plain" in limits)
        assert (limits["plain"].log_level, limits["plain"].log_sample) == ("off", 1.0)
    finally:
        await watcher.stop()


async def test_a_sample_is_a_part_of_a_whole(database: Database) -> None:
    accounts, keys = AccountStore(database), KeyStore(database)
    await accounts.create("acme")
    record, _ = await keys.create(name="x", log_sample=0.3)
    assert record.log_sample == 0.3
    for wrong in (-0.1, 1.1, float("nan"), float("inf")):
        for change in (
            accounts.create("b", log_sample=wrong),
            accounts.update("acme", AccountChanges(log_sample=wrong)),
            keys.create(name="y", log_sample=wrong),
            keys.update(record.id, KeyChanges(log_sample=wrong)),
        ):
            with pytest.raises(BadValue, match="log_sample must be 0 to 1"):
                await change
    connection = await asyncpg.connect(database.url)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("UPDATE accounts SET log_level = 'all'")
    await connection.close()


def test_full_takes_a_key_to_encrypt_with() -> None:
    log_settings.check_level("full", BOTH)
    log_settings.check_level("full", None)
    log_settings.check_level("metadata", PromptLogs())
    with pytest.raises(BadValue, match="log_level full needs a key") as caught:
        log_settings.check_level("full", PromptLogs())
    assert caught.value.field == "log_level"


def test_what_the_core_is_told() -> None:
    key = KeyRecord(
        id="k", kind="inference", account="a", name="n", digest="", last4="", version=1,
        created_at=0, log_level="full", log_sample=0.25,
    )  # fmt: skip
    inherits = msgspec.structs.replace(key, log_level=None, log_sample=None)
    encoded: list[dict[str, Any]] = msgspec.json.decode(encode_records([key, inherits]))
    assert [(k["log_level"], k["log_sample"]) for k in encoded] == [("full", 0.25), (None, None)]
    subjects = [
        SubjectLimits(
            scope="account", id="a", model=None, limits=Limits(),
            log_level="metadata", log_sample=0.5,
        ),
        SubjectLimits(scope="model", id="m", model=None, limits=Limits(rps=1, rps_burst=1)),
    ]  # fmt: skip
    account, model = msgspec.json.decode(encode_limits(subjects))
    assert (account["log_level"], account["log_sample"]) == ("metadata", 0.5)
    assert "log_level" not in model

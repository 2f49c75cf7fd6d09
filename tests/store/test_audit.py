"""The audit log: every real change once, with who did it, and nothing secret."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from forebay.store import (
    AccountChanges,
    AccountStore,
    Database,
    KeyChanges,
    KeyStore,
    LimitChanges,
    Limits,
    LimitStore,
    Subject,
)
from forebay.store.actor import Actor, acting
from forebay.store.audit import AuditEntry, AuditStore, maintain
from forebay.store.database import open_connection
from forebay.store.errors import BadValue

ADMIN = Actor("key:abc", "req_1", "10.0.0.7")

Changes = Callable[[], Awaitable[Any]]


async def entries(database: Database, **wanted: Any) -> list[AuditEntry]:
    """The log from the oldest on."""
    return (await AuditStore(database).list(**wanted))[::-1]


async def entry(database: Database, change: Awaitable[Any]) -> AuditEntry:
    """The one entry that a change made."""
    before = {e.id for e in await entries(database)}
    with acting(ADMIN):
        await change
    (made,) = [e for e in await entries(database) if e.id not in before]
    assert (made.actor, made.request_id, made.remote) == ADMIN
    return made


def differing(made: AuditEntry) -> dict[str, tuple[Any, Any]]:
    assert made.before is not None
    assert made.after is not None
    assert made.before.keys() == made.after.keys()
    return {
        name: (value, made.after[name])
        for name, value in made.before.items()
        if value != made.after[name]
    }


async def test_accounts(database: Database) -> None:
    store = AccountStore(database)
    made = await entry(database, store.create("acme", name="Acme", weight=2))
    assert (made.action, made.subject_kind, made.subject_id) == (
        "account.create",
        "account",
        "acme",
    )
    assert made.before is None
    assert made.after is not None
    assert (made.after["name"], made.after["weight"]) == ("Acme", 2)
    assert made.at == pytest.approx(datetime.now(UTC).timestamp(), abs=60)
    made = await entry(database, store.update("acme", AccountChanges(weight=3.5, log_sample=0.25)))
    assert made.action == "account.change"
    assert differing(made) == {"weight": (2, 3.5), "log_sample": ("1", "0.25")}


async def test_keys(database: Database) -> None:
    store = KeyStore(database)
    await AccountStore(database).create("acme")
    made = await entry(
        database, store.create(name="shop", account="acme", budget="2.5", budget_period="day")
    )
    assert (made.action, made.subject_kind) == ("key.create", "key")
    assert made.after is not None
    assert (made.after["name"], made.after["budget"]) == ("shop", "2.5")
    key = made.subject_id
    made = await entry(database, store.update(key, KeyChanges(name="till", models=("a",))))
    assert made.action == "key.change"
    assert differing(made) == {"name": ("shop", "till"), "models": (None, ["a"])}
    made = await entry(database, store.rotate(key, overlap_s=60))
    assert made.action == "key.rotate"
    assert differing(made).keys() == {"last4", "rotated_at", "previous_expires_at"}
    made = await entry(database, store.revoke(key))
    assert made.action == "key.revoke"
    assert differing(made).keys() == {"revoked_at", "previous_expires_at"}


async def test_limits_belong_to_their_subject(database: Database) -> None:
    await AccountStore(database).create("acme")
    key, _ = await KeyStore(database).create(name="x", account="acme")
    store = LimitStore(database)
    for subject, kind in (
        (Subject("account", "acme"), "account"),
        (Subject("model", "llama"), "model"),
        (Subject("key_model", key.id, "llama"), "key"),
    ):
        # A key's limits on a model bump its version, which is no change of the key.
        made = await entry(database, store.put(subject, Limits(rpm=60)))
        assert (made.action, made.subject_kind) == ("limits.create", kind)
        assert made.subject_id == subject.id
        assert made.after is not None
        assert (made.after["rpm"], made.after["rpm_burst"]) == (60, 10)
        made = await entry(database, store.change(subject, LimitChanges(rpm=120)))
        assert made.action == "limits.change"
        assert differing(made) == {"rpm": (60, 120), "rpm_burst": (10, 20)}
        made = await entry(database, store.put(subject, Limits()))
        assert made.action == "limits.delete"
        assert made.after is None


async def test_nothing_new_is_no_change(database: Database) -> None:
    accounts, keys = AccountStore(database), KeyStore(database)
    await accounts.create("acme")
    key, _ = await keys.create(name="x", account="acme")
    await LimitStore(database).put(Subject("account", "acme"), Limits(rps=1))
    known = len(await entries(database))
    await accounts.update("acme", AccountChanges(name="acme", weight=1))
    await keys.update(key.id, KeyChanges(name="x"))
    await LimitStore(database).put(Subject("account", "acme"), Limits(rps=1))
    assert len(await entries(database)) == known


async def test_what_is_taken_back_was_not_done(database: Database) -> None:
    async with database.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO accounts (id, name) VALUES ('a', 'a')")
        assert await connection.fetchval("SELECT count(*) FROM audit_log") == 1
        await transaction.rollback()
    assert await entries(database) == []


async def test_who_acts_is_known_as_long_as_it_acts(database_url: str) -> None:
    # One connection, so that each has what the one before left.
    async with await Database.connect(database_url, max_size=1) as database:
        store = AccountStore(database)
        with acting(ADMIN):
            await store.create("a")
        await store.create("b")
        with acting(Actor("cli:ann@desk")):
            await store.create("c")
        found = [(e.actor, e.request_id, e.remote) for e in await entries(database)]
    assert found == [ADMIN, ("gateway", None, None), ("cli:ann@desk", None, None)]


async def test_actors_at_the_same_time_are_told_apart(database: Database) -> None:
    store = AccountStore(database)

    async def create(number: int) -> None:
        with acting(Actor(f"key:{number}")):
            await store.create(f"a{number}")

    await asyncio.gather(*(create(number) for number in range(20)))
    found = await entries(database)
    assert len(found) == 20
    assert all(e.actor == f"key:{e.subject_id[1:]}" for e in found)


async def test_a_connection_of_its_own_knows_its_actor(database: Database) -> None:
    for actor in (None, ADMIN):
        with acting(actor) if actor else contextlib.nullcontext():
            connection = await open_connection(database.url)
        await connection.execute("INSERT INTO accounts (id, name) VALUES ($1, 'a')", str(actor))
        await connection.close()
    assert [e.actor for e in await entries(database)] == ["gateway", "key:abc"]


async def test_a_change_by_hand_names_the_database_user(database: Database) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute("INSERT INTO accounts (id, name) VALUES ('a', 'a')")
        user = await connection.fetchval("SELECT session_user")
        await connection.execute("UPDATE accounts SET weight = 2")
        await connection.execute("DELETE FROM accounts")
    finally:
        await connection.close()
    found = await entries(database)
    assert [e.action for e in found] == ["account.create", "account.change", "account.delete"]
    assert {e.actor for e in found} == {f"sql:{user}"}


async def test_no_secret_is_in_it(database: Database) -> None:
    store = KeyStore(database)
    record, secret = await store.create(name="x")
    rotated, other = await store.rotate(record.id, overlap_s=60)
    # A digest put in by hand leaves a trace, though not itself.
    connection = await asyncpg.connect(database.url)
    await connection.execute("UPDATE api_keys SET digest = $1", b"\x17" * 32)
    rows = await connection.fetch("SELECT a::text AS line FROM audit_log a")
    await connection.close()
    log = "\n".join(row["line"] for row in rows)
    assert log.count("key.") == 3
    for text in (secret, other, secret[16:48], record.digest, rotated.digest, "17" * 32, "digest"):
        assert text not in log


async def test_it_is_append_only(database: Database) -> None:
    await AccountStore(database).create("a")
    connection = await asyncpg.connect(database.url)
    try:
        for statement in (
            "UPDATE audit_log SET actor = 'nobody'",
            "DELETE FROM audit_log",
            "TRUNCATE audit_log",
        ):
            with pytest.raises(asyncpg.RaiseError, match="append-only"):
                await connection.execute(statement)
    finally:
        await connection.close()
    assert len(await entries(database)) == 1


async def test_it_forgets_what_is_old_and_says_so(database: Database) -> None:
    now = datetime.now(UTC)
    connection = await asyncpg.connect(database.url)
    try:
        for days in (1, 29, 99, 100, 500):
            await connection.execute(
                "INSERT INTO audit_log (at, actor, action, subject_kind, subject_id)"
                " VALUES ($1, 'cli:a@b', 'x.change', 'x', $2)",
                now - timedelta(days=days, hours=1),
                str(days),
            )
        assert await maintain(connection, now, 100) == 2
        assert await maintain(connection, now, 100) == 0
        with pytest.raises(asyncpg.RaiseError, match="at least 30 days"):
            await maintain(connection, now, 29)
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await connection.execute("DELETE FROM audit_log")
    finally:
        await connection.close()
    *kept, said = await entries(database)
    assert [e.subject_id for e in kept] == ["1", "29", "99"]
    assert said.action == "audit.forget"
    assert said.after is not None
    assert said.after["rows"] == 2


async def test_a_table_of_any_kind_can_be_attached(database: Database) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await connection.execute(
            "CREATE TABLE fees (one boolean, amount numeric(20, 6), document text, seal bytea);"
            "SELECT audit_attach('fees', 'fee', 'fees');"
            "INSERT INTO fees VALUES (true, 12345678901234.567890, 'long', 'x')"
        )
    finally:
        await connection.close()
    (made,) = await entries(database)
    assert (made.action, made.subject_kind, made.subject_id) == ("fee.create", "fees", "")
    assert made.after == {"one": True, "amount": "12345678901234.56789"}


async def test_every_table_that_administrators_change_is_attached(database: Database) -> None:
    later = ["prices", "account_billing", "seller", "terms", "adjustments", "invoices"]
    connection = await asyncpg.connect(database.url)
    try:
        there = [
            name
            for name in later
            if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", name)
        ]
        rows = await connection.fetch(
            "SELECT tgrelid::regclass::text AS name FROM pg_trigger WHERE tgname = 'audit'"
        )
    finally:
        await connection.close()
    assert {row["name"] for row in rows} == {"accounts", "api_keys", "limits", *there}


async def test_listing(database: Database) -> None:
    store = AccountStore(database)
    for actor, account in (("key:a", "one"), ("key:b", "two"), ("cli:ann@desk", "one:two")):
        with acting(Actor(actor)):
            await store.create(account)

    async def found(**wanted: Any) -> list[str]:
        return [e.subject_id for e in await AuditStore(database).list(**wanted)]

    assert await found() == ["one:two", "two", "one"]
    assert await found(actor="key") == ["two", "one"]
    assert await found(actor="key:b") == ["two"]
    assert await found(actor="k") == []
    assert await found(subject="account:one") == ["one"]
    assert await found(subject="account:one:two") == ["one:two"]
    assert await found(subject="key") == []
    assert await found(since_s=60) == ["one:two", "two", "one"]
    assert await found(since_s=1e-6) == []
    first = (await AuditStore(database).list(limit=1))[0]
    assert await found(after=first.id, limit=1) == ["two"]
    for wrong in ({"actor": ""}, {"subject": "\0"}):
        with pytest.raises(BadValue):
            await found(**wrong)


async def test_notes_keep_what_they_are_given(database: Database) -> None:
    what = {"contains": 'a"\\é', "found": 3}
    with acting(ADMIN):
        await AuditStore(database).note("logs.search", "logs", "", what)
    (made,) = await entries(database)
    assert made.before is None
    assert made.after == json.loads(json.dumps(what))
    assert made.actor == "key:abc"

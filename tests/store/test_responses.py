"""Responses are their account's alone, and gone when their time is over."""

import base64
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from forebay.config.schema import PromptLogs
from forebay.store import Database, EmbeddedPostgres, StoreUnavailable
from forebay.store.errors import LogKeyMissing, LogUnreadable, ResponseExists
from forebay.store.prompt_cipher import PromptCipher
from forebay.store.responses import NewResponse, ResponseStore, sweep

SEALED = PromptLogs(keys={"k": base64.b64encode(b"k" * 32).decode()}, active="k")
CREATED = 1_764_150_000
DAY_S = 86_400.0


def store(
    database: Database, *, sealed: PromptLogs = SEALED, after_s: float | None = None
) -> ResponseStore:
    """after_s: seconds that have passed since the response was made."""
    clock = None
    if after_s is not None:
        now = datetime.fromtimestamp(CREATED, UTC) + timedelta(seconds=after_s)
        clock = lambda: now  # noqa: E731
    return ResponseStore(database, PromptCipher(sealed), clock)


def new(response_id: str = "resp_1", account: str = "acme", text: str = "swordfish") -> NewResponse:
    return NewResponse(
        *(response_id, account, "key", "m", None, CREATED),
        json.dumps({"id": response_id, "output": [text]}).encode(),
        json.dumps([{"role": "user", "content": text}]).encode(),
    )


async def test_saved_loaded_deleted(database: Database) -> None:
    shelf, one = store(database, after_s=60), new()
    await shelf.save(one, ttl_s=DAY_S)
    assert await shelf.load("acme", "resp_1") == (one.response, one.items)
    assert await shelf.response("acme", "resp_1") == one.response
    assert await shelf.items("acme", "resp_1") == one.items
    assert await shelf.load("other", "resp_1") is None
    assert await shelf.load("acme", "resp_2") is None
    assert not await shelf.delete("other", "resp_1")
    assert await shelf.delete("acme", "resp_1")
    assert not await shelf.delete("acme", "resp_1")
    assert await shelf.load("acme", "resp_1") is None


async def test_an_ask_that_comes_twice(database: Database) -> None:
    shelf = store(database, after_s=60)
    await shelf.save(new(), ttl_s=DAY_S)
    await shelf.save(new(text="again"), ttl_s=DAY_S)
    assert await shelf.response("acme", "resp_1") == new(text="again").response
    with pytest.raises(ResponseExists):
        await shelf.save(new(account="other"), ttl_s=DAY_S)


async def test_its_time(database: Database) -> None:
    await store(database).save(new(), ttl_s=DAY_S)
    await store(database).save(new("resp_2"), ttl_s=2 * DAY_S)
    assert await store(database, after_s=DAY_S - 1).load("acme", "resp_1") is not None
    late = store(database, after_s=DAY_S)
    assert await late.load("acme", "resp_1") is None
    assert await late.response("acme", "resp_1") is None
    assert not await late.delete("acme", "resp_1")
    async with database.pool.acquire() as connection:
        assert await sweep(connection, datetime.fromtimestamp(CREATED + DAY_S, UTC)) == 1
    rows = await database.pool.fetch("SELECT id FROM stored_responses")
    assert [row["id"] for row in rows] == ["resp_2"]


async def test_contents_are_encrypted_where_there_is_a_key(database: Database) -> None:
    plain = store(database, sealed=PromptLogs(), after_s=1)
    shelf = store(database, after_s=1)
    await plain.save(new("resp_plain"), ttl_s=DAY_S)
    await shelf.save(new("resp_sealed"), ttl_s=DAY_S)
    rows = {row["id"]: row for row in await database.pool.fetch("SELECT * FROM stored_responses")}
    assert b"swordfish" in rows["resp_plain"]["response"]
    for part in ("response", "items"):
        assert b"swordfish" not in rows["resp_sealed"][part]
    assert await shelf.load("acme", "resp_plain") is not None
    assert await shelf.load("acme", "resp_sealed") is not None
    with pytest.raises(LogKeyMissing):
        await plain.load("acme", "resp_sealed")
    await database.pool.execute("UPDATE stored_responses SET response = items")
    with pytest.raises(LogUnreadable):
        await shelf.response("acme", "resp_sealed")
    assert await shelf.items("acme", "resp_sealed") is not None
    await database.pool.execute("UPDATE stored_responses SET row_id = $1", uuid4())
    with pytest.raises(LogUnreadable):
        await shelf.items("acme", "resp_sealed")


@pytest.mark.parametrize("odd", ["", "a\0b", "x" * 1000, "../resp_1", "resp_1'--", "\ud800"])
async def test_ids_that_are_none(database: Database, odd: str) -> None:
    shelf = store(database)
    assert await shelf.load("acme", odd) is None
    assert not await shelf.delete("acme", odd)


async def test_without_the_database_it_says_so(
    database: Database, postgres: EmbeddedPostgres
) -> None:
    shelf = store(database)
    postgres.stop()
    for work in (shelf.save(new(), ttl_s=1), shelf.load("a", "b"), shelf.delete("a", "b")):
        with pytest.raises(StoreUnavailable):
            await work

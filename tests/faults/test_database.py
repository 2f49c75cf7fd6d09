"""The database goes away: known keys work on, usage waits, and all heals by itself."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from forebay.store import Database, EmbeddedPostgres, KeyStore

from tests.support.databases import run_apart
from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until
from tests.support.wire import CHAT, chat


def settings(upstream: ScriptedUpstream) -> dict[str, Any]:
    return {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }


def fresh(server: EmbeddedPostgres, name: str) -> str:
    """A migrated database on this server."""
    server.start()

    async def make() -> None:
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        async with await Database.connect(server.url_of(name), max_size=1) as database:
            await database.migrate()

    run_apart(make)
    return server.url_of(name)


def made_key(url: str) -> Key:
    async def make() -> Key:
        async with await Database.connect(url, max_size=1) as database:
            record, secret = await KeyStore(database).create(name="test")
            return Key(record.id, secret)

    return run_apart(make)


def test_away_at_the_start(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    url = fresh(own_postgres, "at_start")
    key = made_key(url)
    own_postgres.stop()
    process = Gateway(tmp_path / "gateway", settings(upstream), url)
    process.start()
    try:
        got = process.call(CHAT, chat(), key=key.secret)
        brief = (503, "service_unavailable_error", "service_unavailable", None)
        assert got.brief() == brief
        assert got.header("retry-after") == "1"
        health = process.call("/readyz")
        assert health.status == 503
        assert health.json()["checks"]["database"].startswith("down")
        assert process.call("/healthz").status == 200
        assert upstream.requests == []
        own_postgres.start()
        until(lambda: process.call("/readyz").status == 200, "healing", 15)
        assert process.call(CHAT, chat(), key=key.secret).status == 200
        assert len(process.usage(1, key_id=key.id)) == 1
    finally:
        own_postgres.start()
        assert process.stop() == 0
    assert "Traceback (most recent" not in process.log()


def test_restarted_while_running(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    url = fresh(own_postgres, "restarted")
    process = Gateway(tmp_path / "gateway", settings(upstream), url)
    process.start()
    try:
        key = process.key()
        assert process.call(CHAT, chat(), key=key.secret).status == 200
        own_postgres.stop()
        statuses = [process.call(CHAT, chat(), key=key.secret).status for _ in range(25)]
        assert statuses == [200] * 25
        until(lambda: process.health()["status"] == "degraded", "degraded")
        health = process.call("/readyz")
        assert health.status == 200, "known keys work, so traffic may come"
        assert health.json()["checks"]["database"].startswith("degraded")
        own_postgres.start()
        assert process.call(CHAT, chat(), key=key.secret).status == 200
        until(lambda: process.health()["checks"]["database"] == "ok", "healing", 15)
        rows = process.usage(27, key_id=key.id, timeout_s=30)
        assert len({row["event_id"] for row in rows}) == 27
        assert {row["outcome"] for row in rows} == {"ok"}
        late = process.key()
        assert process.call(CHAT, chat(), key=late.secret).status == 200
    finally:
        own_postgres.start()
        assert process.stop() == 0


def test_an_unknown_key_may_be_a_new_one_while_the_database_is_away(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    """It may have been made since the last look, so it is not called wrong."""
    from forebay.store import generate

    url = fresh(own_postgres, "unknown")
    process = Gateway(tmp_path / "gateway", settings(upstream), url)
    process.start()
    try:
        unknown = generate("inference").key
        assert process.call(CHAT, chat(), key=unknown).status == 401
        own_postgres.stop()
        until(lambda: process.health()["checks"]["database"] != "ok", "degraded")
        assert process.call(CHAT, chat(), key=unknown).status == 503
        assert process.call(CHAT, chat(), key=unknown[:-1]).status == 401
        own_postgres.start()
        until(lambda: process.call(CHAT, chat(), key=unknown).status == 401, "healing", 15)
    finally:
        own_postgres.start()
        assert process.stop() == 0


@pytest.mark.parametrize("missing", ["database", "upstream"])
def test_what_serving_needs(tmp_path: Path, upstream: ScriptedUpstream, missing: str) -> None:
    """One clear line, and the status of a wrong configuration."""
    config = {} if missing == "upstream" else settings(upstream)
    url = "" if missing == "database" else "postgresql://nobody@127.0.0.1:1/x"
    process = Gateway(tmp_path / "gateway", config, url)
    process.launch()
    assert process.popen is not None
    assert process.popen.wait(10) == 2
    lines = process.log().strip().splitlines()
    assert len(lines) == 1, lines
    assert ("DATABASE_URL" if missing == "database" else "INFERENCE_URL") in lines[0]


async def test_rows_are_whole(gateway: Gateway, key: Key, upstream: ScriptedUpstream) -> None:
    """Every column of a finished request holds what happened."""
    got = await asyncio.to_thread(gateway.call, CHAT, chat("also-tiny"), key=key.secret)
    row = await asyncio.to_thread(gateway.usage_of, got)
    expected = {
        "request_id": got.header("x-request-id"),
        "account": "default",
        "key_id": key.id,
        "model_asked": "also-tiny",
        "model_served": "tiny",
        "upstream": "raw",
        "front": "http",
        "endpoint": "chat",
        "stream": False,
        "outcome": "ok",
        "status": 200,
        "finish_reason": "stop",
        "error_kind": None,
        "attempts": 1,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "source": "reported",
    }
    assert {name: row[name] for name in expected} == expected
    assert row["admitted_at"] <= row["first_byte_at"] <= row["ended_at"]
    assert row["event_id"].version == 7
    assert 0 < row["ttft_ms"] <= row["duration_ms"] < 5_000

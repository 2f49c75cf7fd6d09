"""The database is away for long, while others share the spool, and when the gateway stops."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres

from tests.faults.test_database import fresh
from tests.support.many import Got, all_of, ask
from tests.support.memory import anonymous_bytes
from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request

RATE, AWAY_S = 200, 10.0
"""Requests a second, and for how long."""
MEMORY = 4 * 1024 * 1024
"""Bytes by which a gateway may grow meanwhile: thousands of events held in memory are more."""


def settings(upstream: ScriptedUpstream, spool: Path, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "spool": {"dir": str(spool), **more},
    }


def spools(folder: Path) -> list[Path]:
    """Spools in a folder, whatever database they are for."""
    return sorted(folder.glob("*/*"))


def paced(gateway: Gateway, key: Key, count: int) -> list[Got]:
    """`count` requests, `RATE` a second as far as the machine can."""
    data = request(CHAT, chat(), key=key.secret, close=True)
    began = time.monotonic()

    async def one(number: int) -> Got:
        await asyncio.sleep(began + number / RATE - time.monotonic())
        return await ask(gateway.port, data)

    return all_of([one(number) for number in range(count)], 64)


def test_memory_does_not_grow_with_what_waits(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    """`benches/load/away.py` does it for as long as one likes."""
    url = fresh(own_postgres, "away_long")
    gateway = Gateway(tmp_path / "gateway", settings(upstream, tmp_path / "spool"), url)
    gateway.start()
    try:
        key = gateway.key()
        served = paced(gateway, key, RATE * 2)
        own_postgres.stop()
        served += paced(gateway, key, RATE * 2)
        until(lambda: gateway.health()["status"] == "degraded", "degraded")
        before = anonymous_bytes(gateway.pid)
        served += paced(gateway, key, int(RATE * AWAY_S))
        grown = anonymous_bytes(gateway.pid) - before
        assert {got.status for got in served} == {200}
        assert grown < MEMORY, f"{grown:,} bytes more"
        health = gateway.call("/readyz")
        assert health.status == 200
        assert "events wait for the database" in health.json()["checks"]["usage"]
        own_postgres.start()
        rows = gateway.usage(len(served), key_id=key.id, timeout_s=60)
        assert len({row["event_id"] for row in rows}) == len(served)
    finally:
        own_postgres.start()
        assert gateway.stop() == 0
    assert "Traceback (most recent" not in gateway.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_leaves_to_the_next_what_cannot_be_shipped(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream, workers: int
) -> None:
    url = fresh(own_postgres, f"stop_{workers}")
    spool = tmp_path / "spool"
    config = settings(upstream, spool)
    first = Gateway(tmp_path / "first", config, url, workers=workers)
    first.start()
    try:
        key = first.key()
        own_postgres.stop()
        for _ in range(50):
            assert first.call(CHAT, chat(), key=key.secret).status == 200
        began = time.monotonic()
        assert first.stop(timeout_s=30) == 0
        assert time.monotonic() - began < 15, "it does not wait for the database"
        assert 1 <= len(spools(spool)) <= workers
        assert "waits in the spool for the next process" in first.log()
    finally:
        own_postgres.start()
    second = Gateway(tmp_path / "second", config, url, workers=workers)
    second.start()
    try:
        rows = second.usage(50, key_id=key.id)
        assert {row["outcome"] for row in rows} == {"ok"}
        until(lambda: len(spools(spool)) == workers, "what was left is removed")
        assert second.call(CHAT, chat(), key=key.secret).status == 200
    finally:
        assert second.stop() == 0
    assert spools(spool) == []
    assert len(first.usage(51, key_id=key.id)) == 51


def test_gateways_with_other_databases_leave_each_others_spools_alone(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    spool = tmp_path / "spool"
    config = settings(upstream, spool)
    urls = [fresh(own_postgres, name) for name in ("one_spool_a", "one_spool_b")]
    first, second = (
        Gateway(tmp_path / name, config, url) for name, url in zip("ab", urls, strict=True)
    )
    for gateway in (first, second):
        gateway.start()
    try:
        keys = [gateway.key() for gateway in (first, second)]
        own_postgres.stop()
        for number, gateway in enumerate((first, second)):
            for _ in range(10 + number):
                assert gateway.call(CHAT, chat(), key=keys[number].secret).status == 200
        assert first.popen is not None
        first.popen.kill()
        first.popen.wait()
        first.ready_file.unlink()
        own_postgres.start()
        assert len(second.usage(11, timeout_s=30, key_id=keys[1].id)) == 11
        # The dead one's spool is looked at every second, were it this one's to take over.
        time.sleep(3)
        assert len(spools(spool)) == 2
        assert second.usage(0, account="default", key_id=keys[0].id) == []
        first.start()
        assert len(first.usage(10, timeout_s=30, key_id=keys[0].id)) == 10
        assert first.usage(0, key_id=keys[1].id) == []
    finally:
        own_postgres.start()
        for gateway in (first, second):
            assert gateway.stop() == 0
    assert spools(spool) == []


def test_answers_end_once_they_are_recorded_for_good(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    config = settings(upstream, tmp_path / "spool", durability="machine")
    gateway = Gateway(tmp_path / "gateway", config, database_url)
    gateway.start()
    try:
        key = gateway.key()
        assert gateway.call(CHAT, chat(), key=key.secret).status == 200
        many = paced(gateway, key, 100)
        assert {got.status for got in many} == {200}

        def script(connection: Any, _: Any) -> None:
            connection.begin()
            connection.event(delta("a"))
            connection.event(finish())
            connection.event({"choices": [], "usage": usage(4, 1)})
            connection.event("[DONE]")
            connection.end()

        upstream.script = script
        with Client(gateway.port) as client:
            for _ in range(10):
                client.send(request(CHAT, chat(stream=True), key=key.secret))
                answer = client.answer()
                assert answer.complete
                assert answer.data()[-1] == "[DONE]"
        rows = gateway.usage(111, key_id=key.id)
        assert {row["outcome"] for row in rows} == {"ok"}
    finally:
        assert gateway.stop() == 0

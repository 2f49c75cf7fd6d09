"""Cores that share limits over a real Valkey, in its good and its bad moments."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from forebay._core import Core

from tests.support.sharing import TAKEN, Node, eventually, flood, nodes, rpm
from tests.support.valkey import SlowWay, Valkey


async def test_three_nodes_together_keep_one_limit(cores: list[Core], valkey: Valkey) -> None:
    async with nodes(cores, valkey.url) as made:
        leases = [rpm(node, 1_200, 200, "key:three") for node in made]
        began = time.monotonic()
        passed = await flood(made, leases, 4.0)
        ideal = 200 + 20 * (time.monotonic() - began)
        # Each may hold and owe 10.
        assert 0.9 * ideal <= passed <= ideal + 3 * 20


async def test_what_one_node_spent_the_others_cannot(cores: list[Core], valkey: Valkey) -> None:
    async with nodes(cores[:2], valkey.url) as made:
        one, other = (rpm(node, 60, 20, "key:spent") for node in made)
        for _ in range(20):
            assert await made[0].take(one)
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
        passed = [await made[1].take(other) for _ in range(10)]
        assert sum(passed) <= 2


async def test_permits_and_money_are_exact(cores: list[Core], valkey: Valkey) -> None:
    async with nodes(cores, valkey.url) as made:
        permits = [n.leases.permits("key:p", "acme", capacity=10) for n in made]
        found = await asyncio.gather(
            *(node.take(lease) for node, lease in zip(made, permits, strict=True) for _ in range(9))
        )
        assert 7 <= sum(found) <= 10
        money = [n.leases.money("key:m/2026-11", "acme", capacity=1_000) for n in made]
        spent = 0
        for _ in range(200):
            for node, lease in zip(made, money, strict=True):
                if await node.take(lease, 9):
                    lease.settle(9, 5)
                    spent += 5
            if spent > 985:
                break
            await asyncio.sleep(0.002)
        assert spent <= 1_000


@pytest.mark.parametrize("fault", ["killed", "paused", "slowed"])
async def test_without_the_store_nodes_spend_their_shares_and_heal(
    cores: list[Core], own_valkey: Valkey, slow_way: SlowWay, fault: str
) -> None:
    url = f"redis://127.0.0.1:{slow_way.port}"
    async with nodes(cores, url) as made:
        leases = [rpm(node, 1_200, 60) for node in made]
        await flood(made, leases, 2.0)
        assert all(node.syncer.state() == "ok" for node in made)
        if fault == "killed":
            own_valkey.kill()
        elif fault == "paused":
            own_valkey.pause()
        else:
            slow_way.delay_s = 0.1
        await flood(made, leases, 1.0)
        assert all("limits are 1/3" in node.syncer.state() for node in made)
        for node in made:
            node.slowest_s = 0.0
        passed = await flood(made, leases, 3.0)
        # 20 a second together, and what their shares had kept.
        assert 50 <= passed <= 60 + 20
        assert max(node.slowest_s for node in made) < 0.05
        if fault == "killed":
            own_valkey.start()
        elif fault == "paused":
            own_valkey.resume()
        else:
            slow_way.delay_s = 0.0
        await eventually(lambda: all(n.syncer.state() == "ok" for n in made), "all well")
        await flood(made, leases, 2.0)
        passed = await flood(made, leases, 3.0)
        assert 45 <= passed <= 60 + 20
        # One slow call sends a lease to its share for a quarter of a second.
        await eventually(lambda: not any(lease.in_share for lease in leases), "all shared")


async def test_a_start_without_the_store_spends_the_share_of_the_expected_nodes(
    cores: list[Core], own_valkey: Valkey
) -> None:
    own_valkey.kill()
    node = Node(cores[0], own_valkey.url, expected=4)
    node.syncer.start()
    try:
        await eventually(lambda: node.syncer.state() != "ok", "the loss is seen")
        lease = rpm(node, 600, 100)
        passed = [await node.take(lease) for _ in range(100)]
        assert 20 <= sum(passed) <= 25
        hard = node.leases.rate("h", "acme", units=600, period_s=60, burst=100, deny=True)
        assert not await node.take(hard)
        own_valkey.start()
        await eventually(lambda: node.syncer.state() == "ok", "the return is seen")
        await eventually(lambda: hard.take(1) == TAKEN, "hard limits admit again")
    finally:
        await node.syncer.stop()


async def test_a_node_that_ends_gives_everything_back(cores: list[Core], valkey: Valkey) -> None:
    async with nodes(cores[:1], valkey.url) as (node,):
        permits = node.leases.permits("key:end", "acme", capacity=8)
        assert await node.take(permits, 8)
        permits.settle(8, 0)
    async with nodes(cores[1:2], valkey.url) as (other,):
        assert await other.take(other.leases.permits("key:end", "acme", capacity=8), 8)


async def test_the_script_is_sent_again_when_the_server_has_forgotten_it(
    cores: list[Core], valkey: Valkey
) -> None:
    async with nodes(cores[:1], valkey.url) as (node,):
        with redis.Redis.from_url(valkey.url) as client:
            client.script_flush()
        lease = node.leases.permits("key:script", "acme", capacity=2)
        assert await node.take(lease)
        assert node.syncer.state() == "ok"


async def test_a_cluster(cores: list[Core], tmp_path: Path) -> None:
    server = Valkey(tmp_path / "cluster", cluster=True)
    server.start()
    try:
        async with nodes(cores[:2], server.url) as made:
            for tag in ("acme", "other", "model:m"):
                for node in made:
                    permits = node.leases.permits(f"{tag}/p", tag, capacity=3)
                    assert await node.take(permits)
            assert all(node.syncer.state() == "ok" for node in made)
    finally:
        server.stop()


async def test_a_cluster_that_cannot_be_reached_is_a_store_that_is_away(
    cores: list[Core],
) -> None:
    node = Node(cores[0], "redis+cluster://127.0.0.1:1", expected=4)
    node.syncer.start()
    try:
        await eventually(lambda: node.syncer.state() != "ok", "the loss is seen")
        probes = await eventually_probed(node)
        await eventually(lambda: failures(node) > probes, "it is tried again")
        assert await node.take(rpm(node, 600, 100))
    finally:
        await node.syncer.stop()


def failures(node: Node) -> int:
    """Calls that failed in a row."""
    return node.syncer._server("").breaker._failed


async def eventually_probed(node: Node) -> int:
    """Failed calls until now, one of them of a probe."""
    await eventually(lambda: failures(node) > 3, "a probe has failed")
    return failures(node)


async def test_a_fault_of_the_client_counts_as_a_failure_and_ends_nothing(
    cores: list[Core], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> list[int]:
        raise LookupError("not one of its own errors")

    async with nodes(cores[:1], valkey.url) as (node,):
        with monkeypatch.context() as patch:
            patch.setattr(node.syncer._store, "call", broken)
            lease = rpm(node, 600, 100, "key:fault")
            await eventually(lambda: node.syncer.state() != "ok", "the loss is seen")
            assert await node.take(lease)
        await eventually(lambda: node.syncer.state() == "ok", "the return is seen")
        monkeypatch.setattr(node.syncer._store, "call", broken)
        await node.syncer.stop()


async def test_a_connection_may_take_longer_than_a_command(
    cores: list[Core], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = asyncio.open_connection

    async def slow(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0.1)
        return await connect(*args, **options)

    monkeypatch.setattr(asyncio, "open_connection", slow)
    async with nodes(cores[:1], valkey.url) as (node,):
        permits = node.leases.permits("key:far", "acme", capacity=2)
        assert await node.take(permits)
        assert failures(node) == 0
        assert node.syncer.state() == "ok"

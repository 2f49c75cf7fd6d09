"""Limits over a Redis Cluster of three servers, all well and one by one away."""

import asyncio
from collections.abc import Iterator

import pytest
import redis
from forebay._core import Core, Lease
from forebay.limits.store import LimitStore

from tests.support.sharing import Node, eventually, flood, nodes
from tests.support.valkey import Cluster

PER_S = 20
BURST = 60
SLACK = 3 * 6
"""What three nodes hold and owe at most: a twentieth of the burst, each, of both."""
PAUSE_S = 0.01
SPAN_S = 1.2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three servers."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """Three servers that are well."""
    running.wait_well()
    return running


def account_at(cluster: Cluster, shard: int, prefix: str) -> str:
    """An account whose limits are on this shard."""
    return next(
        name for name in (f"{prefix}{i}" for i in range(1_000)) if cluster.of(name) == shard
    )


def rates(made: list[Node], account: str, key: str = "k") -> list[Lease]:
    """Each node's lease of one limit."""
    return [
        node.leases.rate(f"{account}/{key}", account, units=PER_S, period_s=1, burst=BURST)
        for node in made
    ]


async def test_accounts_are_spread_and_each_limit_holds(
    cores: list[Core], cluster: Cluster
) -> None:
    accounts = [account_at(cluster, shard, "spread") for shard in range(3)]
    async with nodes(cores, cluster.url) as made:
        limits = [rates(made, account) for account in accounts]
        began = asyncio.get_running_loop().time()
        passed = await asyncio.gather(*(flood(made, each, 1.5, PAUSE_S) for each in limits))
        ideal = BURST + PER_S * (asyncio.get_running_loop().time() - began)
        for one in passed:
            assert 0.8 * ideal <= one <= ideal + SLACK
        # Holdings are exact: of ten permits for three nodes, ten are out.
        for account in accounts:
            permits = [n.leases.permits(f"{account}/p", account, capacity=10) for n in made]
            asked = [n.take(p) for n, p in zip(made, permits, strict=True) for _ in range(9)]
            assert 7 <= sum(await asyncio.gather(*asked)) <= 10
        # All of an account's limits are told in one call, so they must be in one slot.
        for shard, account in enumerate(accounts):
            many = [rates(made, account, f"key{i}") for i in range(20)]
            for leases in many:
                assert await made[0].take(leases[0])
            wanted = {f"fb:{{{account}}}:{account}/key{i}" for i in range(20)}
            await eventually(
                lambda shard=shard, wanted=wanted: wanted <= set(cluster.keys()[shard]),  # type: ignore[misc]
                "all are told",
            )
        for shard, found in enumerate(cluster.keys()):
            there = {key for key in found if "spread" in key}
            assert all(f"{{{accounts[shard]}}}" in key for key in there)
        assert [node.syncer.state() for node in made] == ["ok"] * 3


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_one_server_away_costs_the_others_nothing(
    cores: list[Core], cluster: Cluster, fault: str
) -> None:
    # The one with the count of participants once, and another once.
    gone = (cluster.of("nodes") + (fault == "paused")) % 3
    server = cluster.shards[gone]
    accounts = [account_at(cluster, shard, fault) for shard in range(3)]
    async with nodes(cores, cluster.url) as made:
        limits = [rates(made, account) for account in accounts]
        await asyncio.gather(*(flood(made, each, 0.6, PAUSE_S) for each in limits))
        await eventually(lambda: all(n.leases.live == 3 for n in made), "all have heard of all")
        if fault == "killed":
            server.kill()
        else:
            server.pause()
        try:
            await asyncio.gather(*(flood(made, each, 0.6, PAUSE_S) for each in limits))
            told = "degraded: 1 of 3 servers of the store away for"
            for node in made:
                await eventually(lambda n=node: n.syncer.state().startswith(told), told)  # type: ignore[misc]
                assert node.syncer.state().endswith("limits there are 1/3 of each")
            # Of the others, one node may have all, less what was owed: a share is a third.
            passed = await asyncio.gather(
                *(
                    flood(made if shard == gone else made[:1], limits[shard], SPAN_S, PAUSE_S)
                    for shard in range(3)
                )
            )
            for shard, one in enumerate(passed):
                assert 0.5 * PER_S * SPAN_S <= one <= PER_S * SPAN_S + SLACK, passed
                # One slow call sends a lease to its share for a quarter of a second.
                await eventually(
                    lambda s=shard: [one.in_share for one in limits[s]] == [s == gone] * 3,  # type: ignore[misc]
                    "only its own limits are in shares",
                )
        finally:
            if fault == "killed":
                await asyncio.to_thread(server.start)
            else:
                server.resume()
        await eventually(lambda: all(n.syncer.state() == "ok" for n in made), "all well", 8.0)
        passed = await asyncio.gather(*(flood(made, each, 1.0, PAUSE_S) for each in limits))
        assert 0.7 * PER_S <= passed[gone] <= BURST + PER_S + SLACK
        await eventually(lambda: not any(one.in_share for each in limits for one in each), "healed")


async def test_all_away_is_the_store_away_and_each_heals_by_itself(
    cores: list[Core], cluster: Cluster
) -> None:
    counts = cluster.of("nodes")
    others = [shard for shard in range(3) if shard != counts]
    accounts = [account_at(cluster, shard, "all") for shard in range(3)]
    async with nodes(cores[:1], cluster.url) as (node,):
        limits = [rates([node], account)[0] for account in accounts]
        for lease in limits:
            assert await node.take(lease)
        for server in cluster.shards:
            server.pause()
        try:
            await eventually(lambda: "store away" in node.syncer.state(), "the loss")
            assert node.slowest_s < 0.5
            assert await node.take(limits[others[0]])
            # Not the one that is asked for the number of participants. One alone would not do:
            # what cannot reach most of its cluster takes no writes.
            for shard in others:
                cluster.shards[shard].resume()
            await eventually(lambda: "1 of 3 servers" in node.syncer.state(), "two are back")
            await eventually(
                lambda: not any(limits[shard].in_share for shard in others), "shared again"
            )
            assert limits[counts].in_share
        finally:
            for server in cluster.shards:
                server.resume()


async def test_a_slot_that_moves_takes_its_limits_along(cluster: Cluster) -> None:
    account = account_at(cluster, 0, "moving")
    key = f"fb:{{{account}}}:k"
    # Ten at once, and one a second: take two each time.
    take = ["me", "r", "1", "1000000000", "10", "0", "0", "2", "2", "1", "0", "0"]
    store = LimitStore(cluster.url)
    old, new = cluster.shards[:2]
    slot = cluster.slot_of(account)
    try:
        assert await store.call([key], take) == [2, 8, 0, 0]
        before = store.server_of(key)
        assert before.endswith(f":{old.port}")
        with redis.Redis(port=old.port) as at_old, redis.Redis(port=new.port) as at_new:
            ids = [at.execute_command("CLUSTER", "MYID") for at in (at_old, at_new)]
            at_new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            at_old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            at_old.execute_command("MIGRATE", "127.0.0.1", new.port, key, 0, 1_000)
            assert await store.call([key], take) == [2, 6, 0, 0]
            for at in (at_new, at_old):
                at.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        assert await store.call([key], take) == [2, 4, 0, 0]
        await eventually(lambda: store.server_of(key).endswith(f":{new.port}"), "it is known")
        assert await store.call([key], take) == [2, 2, 0, 0]
        assert store.server_of(key) in store.servers()
    finally:
        await store.close()

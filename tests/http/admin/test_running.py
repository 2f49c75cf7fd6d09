"""The admin API of a running gateway: what is set there is what requests meet."""

import json
import os
import signal
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from forebay.store import EmbeddedPostgres

from tests.support.admin import Admin, everywhere
from tests.support.databases import create_database, run_apart
from tests.support.processes import Engine, Gateway, Key
from tests.support.wait import until

PRICE = {"input": "1.5", "cached": "0.5", "output": "4"}
"""Dollars for 10^6 tokens: 1,500, 500 and 4,000 nano-dollars a token."""


@pytest.fixture(
    scope="module",
    params=[("core", 1), ("granian", 1), ("core", 2)],
    ids=["core", "granian", "workers"],
)
def running(
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    sim: Engine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway with a model that costs something and one that has no price."""
    server, workers = request.param
    name = f"admin_{server}_{workers}"
    url = create_database(postgres, name)
    target = {"targets": [{"upstream": "sim", "model": "sim"}]}
    config = {
        "listen": {"server": server},
        "upstreams": {"sim": {"kind": "sglang", "url": sim.url}},
        "models": {"priced": {**target, "price": PRICE, "aliases": ["alias"]}, "free": target},
    }
    folder = tmp_path_factory.mktemp(name)
    gateway = Gateway(folder, config, url, workers=workers)
    gateway.start()
    until(lambda: gateway.health()["checks"]["upstream:sim"] == "ok", "the engine")
    yield gateway
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()


@pytest.fixture
def admin(running: Gateway) -> Admin:
    return Admin(running)


def test_a_change_meets_the_next_requests(admin: Admin) -> None:
    key = admin.make(rpm=6000)
    limit = "x-ratelimit-limit-requests"
    assert admin.ask(key).header(limit) == "6000"
    admin.send("PATCH", f"/keys/{key.id}", {"rpm": 1200})
    everywhere("the new limit", lambda: admin.ask(key).header(limit) == "1200")
    admin.send("PUT", "/models/free/limits", {"rpm": 600})
    everywhere("the model's", lambda: admin.ask(key, "free").header(limit) == "600")
    admin.send("PUT", f"/keys/{key.id}/models/free/limits", {"rpm": 300})
    everywhere("on the model", lambda: admin.ask(key, "free").header(limit) == "300")
    assert admin.ask(key).header(limit) == "1200", "other models are as before"
    admin.send("DELETE", "/models/free/limits")
    admin.send("DELETE", f"/keys/{key.id}/models/free/limits")
    everywhere("no more", lambda: admin.ask(key, "free").header(limit) == "1200")
    admin.send("PUT", "/accounts/default/limits", {"rps": 1, "rps_burst": 1})
    # One request gets through each second, wherever.
    until(lambda: [admin.ask(key).status for _ in range(4)][1:] == [429] * 3, "the account's", 1.5)
    admin.send("DELETE", "/accounts/default/limits")
    everywhere("free again", lambda: admin.ask(key).status == 200)
    admin.send("POST", f"/keys/{key.id}/revoke")
    everywhere("the end", lambda: admin.ask(key).status == 401)


def test_live_figures_follow_requests(admin: Admin) -> None:
    limits = {"rpm": 60, "tpm": 60, "tpm_burst": 100_000, "concurrency": 4}
    key = admin.make(**limits, budget="1.00", budget_period="month")
    before = admin.live(key)
    assert set(before) == {
        ("key", dimension) for dimension in ("requests", "tokens", "concurrency", "budget")
    }
    assert before["key", "budget"]["remaining"] == "1.00"
    answer = admin.ask(key, "alias")
    usage = answer.json()["usage"]
    cost_nano = usage["prompt_tokens"] * 1500 + usage["completion_tokens"] * 4000
    after = until(
        lambda: (live := admin.live(key))["key", "concurrency"]["remaining"] == 4 and live,
        "the request's end",
    )
    assert after["key", "requests"]["remaining"] == 9
    assert after["key", "requests"]["reset_s"] > 0
    assert after["key", "tokens"]["remaining"] < 100_000
    spent = Decimal(1) - Decimal(after["key", "budget"]["remaining"])
    assert spent.scaleb(9) == cost_nano
    row = admin.gateway.usage_of(answer)
    assert row["cost"].scaleb(9) == cost_nano
    assert row["model_served"] == "priced"
    report = until(
        lambda: [
            r
            for r in admin.send("GET", "/usage?by=key&since_s=3600")["data"]
            if r["group"] == key.id
        ],
        "the report",
    )
    assert Decimal(report[0]["cost"]) == row["cost"]


def spend_of(gateway: Gateway, key: Key) -> Decimal:
    """What the sums have for a key."""

    async def run() -> Decimal:
        connection = await asyncpg.connect(gateway.database_url)
        try:
            query = "SELECT coalesce(sum(cost), 0) FROM usage_daily WHERE key_id = $1"
            cost: Decimal = await connection.fetchval(query, key.id)
            return cost
        finally:
            await connection.close()

    return run_apart(run)


def test_a_budget_ends_and_is_raised(admin: Admin) -> None:
    key = admin.make(budget="0.0001", budget_period="total")
    statuses = []
    for _ in range(50):
        statuses.append(admin.ask(key).status)
        if statuses[-1] != 200:
            break
    assert statuses[-1] == 429
    refusal = admin.ask(key)
    assert refusal.brief()[:2] == (429, "insufficient_quota")
    admin.gateway.usage(len(statuses) - 1, key_id=key.id, outcome="ok")
    most = max(row["cost"] for row in admin.gateway.usage(len(statuses) - 1, key_id=key.id))
    # A request is reserved by an estimate of its input and settled by what it was.
    assert 0 < spend_of(admin.gateway, key) < Decimal("0.0001") + most
    admin.send("PATCH", f"/keys/{key.id}", {"budget": "1"})
    everywhere("more money", lambda: admin.ask(key).status == 200)


def test_what_others_spent_counts(admin: Admin) -> None:
    key = admin.make(account="shared")

    async def spend() -> None:
        connection = await asyncpg.connect(admin.gateway.database_url)
        await connection.execute(
            "INSERT INTO usage_daily (day, account, key_id, model, cost)"
            " VALUES ((now() AT TIME ZONE 'UTC')::date, 'shared', 'k', 'm', 5)"
        )
        await connection.close()

    run_apart(spend)
    limits = {"budget": "5.5", "budget_period": "day"}
    admin.send("PUT", "/accounts/shared/limits", limits)
    everywhere(
        "what was spent",
        lambda: admin.live(key).get(("account", "budget"), {}).get("remaining") == "0.50",
    )


def test_a_restart_remembers_what_was_spent(
    postgres: EmbeddedPostgres, admin: Admin, tmp_path: Any
) -> None:
    key = admin.make(budget="1", budget_period="total")
    answer = admin.ask(key)
    cost = admin.gateway.usage_of(answer)["cost"]
    config = {
        "upstreams": {"sim": {"kind": "sglang", "url": "http://127.0.0.1:1"}},
        "models": {"priced": {"targets": [{"upstream": "sim"}], "price": PRICE}},
    }
    second = Gateway(tmp_path / "second", config, admin.gateway.database_url)
    second.start()
    try:
        path = f"/admin/v1/keys/{key.id}/limits"
        (entry,) = second.call(path, key=admin.key).json()["data"]
        assert Decimal(entry["remaining"]) == 1 - cost
    finally:
        assert second.stop() == 0


def test_many_changes_at_once(admin: Admin) -> None:
    keys = [admin.make() for _ in range(20)]
    start = time.monotonic()
    for number, key in enumerate(keys, 1):
        admin.send("PATCH", f"/keys/{key.id}", {"rpm": 60 * number})
    everywhere(
        "all of them",
        lambda: all(
            admin.live(key).get(("key", "requests"), {}).get("limit") == 60 * number
            for number, key in enumerate(keys, 1)
        ),
    )
    assert time.monotonic() - start < 5


def test_a_change_is_in_the_audit_log(admin: Admin) -> None:
    admin.send("PUT", "/models/audited/limits", {"rpm": 6})
    (entry,) = admin.send("GET", "/audit?subject=model:audited")["data"]
    assert entry["action"] == "limits.create"
    assert admin.send("GET", f"/keys/{entry['actor'].removeprefix('key:')}")["kind"] == "admin"
    assert entry["request_id"].startswith("req_")
    assert entry["remote"] == "127.0.0.1"


@pytest.mark.parametrize("name", ["x-forebay-peer", "X-Forebay-Peer", "x-forwarded-for"])
def test_a_client_cannot_say_where_it_is(admin: Admin, name: str) -> None:
    path = f"/models/forged-{name.lower()}/limits"
    forged = [(name, "192.0.2.1"), (name, "192.0.2.2")]
    assert admin.call("PUT", path, {"rpm": 6}, forged).status == 200
    (entry,) = admin.send("GET", f"/audit?subject=model:forged-{name.lower()}")["data"]
    assert entry["remote"] == "127.0.0.1"


def test_a_drain_reaches_every_worker_and_those_that_start_anew(
    admin: Admin, running: Gateway
) -> None:
    def drains() -> bool:
        return bool(admin.send("GET", "/upstreams/sim")["draining"])

    admin.send("POST", "/upstreams/sim/drain")
    everywhere("drained", drains)
    if workers := running.facts.get("workers"):
        os.kill(workers[0], signal.SIGKILL)

        def replaced() -> bool:
            now = json.loads(running.ready_file.read_text())["workers"]
            return len(now) == len(workers) and workers[0] not in now

        until(replaced, "a new worker")
        everywhere("still drained", drains)
    admin.send("POST", "/upstreams/sim/undrain")
    everywhere("back", lambda: not drains())

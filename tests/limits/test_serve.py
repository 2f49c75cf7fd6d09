"""`forebay serve` with a store of shared limits."""

from pathlib import Path

from tests.support.processes import Engine, Gateway
from tests.support.valkey import Valkey
from tests.support.wait import until


def test_readiness_metrics_and_log_tell_of_the_store(
    tmp_path: Path, database_url: str, sim: Engine, own_valkey: Valkey
) -> None:
    config = {
        "upstreams": {"sim": {"kind": "sglang", "url": sim.url}},
        "models": {"sim": {"targets": [{"upstream": "sim"}]}},
    }
    env = {"REDIS_URL": own_valkey.url}
    gateway = Gateway(tmp_path / "gateway", config, database_url, env=env)
    gateway.start()
    try:
        until(lambda: gateway.metric("forebay_lease_calls_total", outcome="ok") > 0, "a call")
        assert gateway.health()["checks"]["limits"] == "ok"
        assert gateway.metric("forebay_lease_store_up") == 1
        own_valkey.kill()
        until(lambda: gateway.health()["checks"]["limits"] != "ok", "the loss")
        assert gateway.health()["status"] == "degraded"
        assert gateway.metric("forebay_lease_store_up") == 0
        own_valkey.start()
        until(lambda: gateway.health()["checks"]["limits"] == "ok", "the return", 5.0)
        assert gateway.metric("forebay_lease_store_up") == 1
    finally:
        assert gateway.stop() == 0
    assert gateway.log().count("the store of shared limits is away") == 1
    assert gateway.log().count("the store of shared limits is back") == 1
    assert "Traceback (most recent" not in gateway.log()


def test_without_one_nothing_of_it_runs(gateway: Gateway) -> None:
    assert "limits" not in gateway.health()["checks"]
    assert gateway.metric("forebay_lease_calls_total", outcome="ok") == 0


def test_a_cluster_that_was_never_there_costs_no_usage(
    tmp_path: Path, database_url: str, sim: Engine
) -> None:
    config = {
        "upstreams": {"sim": {"kind": "sglang", "url": sim.url}},
        "models": {"sim": {"targets": [{"upstream": "sim"}]}},
    }
    env = {"REDIS_URL": "redis+cluster://127.0.0.1:1"}
    gateway = Gateway(tmp_path / "gateway", config, database_url, env=env)
    gateway.start()
    try:
        until(lambda: gateway.health()["checks"]["limits"] != "ok", "the loss")
        key = gateway.key()
        body = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert gateway.call("/v1/chat/completions", body, key=key.secret).status == 200
    finally:
        assert gateway.stop() == 0
    assert len(gateway.usage(1, key_id=key.id)) == 1
    assert "Traceback (most recent" not in gateway.log()

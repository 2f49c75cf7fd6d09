"""A gateway with `agent:` in front of real `forebay-engine warm`: woken, parked, drained."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from forebay_engine.serve.supervisor import State

from tests.engine.test_warm_runner import simulated
from tests.support.admin import Admin
from tests.support.many import Got, all_of, ask
from tests.support.ports import closed_port
from tests.support.processes import Gateway, Process
from tests.support.wait import until
from tests.support.wire import CHAT, chat, request

KEY = "k-agent-of-the-test"


class Pool(Process):
    """`forebay-engine warm` with simulated engines."""

    def __init__(self, folder: Path, size: int, *options: str, sim: tuple[str, ...] = ()) -> None:
        of = simulated(size, "--decode-rate", "200", *sim)
        self.port = of.port
        self.agent_port = closed_port()
        file = folder / "profile.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        drain = {"settle_s": 1.5, "grace_s": 20, "kill_s": 5}
        named = {"kind": "sglang", "model": "tiny", "port": of.port}
        file.write_text(json.dumps({**named, "command": list(of.command), "drain": drain}))
        agent = f"127.0.0.1:{self.agent_port}"
        command = [sys.executable, "-m", "forebay_engine", "warm", "--profile", str(file)]
        command += ["--agent", agent, "--size", str(size), "--settle", "0.2", *options]
        super().__init__(command, folder, {"FOREBAY_ENGINE_KEY": KEY})

    def upstream(self, member: int) -> dict[str, Any]:
        agent = {"url": f"http://127.0.0.1:{self.agent_port}", "key": KEY, "member": member}
        url = f"http://127.0.0.1:{self.port + member}"
        return {"kind": "sglang", "url": url, "agent": agent, "slow_start": 0}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        url = f"http://127.0.0.1:{self.agent_port}{path}"
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(trust_env=False, headers=headers) as client:
            answer = client.request(method, url, json=body)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    def state(self, member: int = 0) -> State:
        found: State = self.ask("GET", f"/state?member={member}")["state"]
        return found


@contextmanager
def house(pool: Pool, gateway: Gateway) -> Iterator[None]:
    try:
        pool.start()
        gateway.start()
        yield
    finally:
        for process in (gateway, pool):
            if process.popen is not None:
                assert process.stop(30) == 0, process.log()


def model(size: int) -> dict[str, Any]:
    targets = [{"upstream": f"gpu-{i}", "model": "tiny"} for i in range(size)]
    return {"m": {"targets": targets, "timeouts": {"first_byte": 20, "idle": 20, "total": 60}}}


def test_a_cold_engine_is_woken_for_requests_that_wait(tmp_path: Path, database_url: str) -> None:
    pool = Pool(tmp_path / "pool", 1, "--warm", "0", "--idle", "2")
    upstreams = {"gpu-0": {**pool.upstream(0), "cold": {"hold": 30}}}
    config = {"upstreams": upstreams, "models": model(1)}
    gateway = Gateway(tmp_path / "gateway", config, database_url)
    with house(pool, gateway):
        key, admin = gateway.key(), Admin(gateway)
        assert gateway.health()["checks"]["upstream:gpu-0"] == "ok: cold"
        assert gateway.health()["checks"]["agent:gpu-0"] == "ok"
        (seen,) = admin.send("GET", "/upstreams")["data"]
        assert (seen["state"], seen["agent"]) == ("cold", "answers")
        data = request(CHAT, chat("m", stream=True), key=key.secret, close=True)
        held = all_of([ask(gateway.port, data) for _ in range(10)], 10)
        assert [got.status for got in held] == [200] * 10
        assert all(b"data: [DONE]" in got.body for got in held)
        assert pool.ask("GET", "/pool")["members"][0]["woken"] is True
        until(lambda: pool.state() == "cold", "nobody uses it, and it goes", 20)
        until(lambda: Admin(gateway).send("GET", "/upstreams")["data"][0]["state"] == "cold", "it")
        assert gateway.metric("forebay_upstream_agent", upstream="gpu-0", state="answers") == 1
    assert KEY not in gateway.log() + pool.log()


def test_no_request_fails_while_members_are_drained(tmp_path: Path, database_url: str) -> None:
    pool = Pool(tmp_path / "pool", 2, "--warm", "2")
    upstreams = {f"gpu-{i}": pool.upstream(i) for i in range(2)}
    config = {"upstreams": upstreams, "models": model(2)}
    gateway = Gateway(tmp_path / "gateway", config, database_url)
    with house(pool, gateway):
        key = gateway.key()
        until(lambda: gateway.health()["status"] == "ready", "both are warm")
        body = {**chat("m", stream=True), "messages": [{"role": "user", "content": "/words 60"}]}
        data = request(CHAT, body, key=key.secret, close=True)

        async def clients() -> list[Got]:
            async def one(number: int) -> list[Got]:
                await asyncio.sleep(number * 0.05)
                return [await ask(gateway.port, data) for _ in range(12)]

            async def drain() -> None:
                await asyncio.sleep(1.0)
                await asyncio.to_thread(pool.ask, "POST", "/drain?member=0")

            *lists, _ = await asyncio.gather(*(one(i) for i in range(6)), drain())
            return [got for found in lists for got in found or ()]

        answers = asyncio.run(clients())
        assert len(answers) == 72
        assert [got.status for got in answers] == [200] * 72
        assert all(b"data: [DONE]" in got.body for got in answers)
        until(lambda: pool.state(0) == "down", "it has ended", 20)
        assert pool.state(1) == "warm", "the other one serves on"
        pool.ask("POST", "/wake?member=0")
        until(lambda: pool.state(0) == "warm", "it is wanted again", 20)
        gateway.wait_idle()
        rows = gateway.usage(72)
        assert {row["outcome"] for row in rows} == {"ok"}
        assert {row["upstream"] for row in rows} == {"gpu-0", "gpu-1"}


def test_without_its_agent_the_gateway_asks_the_engine(tmp_path: Path, database_url: str) -> None:
    pool = Pool(tmp_path / "pool", 1, "--warm", "1")
    upstream = {**pool.upstream(0)}
    upstream["agent"] = {**upstream["agent"], "key": "wrong-key-of-the-test"}
    gateway = Gateway(
        tmp_path / "gateway", {"upstreams": {"gpu-0": upstream}, "models": model(1)}, database_url
    )
    with house(pool, gateway):
        key = gateway.key()
        answer = gateway.call(CHAT, chat("m"), key=key.secret)
        assert answer.status == 200
        health = gateway.health()
        assert health["status"] == "degraded"
        why = "degraded: it refuses the key with 401; the engine itself is asked"
        assert health["checks"]["agent:gpu-0"] == why
        assert gateway.metric("forebay_upstream_agent", upstream="gpu-0", state="away") == 1
        # With the right key it is believed from the next look on.
        config = {"upstreams": {"gpu-0": pool.upstream(0)}, "models": model(1)}
        began = time.monotonic()
        (tmp_path / "gateway" / "gateway.yaml").write_text(json.dumps(config))
        until(lambda: gateway.health()["checks"]["agent:gpu-0"] == "ok", "the reload", 20)
        assert time.monotonic() - began < 20
    log = gateway.log()
    assert log.count("upstream's agent is away") == 1
    assert "wrong-key-of-the-test" not in log

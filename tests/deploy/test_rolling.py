"""Two gateways behind nginx, restarted in turn under load: nobody notices, nothing is lost."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.nginx import Nginx, needs_nginx
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway
from tests.support.rolling import GrpcLoad, Load
from tests.support.wait import until

pytestmark = needs_nginx

LONG = bool(os.environ.get("FOREBAY_ROLLING_LONG"))
"""A minute at 200 requests a second, as `make edge-test` has it."""
RATE = 200.0 if LONG else float(os.environ.get("FOREBAY_ROLLING_RATE", "40"))
SECONDS = 60.0 if LONG else 8.0
BETWEEN_S = 0.5
"""Seconds that a restarted gateway has served before the other one goes."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine of 25 tokens a second and request."""
    options = ("--decode-rate", "25", "--batch-slowdown", "0", "--max-running", "4000")
    engine = Engine(tmp_path / "engine", "--model", "sim", *options)
    engine.start()
    yield engine
    engine.stop()


class Pair:
    """Two gateways on ports that stay theirs."""

    def __init__(
        self, folder: Path, engine: Engine, database_url: str, workers: int = 1, **config: Any
    ) -> None:
        self.gateways: list[Gateway] = []
        listen = config.pop("listen", {})
        for name in ("a", "b"):
            settings: dict[str, Any] = {
                "listen": {"grpc": f"127.0.0.1:{closed_port()}", **listen},
                "node": name,
                "spool": {"dir": str(folder / name / "spool")},
                "upstreams": {"sim": {"kind": "sglang", "url": engine.url}},
                "models": {"sim": {"targets": [{"upstream": "sim"}]}},
                "drain_s": 20,
                **config,
            }
            gateway = Gateway(folder / name, settings, database_url, workers=workers)
            at = gateway.arguments.index("127.0.0.1:0")
            gateway.arguments[at] = f"127.0.0.1:{closed_port()}"
            self.gateways.append(gateway)

    def start(self, stack: ExitStack) -> None:
        """Start both, and stop them with the stack."""
        for gateway in self.gateways:
            gateway.launch()
            stack.callback(gateway.stop, 30.0)
        for gateway in self.gateways:
            gateway.wait_ready()
            until(lambda g=gateway: g.health()["checks"]["upstream:sim"] == "ok", "the engine")  # type: ignore[misc]

    async def roll(self, seconds: float, between_s: float = BETWEEN_S) -> int:
        """Restart one after the other until the time is over; how often."""
        loop = asyncio.get_running_loop()
        end, restarts = loop.time() + seconds, 0
        while loop.time() < end or restarts < 2:
            await asyncio.sleep(between_s)
            gateway = self.gateways[restarts % 2]
            status = await asyncio.to_thread(gateway.stop, 30.0)
            assert status == 0, gateway.log()
            await asyncio.to_thread(gateway.start)
            restarts += 1
        return restarts


async def rolled(pair: Pair, port: int, secret: str, rate: float, seconds: float) -> Load:
    """The load of such a time of restarts."""
    load = Load(port, secret, rate)
    sending = asyncio.create_task(load.run())
    restarts = await pair.roll(seconds)
    load.stop()
    await sending
    print(
        f"\n{len(load.sent)} requests, {restarts} restarts, {len(load.faults)} failed, slowest "
        f"{load.slowest(False):.2f} s, stream {load.slowest(True):.2f} s"
    )
    return load


async def rolled_grpc(pair: Pair, port: int, secret: str) -> GrpcLoad:
    """The same by gRPC, a quarter of the load."""
    load = GrpcLoad(port, secret, RATE / 4)
    sending = asyncio.create_task(load.run())
    restarts = await pair.roll(SECONDS)
    load.stop()
    await sending
    print(f"\n{len(load.sent)} calls, {restarts} restarts, {len(load.faults)} failed")
    return load


def check(pair: Pair, load: Load, nginx: Nginx) -> None:
    """No request failed, and each has one row, which says so."""
    shown = "\n".join(load.faults[:20])
    assert not load.faults, f"{len(load.faults)} failed\n{shown}\n{nginx.log()[-3000:]}"
    for gateway in pair.gateways:
        assert gateway.stop(30.0) == 0
        assert "Traceback (most recent" not in gateway.log(), gateway.log()
        assert "cut off" not in gateway.log()
    rows = pair.gateways[0].usage(len(load.sent))
    assert Counter(row["outcome"] for row in rows) == {"ok": len(load.sent)}
    assert {row["request_id"] for row in rows} == {one.name for one in load.sent}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_rolling_restart_fails_no_request(
    tmp_path: Path, engine: Engine, database_url: str, workers: int
) -> None:
    pair = Pair(tmp_path, engine, database_url, workers)
    with ExitStack() as stack:
        await asyncio.to_thread(pair.start, stack)
        http = [f"127.0.0.1:{gateway.port}" for gateway in pair.gateways]
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", http))
        key = await asyncio.to_thread(pair.gateways[0].key)
        await asyncio.to_thread(
            until,
            lambda: pair.gateways[1].call("/v1/models", key=key.secret).status == 200,
            "the key",
        )
        load = await rolled(pair, nginx.port, key.secret, RATE, SECONDS)
        await asyncio.to_thread(check, pair, load, nginx)


async def test_grpc_too(tmp_path: Path, engine: Engine, database_url: str) -> None:
    """Streams by gRPC, each behind the same nginx, while both gateways are restarted."""
    pair = Pair(tmp_path, engine, database_url)
    with ExitStack() as stack:
        await asyncio.to_thread(pair.start, stack)
        http = [f"127.0.0.1:{gateway.port}" for gateway in pair.gateways]
        addresses = [gateway.grpc for gateway in pair.gateways]
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", http, addresses))
        key = await asyncio.to_thread(pair.gateways[0].key)
        await asyncio.to_thread(
            until,
            lambda: pair.gateways[1].call("/v1/models", key=key.secret).status == 200,
            "the key",
        )
        load = await rolled_grpc(pair, nginx.grpc_port, key.secret)
        assert not load.faults, "\n".join(load.faults[:20])
        for gateway in pair.gateways:
            assert await asyncio.to_thread(gateway.stop, 30.0) == 0
        rows = await asyncio.to_thread(pair.gateways[0].usage, len(load.sent))
        assert Counter(row["outcome"] for row in rows) == {"ok": len(load.sent)}

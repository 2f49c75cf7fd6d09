"""Permits come back, whatever ends a request: clients, timeouts, engines, workers."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from forebay.store import EmbeddedPostgres

from tests.limits_e2e.conftest import new_database
from tests.support.admin import Admin
from tests.support.databases import run_apart
from tests.support.many import Connection
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway, Key
from tests.support.wait import until
from tests.support.wire import CHAT, Client, call, chat, request

COUNT = int(os.environ.get("FOREBAY_TEST_ABORTS", "1500"))
"""Requests of each run. CONTRIBUTING.md says how to have all 10,000."""
AT_ONCE = 48
PLACES = 16
"""Of each upstream; the rest waits, up to QUEUE, and is refused beyond."""
QUEUE = 12
MODELS = ("stable", "mortal")
FAULTS = (
    None,
    None,
    "stall:0",
    "stall:3",
    "cut:2",
    "cut-mid-event:1",
    "garbage:1",
    "error-event:2",
    "no-usage",
    "status:500",
    "status:503",
    "empty",
    "slow-first-token:0.15",
)
LIMITS = {"concurrency": 100}


class Mortal:
    """An engine that is killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.port = closed_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._lives = 0
        self._engine: Engine | None = None
        self.begin()

    def begin(self) -> None:
        """Start, without waiting: requests meet its start too."""
        self._lives += 1
        options = ("--model", "sim", "--port", str(self.port), "--decode-rate", "300")
        self._engine = Engine(self._folder / str(self._lives), *options, "--warmup", "0")
        self._engine.launch()

    def ready(self) -> None:
        """Wait until it answers."""
        assert self._engine is not None
        self._engine.wait_ready()

    def die(self) -> None:
        """SIGKILL."""
        assert self._engine is not None
        assert self._engine.popen is not None
        self._engine.popen.kill()
        self._engine.popen.wait()


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    engine = Mortal(tmp_path_factory.mktemp("mortal"))
    engine.ready()
    yield engine
    engine.die()


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("stable"), "--model", "sim", "--decode-rate", "300")
    engine.start()
    yield engine
    engine.stop(2.0)  # it would wait for those that it stalls


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def chaotic(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres: EmbeddedPostgres,
    stable: Engine,
    mortal: Mortal,
) -> Iterator[Gateway]:
    bounds = {"max_concurrency": PLACES, "queue": {"max_waiting": QUEUE, "timeout": 1}}
    timeouts = {"first_byte": 0.3, "idle": 0.3, "total": 1.5}
    upstreams = {"stable": stable.url, "mortal": mortal.url}
    config = {
        "workers": request.param,
        "upstreams": {
            name: {"kind": "sglang", "url": url, **bounds} for name, url in upstreams.items()
        },
        "models": {
            **{
                name: {"targets": [{"upstream": name, "model": "sim"}], "timeouts": timeouts}
                for name in MODELS
            },
            **{
                f"patient-{name}": {"targets": [{"upstream": name, "model": "sim"}]}
                for name in MODELS
            },
            "either": {
                "targets": [{"upstream": name, "model": "sim"} for name in ("mortal", "stable")],
                "timeouts": timeouts,
            },
        },
    }
    database_url = new_database(postgres, f"chaotic_{request.param}")
    gateway = Gateway(tmp_path / "gateway", config, database_url, workers=request.param)
    gateway.start()
    yield gateway
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()


async def one(gateway: Gateway, key: Key, draw: random.Random) -> str:
    """One request that may go wrong in every way; how it ended, as its client saw it."""
    model = draw.choice((*MODELS, "either"))
    body: dict[str, Any] = chat(model, f"/words {draw.randint(1, 60)}", stream=draw.random() < 0.7)
    if (fault := draw.choice(FAULTS)) is not None:
        body["sim_fault"] = fault
    data = request(CHAT, body, key=key.secret, close=True)
    patience_s = draw.choice((None, None, 0.0, 0.01, 0.05, 0.2))
    try:
        connection = await Connection.open(gateway.port)
    except ConnectionError:
        return "no connection"
    try:
        if draw.random() < 0.03:  # gone in the middle of its request
            connection.writer.write(data[: draw.randrange(len(data))])
            return "half a request"
        connection.writer.write(data)
        async with asyncio.timeout(patience_s):
            got = await connection.reader.read()
        head = got[:12].decode()
        ended = "whole" if b"[DONE]" in got or b'"usage"' in got else "cut"
        return f"{head[9:]} {ended}" if head else "nothing"
    except TimeoutError:
        return "left"
    except ConnectionError:
        return "reset"
    finally:
        connection.leave(reset=draw.random() < 0.5)


async def storm(gateway: Gateway, keys: list[Key], mortal: Mortal) -> Counter[str]:
    """COUNT requests, while the engine dies again and again and workers are killed."""
    draw = random.Random(4)
    ends: Counter[str] = Counter()
    begun = 0

    async def client() -> None:
        nonlocal begun
        while begun < COUNT:
            begun += 1
            ends[await one(gateway, draw.choice(keys), draw)] += 1

    async def reaper() -> None:
        while True:
            await asyncio.sleep(draw.uniform(0.3, 1.0))
            await asyncio.to_thread(mortal.die)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(mortal.begin)
            await asyncio.to_thread(mortal.ready)

    async def killer() -> None:
        while "workers" in gateway.facts:
            await asyncio.sleep(draw.uniform(2.0, 4.0))
            workers = gateway.workers
            if len(workers) == len(gateway.facts["workers"]):
                os.kill(draw.choice(workers), signal.SIGKILL)

    others = [asyncio.create_task(reaper()), asyncio.create_task(killer())]
    try:
        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return ends


def taken(admin: Admin, key: Key) -> dict[tuple[str, str | None], int]:
    """Permits in use, by scope and model."""
    return {
        (entry["scope"], entry["model"]): entry["limit"] - entry["remaining"]
        for entry in admin.entries(key)
        if entry["dimension"] == "concurrency"
    }


def assert_all_places(gateway: Gateway, key: Key, upstream: str, url: str) -> None:
    """The upstream takes PLACES at once, no fewer and no more: of three more, three wait."""

    def waiting() -> float:
        return gateway.metric("forebay_upstream_waiting", upstream=upstream)

    until(lambda: waiting() == 0, "nobody waits", 2)
    port = urlsplit(url).port
    assert port is not None
    plain = request(CHAT, chat(f"patient-{upstream}"), key=key.secret)
    processes = len(gateway.facts.get("workers", [0]))

    def is_back() -> bool:
        """Every process has tried it since its engine died, with one request."""
        call(gateway.port, plain)
        state = gateway.metric("forebay_upstream_state", upstream=upstream, state="open")
        return state == processes

    until(is_back, f"{upstream} is back", 20)
    assert call(port, request("/sim/reset", {})).status == 200
    body = chat(f"patient-{upstream}", sim_fault="slow-first-token:2")
    data = request(CHAT, body, key=key.secret)
    clients = [Client(gateway.port).send(data) for _ in range(PLACES + 3)]
    try:
        until(lambda: waiting() == 3, f"three wait at {upstream}", 2)
        running = call(port, request("/sim/requests")).json()["requests"]
        assert len(running) == PLACES
    finally:
        for client in clients:
            client.socket.close()


def test_permits_return_to_zero(chaotic: Gateway, stable: Engine, mortal: Mortal) -> None:
    admin = Admin(chaotic)
    keys = [admin.make(account=account, **LIMITS) for account in ("one", "one", "two")]
    for model in (*MODELS, "either"):
        admin.limit(f"/models/{model}", keys[0], **LIMITS)
        for key in keys:
            admin.limit(f"/keys/{key.id}/models/{model}", key, **LIMITS)
    for account, key in (("one", keys[0]), ("two", keys[2])):
        admin.limit(f"/accounts/{account}", key, **LIMITS)
    began = time.monotonic()
    ends = run_apart(lambda: storm(chaotic, keys, mortal))
    print(f"{COUNT} requests in {time.monotonic() - began:.0f} s: {dict(ends.most_common())}")
    assert ends.total() >= COUNT
    assert ends["left"] > COUNT / 20, ends
    mortal.die()
    mortal.begin()
    mortal.ready()

    # Each request has an end within its total time; so have all permits, by then.
    until(lambda: chaotic.metric("forebay_requests_in_flight") == 0, "the last ends", 5)
    for key in keys:
        until(lambda k=key: set(taken(admin, k).values()) == {0}, "its permits", 2)  # type: ignore[misc]
        assert len(taken(admin, key)) == 2 + 2 * 3, "the key's, its account's, those of each model"
    for upstream, url in (("stable", stable.url), ("mortal", mortal.url)):
        assert_all_places(chaotic, keys[0], upstream, url)

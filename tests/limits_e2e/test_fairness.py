"""One account floods a full engine: what the others notice of it."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.limits_e2e.conftest import PLACES
from tests.support.admin import Admin
from tests.support.databases import run_apart
from tests.support.many import ask
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request

SERVICE_S = 0.1
FLOOD = 50
SAMPLES = 60


@pytest.fixture(autouse=True)
def settled(limited: Gateway, engine: ScriptedUpstream) -> Iterator[None]:
    yield
    limited.wait_idle()
    assert limited.metric("forebay_upstream_waiting", upstream="narrow") == 0


def data(key: Key, **fields: object) -> bytes:
    return request(CHAT, chat("narrow", **fields), key=key.secret, close=True)


def slow(connection: Connection, _: Received) -> None:
    time.sleep(SERVICE_S)
    connection.json(answer())


def p99(times: list[float]) -> float:
    return sorted(times)[len(times) * 99 // 100 - 1]


def test_a_flood_costs_others_one_service_time(
    limited: Gateway, admin: Admin, engine: ScriptedUpstream
) -> None:
    """50 clients of one account against one of another, which waits for one place to come free."""
    flood, quiet = admin.make(account="flood"), admin.make(account="quiet")
    engine.script = slow
    noisy, calm = data(flood), data(quiet)

    async def timed(count: int) -> list[float]:
        times = []
        for _ in range(count):
            got = await ask(limited.port, calm)
            assert got.status == 200
            times.append(got.at - got.began)
        return times

    async def run() -> tuple[list[float], list[float], int]:
        alone = await timed(SAMPLES // 3)
        flooded, full, over = 0, asyncio.Event(), asyncio.Event()

        async def client() -> None:
            nonlocal flooded
            while not over.is_set():
                got = await ask(limited.port, noisy)
                assert got.status == 200
                flooded += 1
                full.set()

        clients = [asyncio.create_task(client()) for _ in range(FLOOD)]
        await full.wait()
        beside = await timed(SAMPLES)
        over.set()
        await asyncio.gather(*clients)
        return alone, beside, flooded

    alone, beside, flooded = run_apart(run)
    assert flooded >= 2 * SAMPLES, "the flood has the rest of the engine"
    print(f"alone {max(alone):.3f} s, beside the flood {p99(beside):.3f} s")
    rise = p99(beside) - max(alone)
    # Behind the flood it would be 50 requests at four at a time, twelve service times.
    assert rise <= 1.1 * SERVICE_S, (rise, sorted(alone), sorted(beside))


def served(engine: ScriptedUpstream) -> list[str]:
    """Who was sent to the engine, in that order, by the content of the message."""
    return [got.json()["messages"][0]["content"] for got in engine.requests]


def test_batch_goes_behind_interactive(
    limited: Gateway, admin: Admin, engine: ScriptedUpstream
) -> None:
    interactive, batch = admin.make(), admin.make(priority="batch")
    go_on = threading.Semaphore(0)

    def script(connection: Connection, _: Received) -> None:
        go_on.acquire(timeout=10)
        connection.json(answer())

    engine.script = script

    def waiting() -> float:
        return limited.metric("forebay_upstream_waiting", upstream="narrow")

    clients = [Client(limited.port).send(data(batch, content="first")) for _ in range(PLACES)]
    until(lambda: engine.active == PLACES, "the engine is full")
    for key, name in ((batch, "batch"), (interactive, "interactive")):
        before = waiting()
        clients += [Client(limited.port).send(data(key, content=name)) for _ in range(5)]
        until(lambda w=before: waiting() == w + 5, "five more wait")  # type: ignore[misc]
    for count in range(PLACES + 1, len(clients) + 1):
        go_on.release()
        until(lambda c=count: len(engine.requests) == c, "the next starts")  # type: ignore[misc]
    for _ in range(PLACES):
        go_on.release()
    for client in clients:
        assert client.answer().status == 200
        client.socket.close()
    assert served(engine) == ["first"] * PLACES + ["interactive"] * 5 + ["batch"] * 5


def test_weights_share_tokens(limited: Gateway, admin: Admin, engine: ScriptedUpstream) -> None:
    """Accounts of weight 1 and 3, requests of different size: tokens come 1 to 3."""
    accounts = {"light": (1, 100, 100), "heavy": (3, 40, 10)}
    keys = {name: admin.make(account=name) for name in accounts}
    for name, (weight, _, _) in accounts.items():
        admin.send("PATCH", f"/accounts/{name}", {"weight": weight})

    def script(connection: Connection, received: Received) -> None:
        _, prompt, completion = accounts[received.json()["messages"][0]["content"]]
        time.sleep(0.01)
        connection.json(answer(prompt, completion))

    engine.script = script
    lines = {
        name: data(key, content=name, max_tokens=accounts[name][2]) for name, key in keys.items()
    }

    async def run() -> None:
        async def client(name: str) -> None:
            while len(engine.requests) < 900:
                assert (await ask(limited.port, lines[name])).status == 200

        await asyncio.gather(*(client(name) for name in accounts for _ in range(24)))

    run_apart(run)
    # From the first ones on, which went out before anybody had to wait, to the last of the flood.
    counts = Counter(served(engine)[100:800])
    tokens = {
        name: counts[name] * (prompt + completion)
        for name, (_, prompt, completion) in accounts.items()
    }
    assert tokens["heavy"] / tokens["light"] == pytest.approx(3, rel=0.1), counts

"""From Rust to the event loop and back: the completion queue beside a thread a request.

The other side is what a Python team would write: a blocking client in a pool of threads that
resolves an `asyncio.Future` by `call_soon_threadsafe`. Both ask the same upstream, a process of its
own, and both run on uvloop. `admit` does all that a request needs besides: key, limits, the body's
inspection, usage.
"""

import asyncio
import http.client
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import loopback
import pytest
import uvloop
from forebay._core import Core
from pytest_benchmark.fixture import BenchmarkFixture

CHAT = 0
BATCH = 512
"""Requests of one round at c=64."""
MANY = 64

Ask = Callable[[], Awaitable[int]]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with loopback.upstream() as port:
        yield port


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def core(port: int, loop: asyncio.AbstractEventLoop) -> Iterator[Core]:
    made, _ = loopback.core(port)
    made.attach(loop)
    yield made
    made.close()


@pytest.fixture
def fetch(core: Core) -> Ask:
    return lambda: _status(core.fetch("bench", "/v1/models", 5.0).start())


async def _status(answer: object) -> int:
    if isinstance(answer, asyncio.Future):
        answer = await answer
    assert isinstance(answer, tuple)
    status: int = answer[0]
    return status


@pytest.fixture
def admit(port: int, loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Core, Ask]]:
    made, headers = loopback.core(port)
    made.attach(loop)
    yield made, lambda: _status(made.admit(CHAT, headers, loopback.BODY).start())
    made.close()


@pytest.fixture
def threads(port: int, loop: asyncio.AbstractEventLoop) -> Iterator[Ask]:
    local = threading.local()
    opened: list[http.client.HTTPConnection] = []

    def ask() -> int:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port)
            opened.append(local.connection)
        local.connection.request("GET", "/v1/models")
        response = local.connection.getresponse()
        response.read()
        return int(response.status)

    def work(future: "asyncio.Future[int]") -> None:
        status = ask()
        loop.call_soon_threadsafe(future.set_result, status)

    with ThreadPoolExecutor(MANY) as pool:

        def begin() -> Awaitable[int]:
            future: asyncio.Future[int] = loop.create_future()
            pool.submit(work, future)
            return future

        yield begin
    for connection in opened:
        connection.close()


async def _one(ask: Ask) -> None:
    assert await ask() == 200


async def _many(ask: Ask) -> None:
    left = BATCH

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            assert await ask() == 200

    await asyncio.gather(*(worker() for _ in range(MANY)))


def _run(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, ask: Ask, many: bool
) -> None:
    benchmark.group = f"bridge, {BATCH} requests, c={MANY}" if many else "bridge, one request"
    work = _many if many else _one
    loop.run_until_complete(_many(ask))  # connections and threads are there
    benchmark(lambda: loop.run_until_complete(work(ask)))


@pytest.mark.parametrize("many", [False, True], ids=["c1", "c64"])
def test_fetch(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, fetch: Ask, many: bool
) -> None:
    _run(benchmark, loop, fetch, many)


@pytest.mark.parametrize("many", [False, True], ids=["c1", "c64"])
def test_threads(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, threads: Ask, many: bool
) -> None:
    _run(benchmark, loop, threads, many)


def _counted(core: Core) -> tuple[int, int]:
    found = dict(re.findall(r"^forebay_bridge_(\w+)_total (\d+)$", core.metrics(), re.MULTILINE))
    return int(found["wakeups"]), int(found["completions"])


@pytest.mark.parametrize("many", [False, True], ids=["c1", "c64"])
def test_admit(
    benchmark: BenchmarkFixture,
    loop: asyncio.AbstractEventLoop,
    admit: tuple[Core, Ask],
    many: bool,
) -> None:
    core, ask = admit
    _run(benchmark, loop, ask, many)
    if not many:
        return
    # The promise: under load, less than one wake-up of the loop a request.
    wakeups, completions = _counted(core)
    for _ in range(4):
        loop.run_until_complete(_many(ask))
    after = _counted(core)
    per_request = (after[0] - wakeups) / (4 * BATCH)
    benchmark.extra_info["wakeups_per_request"] = per_request
    benchmark.extra_info["completions_per_request"] = (after[1] - completions) / (4 * BATCH)
    print(f"\nwake-ups per request at c={MANY}: {per_request:.3f}")
    assert per_request < 1
    core.take_usage(1_000_000)

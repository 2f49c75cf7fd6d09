"""The bridge between the core's runtime and the event loop, through `Core` and a real socket."""

import asyncio
import gc
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import orjson
import pytest
import pytest_asyncio
import uvloop
from forebay._core import Core, Exchange
from forebay.config import Config, Model, Target, Upstream
from forebay.gateway import snapshot
from forebay.store import KeyRecord, encode_records, generate

from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish
from tests.support.wait import until

CHAT = 0
SECRET = generate("inference")
HEADERS = [
    (b"authorization", b"Bearer " + SECRET.key.encode()),
    (b"content-type", b"application/json"),
]
BODY = orjson.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
STREAM = orjson.dumps({**orjson.loads(BODY), "stream": True})


@pytest.fixture
def engine() -> Iterator[ScriptedUpstream]:
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()
    engine.wait_idle()
    assert not engine.failures


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What scripts wait for; opened at the latest when the test ends."""
    gate = threading.Event()
    yield gate
    gate.set()


def new_core(engine: ScriptedUpstream) -> Core:
    """A core with one key and one model, not attached yet."""
    core = Core()
    config = Config(
        upstreams={"engine": Upstream(kind="sglang", url=engine.url)},
        models={"tiny": Model(targets=(Target(upstream="engine"),))},
    )
    core.configure(snapshot.build(config, {}))
    record = KeyRecord(
        id=SECRET.id,
        kind="inference",
        account="a",
        name="n",
        digest=SECRET.digest.hex(),
        last4=SECRET.last4,
        version=1,
        created_at=0,
    )
    assert core.load_keys(encode_records([record]), True) == 1
    return core


@pytest_asyncio.fixture
async def core(engine: ScriptedUpstream, gate: threading.Event) -> AsyncIterator[Core]:
    core = new_core(engine)
    loop = asyncio.get_running_loop()
    unseen: list[object] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    core.attach(loop)
    yield core
    gate.set()
    core.close()
    await asyncio.sleep(0)
    assert not unseen


async def start(exchange: Exchange) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool] | None:
    answer = exchange.start()
    return await answer if isinstance(answer, asyncio.Future) else answer


async def rest(exchange: Exchange) -> list[bytes]:
    """The batches until the end."""
    batches: list[bytes] = []
    while True:
        batch = exchange.next()
        if isinstance(batch, asyncio.Future):
            batch = await batch
        if batch is None:
            return batches
        batches.append(batch)


def count(core: Core, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", core.metrics(), re.MULTILINE)
    assert found is not None
    return int(found.group(1))


def wakeups(core: Core) -> int:
    return count(core, "forebay_bridge_wakeups_total")


def completions(core: Core) -> int:
    return count(core, "forebay_bridge_completions_total")


def held(gate: threading.Event) -> Callable[[Connection, Received], None]:
    """A stream whose first event comes at once and whose rest waits for the gate."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("one"))
        gate.wait(20)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    return script


async def test_a_whole_answer(core: Core, engine: ScriptedUpstream) -> None:
    answer = await start(core.admit(CHAT, HEADERS, BODY))
    assert answer is not None
    status, headers, body, more = answer
    assert (status, more) == (200, False)
    assert orjson.loads(body)["choices"][0]["message"]["content"] == "ok"
    assert dict(headers)[b"x-forebay-upstream"] == b"engine"


async def test_a_refusal_needs_no_await(core: Core) -> None:
    before = completions(core)
    answer = core.admit(CHAT, [], BODY).start()
    assert isinstance(answer, tuple)
    assert (answer[0], answer[3]) == (401, False)
    assert completions(core) == before


async def test_a_fetch(core: Core, engine: ScriptedUpstream) -> None:
    answer = await start(core.fetch("engine", "/v1/models", 5.0))
    assert answer is not None
    assert orjson.loads(answer[2])["data"] == [{"id": "tiny"}]
    missing = await start(core.fetch("nowhere", "/", 5.0))
    assert missing is not None
    assert missing[0] == 404
    assert core.take_usage(10) == []


async def test_what_is_ready_comes_in_one_batch(core: Core, engine: ScriptedUpstream) -> None:
    sent = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for number in range(50):
            connection.event(delta(f"{number} "))
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()
        sent.set()

    engine.script = script
    exchange = core.admit(CHAT, HEADERS, STREAM)
    answer = await start(exchange)
    assert answer is not None
    assert answer[3]
    assert sent.wait(10)
    until(lambda: core.in_flight == 0, "the end of the stream")
    before = wakeups(core), completions(core)
    batch = exchange.next()
    assert isinstance(batch, bytes), "it is ready, so there is nothing to await"
    assert exchange.next() is None
    assert batch.count(b"data: ") == 52
    assert (wakeups(core), completions(core)) == before


async def test_one_wakeup_delivers_all_that_is_ready(
    core: Core, engine: ScriptedUpstream, gate: threading.Event
) -> None:
    def script(connection: Connection, _: Received) -> None:
        gate.wait(20)
        connection.json({"choices": []})

    engine.script = script
    exchanges = [core.admit(CHAT, HEADERS, BODY) for _ in range(32)]
    futures = [exchange.start() for exchange in exchanges]
    assert all(isinstance(future, asyncio.Future) for future in futures)
    before = wakeups(core), completions(core)
    gate.set()
    # The loop is held here on purpose until everything is there.
    until(lambda: core.in_flight == 0, "all answers")
    time.sleep(0.01)  # noqa: ASYNC251
    answers = await asyncio.gather(*futures)  # type: ignore[arg-type]
    assert [answer[0] for answer in answers if answer] == [200] * 32
    assert completions(core) - before[1] == 32
    assert wakeups(core) - before[0] == 1


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_either_event_loop(
    engine: ScriptedUpstream, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def work() -> None:
        core = new_core(engine)
        core.attach(asyncio.get_running_loop())
        try:
            exchanges = [core.admit(CHAT, HEADERS, BODY) for _ in range(20)]
            answers = await asyncio.gather(*map(start, exchanges))
            assert [answer[0] for answer in answers if answer] == [200] * 20
        finally:
            core.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())


async def test_cancel_wakes_its_waiter_and_stops_the_engine(
    core: Core, engine: ScriptedUpstream, gate: threading.Event
) -> None:
    hung_up: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("one"))
        hung_up.append(connection.hung_up())

    engine.script = script
    exchange = core.admit(CHAT, HEADERS, STREAM)
    assert await start(exchange) is not None
    assert await first(exchange) != b""
    waiting = exchange.next()
    assert isinstance(waiting, asyncio.Future)
    exchange.cancel()
    assert await waiting is None
    exchange.cancel("as a callback gets it")
    await asyncio.to_thread(until, lambda: hung_up, "the engine's connection closes")
    await asyncio.to_thread(until, lambda: core.in_flight == 0, "the request ends")
    assert len(core.take_usage(10)) == 1


async def first(exchange: Exchange) -> bytes:
    batch = exchange.next()
    if isinstance(batch, asyncio.Future):
        batch = await batch
    assert batch is not None
    return batch


async def test_a_cancelled_exchange_has_an_end(
    core: Core, engine: ScriptedUpstream, gate: threading.Event
) -> None:
    engine.script = held(gate)
    exchange = core.admit(CHAT, HEADERS, STREAM)
    assert await start(exchange) is not None
    await first(exchange)
    exchange.cancel()
    assert await asyncio.wait_for(rest(exchange), 1) == []


async def test_dropping_an_exchange_cancels_it(core: Core, engine: ScriptedUpstream) -> None:
    hung_up: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("one"))
        hung_up.append(connection.hung_up())

    engine.script = script
    exchange = core.admit(CHAT, HEADERS, STREAM)
    assert await start(exchange) is not None
    del exchange
    gc.collect()
    await asyncio.to_thread(until, lambda: hung_up, "the engine's connection closes")


async def test_a_task_cancelled_while_it_waits(
    core: Core, engine: ScriptedUpstream, gate: threading.Event
) -> None:
    engine.script = held(gate)
    exchange = core.admit(CHAT, HEADERS, STREAM)
    assert await start(exchange) is not None
    await first(exchange)
    task = asyncio.create_task(rest(exchange))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # What comes for the cancelled wait is skipped, and the loop's handler hears nothing of it.
    gate.set()
    await asyncio.to_thread(until, lambda: core.in_flight == 0, "the stream ends")
    await asyncio.sleep(0.01)
    exchange.cancel()
    answer = await start(core.admit(CHAT, [], BODY))
    assert answer is not None
    assert answer[0] == 401


async def test_a_cancelled_wait_can_be_taken_up_again(
    core: Core, engine: ScriptedUpstream, gate: threading.Event
) -> None:
    engine.script = held(gate)
    exchange = core.admit(CHAT, HEADERS, STREAM)
    assert await start(exchange) is not None
    await first(exchange)
    waiting = exchange.next()
    assert isinstance(waiting, asyncio.Future)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, 0.01)
    gate.set()
    assert b"".join(await rest(exchange)).endswith(b"data: [DONE]\n\n")


async def test_a_second_wait_is_refused_and_the_first_stands(
    core: Core, engine: ScriptedUpstream, gate: threading.Event
) -> None:
    engine.script = held(gate)
    exchange = core.admit(CHAT, HEADERS, STREAM)
    assert await start(exchange) is not None
    await first(exchange)
    waiting = exchange.next()
    assert isinstance(waiting, asyncio.Future)
    with pytest.raises(RuntimeError, match="awaited already"):
        exchange.next()
    gate.set()
    assert await asyncio.wait_for(waiting, 5)


async def test_close_leaves_no_future_pending(
    engine: ScriptedUpstream, gate: threading.Event
) -> None:
    engine.script = held(gate)
    core = new_core(engine)
    core.attach(asyncio.get_running_loop())
    streams = [core.admit(CHAT, HEADERS, STREAM) for _ in range(8)]
    for exchange in streams:
        assert await start(exchange) is not None
        await first(exchange)
    waiting = [exchange.next() for exchange in streams]
    core.close()
    for future in waiting:
        assert isinstance(future, asyncio.Future)
        assert future.done()
    assert core.in_flight == 0
    assert len(core.take_usage(100)) == 8
    # A second close, and a late callback of the loop, find nothing to do.
    core.close()
    core.drain()


async def test_a_core_is_attached_once(core: Core) -> None:
    with pytest.raises(RuntimeError, match="attached already"):
        core.attach(asyncio.get_running_loop())


async def test_waiting_needs_a_loop(engine: ScriptedUpstream) -> None:
    core = new_core(engine)
    try:
        with pytest.raises(RuntimeError, match="not attached"):
            core.admit(CHAT, HEADERS, BODY).start()
    finally:
        core.close()


async def test_a_spurious_drain_is_harmless(core: Core, engine: ScriptedUpstream) -> None:
    for _ in range(100):
        core.drain()
    waiting = core.admit(CHAT, HEADERS, BODY).start()
    assert isinstance(waiting, asyncio.Future)
    while not waiting.done():
        core.drain()
        await asyncio.sleep(0)
    answer = waiting.result()
    assert answer is not None
    assert answer[0] == 200
    core.drain()


async def test_bad_arguments_are_python_s_errors(core: Core) -> None:
    with pytest.raises(ValueError, match="way"):
        core.admit(999, HEADERS, BODY)
    with pytest.raises(ValueError, match="missing field"):
        core.configure(b"{}")
    with pytest.raises(ValueError, match="kind"):
        core.error("nonsense", "x")
    with pytest.raises(ValueError, match="negative"):
        core.fetch("engine", "/", -1.0)

"""More requests than an engine may have at once: they wait, fairly, and not for ever."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, Client, chat, request

PLACES = 2
WAITING = 40
SERVICE_S = 0.1
FULL = (503, "service_unavailable_error", "queue_full", None)
LATE = (503, "service_unavailable_error", "queue_timeout", None)


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedUpstream]:
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def narrow(
    tmp_path_factory: pytest.TempPathFactory, session_database_url: str, engine: ScriptedUpstream
) -> Iterator[Gateway]:
    """A gateway before an engine that takes two requests at once."""
    queue = {"max_waiting": WAITING, "timeout": 8}
    upstream = {"kind": "sglang", "url": engine.url, "max_concurrency": PLACES, "queue": queue}
    hasty = {**upstream, "max_concurrency": 1, "queue": {"max_waiting": 10, "timeout": 0.2}}
    config = {
        "upstreams": {"narrow": upstream, "hasty": hasty},
        "models": {
            "tiny": {"targets": [{"upstream": "narrow"}]},
            "hasty": {"targets": [{"upstream": "hasty", "model": "tiny"}]},
        },
    }
    process = Gateway(tmp_path_factory.mktemp("narrow"), config, session_database_url)
    process.start()
    yield process
    assert process.stop() == 0
    assert "Traceback (most recent" not in process.log()


@pytest.fixture
def keys(narrow: Gateway, engine: ScriptedUpstream) -> Iterator[tuple[Key, Key]]:
    """A key of each of two accounts."""
    engine.reset()
    yield narrow.key(account="flood"), narrow.key(account="quiet")
    narrow.wait_idle()
    engine.wait_idle()
    assert waiting(narrow) == 0
    assert not engine.failures


def waiting(gateway: Gateway, upstream: str = "narrow") -> float:
    return gateway.metric("forebay_upstream_waiting", upstream=upstream)


def shed(gateway: Gateway, reason: str, upstream: str = "narrow") -> float:
    return gateway.metric("forebay_queue_shed_total", upstream=upstream, reason=reason)


def slow(connection: Connection, _: Received) -> None:
    time.sleep(SERVICE_S)
    connection.json(answer())


def test_a_flood_does_not_delay_the_other_account(
    narrow: Gateway, engine: ScriptedUpstream, keys: tuple[Key, Key]
) -> None:
    flood, quiet = keys
    engine.script = slow
    stop = threading.Event()
    statuses: list[int] = []

    def client() -> None:
        while not stop.is_set():
            statuses.append(narrow.call(CHAT, chat(), key=flood.secret).status)

    def timed() -> float:
        began = time.monotonic()
        assert narrow.call(CHAT, chat(), key=quiet.secret).status == 200
        return time.monotonic() - began

    with ThreadPoolExecutor(30) as pool:
        for _ in range(30):
            pool.submit(client)
        try:
            until(lambda: waiting(narrow) >= 25, "the flood waits")
            times = [timed() for _ in range(15)]
        finally:
            stop.set()
    # Behind the flood each would take 30 requests at two at a time, 1.5 s.
    assert max(times) < 5 * SERVICE_S, times
    assert sorted(times)[len(times) // 2] < 3 * SERVICE_S, times
    assert set(statuses) == {200}
    assert narrow.metric("forebay_upstream_concurrency_limit", upstream="narrow") == PLACES
    assert narrow.metric("forebay_queue_wait_seconds_count", upstream="narrow") > 15


def test_who_leaves_makes_room(
    narrow: Gateway, engine: ScriptedUpstream, keys: tuple[Key, Key]
) -> None:
    flood, quiet = keys
    go_on = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        go_on.wait(5)
        connection.json(answer())

    engine.script = script
    data = request(CHAT, chat(), key=flood.secret)
    clients = [Client(narrow.port).send(data) for _ in range(PLACES + WAITING)]
    until(lambda: waiting(narrow) == WAITING, "the queue is full")
    got = narrow.call(CHAT, chat(), key=flood.secret)
    assert got.brief() == FULL
    assert int(got.header("retry-after") or 0) >= 1
    assert got.header("x-forebay-attempts") is None
    assert shed(narrow, "full") == 1
    # Another account is let in, for the newest of the flood.
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(narrow.call, CHAT, chat(), key=quiet.secret)
        until(lambda: shed(narrow, "displaced") == 1, "one gives way")
        for client in clients:
            client.socket.close()
        until(lambda: waiting(narrow) <= 1, "the flood has left")
        go_on.set()
        assert other.result().status == 200
    assert len(engine.requests) == PLACES + 1
    row = narrow.usage_of(got)
    assert (row["outcome"], row["error_kind"], row["attempts"]) == ("error", "unavailable", 0)
    assert row["prompt_tokens"] == 0


def test_a_wait_has_an_end(
    narrow: Gateway, engine: ScriptedUpstream, keys: tuple[Key, Key]
) -> None:
    key, _ = keys
    go_on = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        go_on.wait(5)
        connection.json(answer())

    engine.script = script
    answers: list[Answer] = []
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(narrow.call, CHAT, chat("hasty"), key=key.secret)
        until(lambda: engine.active == 1, "it runs")
        began = time.monotonic()
        for stream in (False, True):
            body = chat("hasty", stream=stream)
            answers.append(narrow.call(CHAT, body, key=key.secret))
        taken = time.monotonic() - began
        go_on.set()
        assert first.result().status == 200
    assert [got.brief() for got in answers] == [LATE] * 2
    assert all(got.header("retry-after") == "1" for got in answers)
    assert 0.4 <= taken < 2
    assert shed(narrow, "timeout", "hasty") == 2

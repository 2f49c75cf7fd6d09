"""Gateways that share limits over one Valkey: what holds for them together, whatever ends."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from forebay.store import EmbeddedPostgres, KeyChanges

from tests.support.databases import create_database
from tests.support.ports import closed_port
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer
from tests.support.valkey import Valkey
from tests.support.wait import until
from tests.support.wire import CHAT, COMPLETIONS, Answer, chat

PROMPT = list(range(1, 11))
"""Ten token ids: a prompt whose size needs no estimate."""
PRICE = {"input": "1000", "output": "1000"}
"""Dollars for 10^6 tokens: a thousandth of a dollar a token."""
ANSWER_TOKENS = 20


class Nodes:
    """Gateways with one database, one engine and one store of limits."""

    def __init__(self, gateways: list[Gateway], valkey: Valkey) -> None:
        self.gateways = gateways
        self.valkey = valkey
        self._admin: Key | None = None

    def key(self, **limits: Any) -> Key:
        """A key that every gateway knows."""
        key = self.gateways[0].new_key(**limits)
        for gateway in self.gateways:
            until(lambda g=gateway: knows(g, key), "the key")  # type: ignore[misc]
        return key

    def remaining(self, key: Key) -> list[float]:
        """What each gateway says is left of the key's only limit."""
        if self._admin is None:
            self._admin = self.key(kind="admin")
        path = f"/admin/v1/keys/{key.id}/limits"
        got = [g.call(path, key=self._admin.secret) for g in self.gateways]
        assert {one.status for one in got} == {200}, got
        return [float(one.json()["data"][0]["remaining"]) for one in got]

    def change(self, key: Key, **changes: Any) -> None:
        """Change the key's limits, which all know within a second."""
        self.gateways[0].with_keys(lambda keys: keys.update(key.id, KeyChanges(**changes)))
        time.sleep(1.0)  # what the documents promise

    def wait_healthy(self) -> None:
        """Wait until each knows of all."""
        for gateway in self.gateways:
            until(lambda g=gateway: limits_check(g) == "ok", "the store")  # type: ignore[misc]
            until(
                lambda g=gateway: (  # type: ignore[misc]
                    g.metric("forebay_lease_participants") == len(self.gateways)
                ),
                "all participants",
            )


def knows(gateway: Gateway, key: Key) -> bool:
    return gateway.call("/v1/models", key=key.secret).status not in (401, 503)


def limits_check(gateway: Gateway) -> str:
    return str(gateway.health()["checks"]["limits"])


def ask(gateway: Gateway, key: Key, max_tokens: int = ANSWER_TOKENS) -> Answer:
    """One request of ten input tokens."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": max_tokens}
    return gateway.call(COMPLETIONS, body, key=key.secret)


def flood(gateways: Sequence[Gateway], key: Key, span_s: float, pause_s: float = 0.0) -> list[int]:
    """Ask all for so long, each in a thread of its own; how many each admitted."""
    admitted = [0] * len(gateways)
    until_s = time.monotonic() + span_s

    def work(at: int) -> None:
        while time.monotonic() < until_s:
            got = gateways[at].call(CHAT, chat(), key=key.secret)
            assert got.status in (200, 429), got
            admitted[at] += got.status == 200
            time.sleep(pause_s)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(gateways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return admitted


@contextmanager
def started(
    folder: Path, postgres: EmbeddedPostgres, database: str, valkey: Valkey, count: int, **more: Any
) -> Iterator[tuple[list[Gateway], ScriptedUpstream]]:
    """So many gateways in front of one engine. more: as `Gateway` takes it."""
    url = create_database(postgres, database)
    with ExitStack() as running:
        engine = ScriptedUpstream()
        engine.start()
        running.callback(engine.stop)
        config = {
            "upstreams": {"raw": {"kind": "sglang", "url": engine.url}},
            "models": {"tiny": {"targets": [{"upstream": "raw"}], "price": PRICE}},
            "redis_url": valkey.url,
            "expected_nodes": count,
        }
        gateways = []
        for i in range(count):
            gateway = Gateway(folder / f"gateway{i}", config, url, **more)
            gateway.launch()
            running.callback(gateway.stop)
            gateways.append(gateway)
        for gateway in gateways:
            gateway.wait_ready()
            until(lambda g=gateway: g.health()["checks"]["upstream:raw"] == "ok", "the engine")  # type: ignore[misc]
        yield gateways, engine


@pytest.fixture(scope="module")
def running(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Nodes, ScriptedUpstream]]:
    """Three nodes."""
    folder = tmp_path_factory.mktemp("nodes")
    valkey = Valkey(folder / "valkey")
    valkey.start()
    try:
        with started(folder, postgres, "nodes", valkey, 3) as (gateways, engine):
            yield Nodes(gateways, valkey), engine
            for gateway in gateways:
                assert gateway.stop() == 0, gateway.log()
                assert "Traceback (most recent" not in gateway.log(), gateway.log()
    finally:
        valkey.stop()


@pytest.fixture
def nodes(running: tuple[Nodes, ScriptedUpstream]) -> Nodes:
    """Three nodes that are well."""
    running[0].wait_healthy()
    return running[0]


@pytest.fixture
def engine(running: tuple[Nodes, ScriptedUpstream]) -> Iterator[ScriptedUpstream]:
    """The engine behind all nodes, for this test alone."""
    upstream = running[1]
    upstream.wait_idle()
    upstream.reset()
    yield upstream
    upstream.wait_idle()
    assert not upstream.failures, upstream.failures


def bound(burst: int, per_s: float, span_s: float, nodes: int = 3) -> float:
    """What the documents allow in so long."""
    lease = max(burst / 20, 1)
    return burst + per_s * span_s + nodes * (lease + min(lease, burst / nodes))


def test_a_burst_over_three_nodes_is_within_the_bound(
    nodes: Nodes, engine: ScriptedUpstream
) -> None:
    key = nodes.key(rpm=60, rpm_burst=60)
    began = time.monotonic()
    admitted = flood(nodes.gateways, key, 4.0)
    span_s = time.monotonic() - began
    assert sum(admitted) <= bound(60, 1, span_s)
    assert sum(admitted) >= 60
    assert min(admitted) > 0
    assert len(engine.requests) == sum(admitted)
    # What was too much is repaid: in the long run there is no more than the bucket has.
    admitted_later = flood(nodes.gateways, key, 8.0, 0.01)
    assert sum(admitted) + sum(admitted_later) <= 60 + (time.monotonic() - began) + 1


def test_tokens_of_one_node_count_for_all(nodes: Nodes, engine: ScriptedUpstream) -> None:
    key = nodes.key(tpm=60, tpm_burst=6_000)  # one a second comes back
    engine.script = lambda connection, _: connection.json(answer(10, 490))
    # 1,510 are reserved, 500 used.
    for i in range(6):
        assert ask(nodes.gateways[i % 3], key, 1_500).status == 200
        time.sleep(0.3)
    until(lambda: all(abs(n - 3_000) < 30 for n in nodes.remaining(key)), "what is left", 3.0)
    assert ask(nodes.gateways[1], key, 5_000).status == 429
    assert ask(nodes.gateways[2], key, 2_000).status == 200


class Gatekeeper:
    """An engine's script that answers when it is told to."""

    def __init__(self, engine: ScriptedUpstream) -> None:
        self._open = threading.Event()
        engine.script = self._script

    def _script(self, connection: Connection, _: Received) -> None:
        assert self._open.wait(20)
        connection.json(answer())

    def open(self) -> None:
        self._open.set()


def at_once(calls: Sequence[Callable[[], Answer]]) -> tuple[list[Answer], Callable[[], None]]:
    """Start all; the answers so far, and what waits for the others."""
    got: list[Answer] = []
    threads = [threading.Thread(target=lambda c=call: got.append(c())) for call in calls]
    for thread in threads:
        thread.start()

    def join() -> None:
        for thread in threads:
            thread.join()

    return got, join


@pytest.mark.parametrize("again", range(3))
def test_two_at_a_time_over_three_nodes(nodes: Nodes, engine: ScriptedUpstream, again: int) -> None:
    key = nodes.key(concurrency=2)
    gate = Gatekeeper(engine)
    got, join = at_once([lambda g=g: ask(g, key) for g in nodes.gateways * 3])  # type: ignore[misc]
    until(lambda got=got: len(got) >= 7, "the others are refused")  # type: ignore[misc]
    until(lambda: engine.active == 2, "two run")
    assert {one.status for one in got} == {429}
    error = got[0].error()
    assert "2 requests at a time" in error["message"], error
    gate.open()
    join()
    assert sorted(one.status for one in got) == [200] * 2 + [429] * 7
    # What a node has and does not use goes back after 3 s at the latest.
    for gateway in nodes.gateways:
        until(lambda g=gateway: ask(g, key).status == 200, "its permit", 6.0, 0.1)  # type: ignore[misc]


def test_first_requests_at_once_all_find_what_is_there(
    nodes: Nodes, engine: ScriptedUpstream
) -> None:
    key = nodes.key(concurrency=40)
    gate = Gatekeeper(engine)
    got, join = at_once([lambda g=g: ask(g, key) for g in nodes.gateways * 8])  # type: ignore[misc]
    until(lambda: engine.active + len(got) == 24, "all are decided")
    assert got == []
    gate.open()
    join()
    assert {one.status for one in got} == {200}


def test_a_budget_is_one_for_all_nodes(nodes: Nodes, engine: ScriptedUpstream) -> None:
    key = nodes.key(budget="1", budget_period="total")
    # Thirty tokens are reserved, 3 cents, and 2 used.
    engine.script = lambda connection, _: connection.json(answer(10, 10))
    spent = 0.0
    refused = 0
    while refused < 30:
        got = [ask(gateway, key) for gateway in nodes.gateways]
        admitted = sum(one.status == 200 for one in got)
        spent += 0.02 * admitted
        refused = 0 if admitted else refused + 1
        time.sleep(0.02)
    assert 0.96 <= round(spent, 2) <= 1.0
    assert {one.status for one in got} == {429}

    def told() -> bool:
        return bool(ask(nodes.gateways[0], key).error()["type"] == "insufficient_quota")

    # What others spent is known for good once the database has summed it up: every 5 s.
    until(told, "it is told as spent", 15.0, 0.2)


def test_a_changed_limit_holds_at_every_node(nodes: Nodes, engine: ScriptedUpstream) -> None:
    key = nodes.key(rpm=6_000, rpm_burst=10)
    assert min(flood(nodes.gateways, key, 1.0, 0.01)) > 5
    nodes.change(key, rpm=6, rpm_burst=1)
    flood(nodes.gateways, key, 1.0, 0.01)
    assert sum(flood(nodes.gateways, key, 2.0, 0.01)) <= 1 + 3
    nodes.change(key, rpm=None, rpm_burst=None)
    assert all(ask(gateway, key).status == 200 for gateway in nodes.gateways * 5)


def test_a_flush_gives_no_second_burst(nodes: Nodes, engine: ScriptedUpstream) -> None:
    key = nodes.key(rpm=60, rpm_burst=60)
    began = time.monotonic()
    admitted = sum(flood(nodes.gateways, key, 3.0))
    with redis.Redis.from_url(nodes.valkey.url) as client:
        client.flushall()
    admitted += sum(flood(nodes.gateways, key, 3.0))
    assert admitted <= bound(60, 1, time.monotonic() - began)


def test_the_store_is_killed_and_comes_back(nodes: Nodes, engine: ScriptedUpstream) -> None:
    key = nodes.key(rpm=600, rpm_burst=30)
    hard = nodes.key(rpm=600, on_store_loss="deny")
    flood(nodes.gateways, key, 3.0, 0.005)
    nodes.valkey.kill()
    try:
        for gateway in nodes.gateways:
            until(lambda g=gateway: limits_check(g) != "ok", "the loss")  # type: ignore[misc]
            assert "limits are 1/3 of each" in limits_check(gateway)
        assert ask(nodes.gateways[0], hard).status == 429
        began = time.monotonic()
        admitted = flood(nodes.gateways, key, 3.0, 0.005)
        span_s = time.monotonic() - began
        for one in admitted:
            assert 0.8 * 10 / 3 * span_s <= one <= 10 / 3 * span_s + 10
    finally:
        nodes.valkey.start()
    nodes.wait_healthy()
    time.sleep(5.0)  # exact again within
    assert ask(nodes.gateways[0], hard).status == 200
    began = time.monotonic()
    total = sum(flood(nodes.gateways, key, 4.0, 0.005))
    span_s = time.monotonic() - began
    assert 0.8 * 10 * span_s <= total <= bound(30, 10, span_s)
    share = [g.metric("forebay_lease_takes_total", **{"from": "share"}) for g in nodes.gateways]
    flood(nodes.gateways, key, 1.0, 0.005)
    assert share == [
        g.metric("forebay_lease_takes_total", **{"from": "share"}) for g in nodes.gateways
    ]


def test_the_store_is_away_at_the_start(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    valkey.port = closed_port()
    with started(tmp_path, postgres, "nodes_alone", valkey, 2) as (gateways, _):
        nodes = Nodes(gateways, valkey)
        for gateway in gateways:
            until(lambda g=gateway: limits_check(g) != "ok", "the loss")  # type: ignore[misc]
            health = gateway.health()
            assert health["status"] == "degraded"
            assert "limits are 1/2 of each" in health["checks"]["limits"]
        key = nodes.key(rpm=6, rpm_burst=20)
        admitted = flood(gateways, key, 1.0)
        assert [abs(one - 10) <= 1 for one in admitted] == [True, True]
        valkey.start()
        try:
            nodes.wait_healthy()
            # The store hears that all of it is spent.
            assert sum(flood(gateways, key, 3.0, 0.01)) <= 2
        finally:
            valkey.stop()


def test_what_a_killed_node_held_comes_back(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        with started(tmp_path, postgres, "nodes_killed", valkey, 2) as (gateways, engine):
            nodes = Nodes(gateways, valkey)
            nodes.wait_healthy()
            key = nodes.key(concurrency=2)
            gate = Gatekeeper(engine)
            doomed, survivor = gateways
            held = [
                threading.Thread(target=ask_in_vain, args=(doomed, key), daemon=True)
                for _ in range(2)
            ]
            for thread in held:
                thread.start()
            until(lambda: engine.active == 2, "both run")
            assert ask(survivor, key).status == 429
            assert doomed.popen is not None
            doomed.popen.kill()
            doomed.popen.wait()
            killed = time.monotonic()
            gate.open()
            engine.wait_idle()
            engine.reset()
            until(lambda: ask(survivor, key).status == 200, "its permits are back", 8.0, 0.1)
            # The part lives for 5 s after the last word of it; it is counted once a second.
            assert time.monotonic() - killed < 6.5
            got = flood([survivor], key, 0.5)
            assert got[0] > 0
    finally:
        valkey.stop()


def ask_in_vain(gateway: Gateway, key: Key) -> None:
    """A request whose gateway dies."""
    with pytest.raises(ConnectionError):
        ask(gateway, key)


def test_workers_of_two_nodes_share_as_four(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        with started(tmp_path, postgres, "nodes_workers", valkey, 2, workers=2) as (
            gateways,
            engine,
        ):
            nodes = Nodes(gateways, valkey)
            for gateway in gateways:
                until(
                    lambda g=gateway: g.metric("forebay_lease_participants") == 4,  # type: ignore[misc]
                    "four participants",
                )
                assert gateway.metric("forebay_lease_store_up") == 1
            key = nodes.key(rpm=60, rpm_burst=60)
            began = time.monotonic()
            admitted = sum(flood(gateways, key, 4.0))
            assert 60 <= admitted <= bound(60, 1, time.monotonic() - began, nodes=4)
            assert len(engine.requests) == admitted
            two = nodes.key(concurrency=2)
            gate = Gatekeeper(engine)
            got, join = at_once([lambda g=g: ask(g, two) for g in gateways * 6])  # type: ignore[misc]
            until(lambda: len(got) >= 10, "the others are refused")
            assert {one.status for one in got} == {429}
            gate.open()
            join()
            assert sorted(one.status for one in got) == [200] * 2 + [429] * 10
    finally:
        valkey.stop()

"""Engines that die, start and drain behind the gateway. b is the one that this happens to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engine_real.asking import Door, Grpc, Http, Said
from tests.engine_real.conftest import Pair, wait_open
from tests.engine_real.scripts import HELLO, NUMBERS
from tests.engine_real.test_answers import in_order
from tests.support.admin import Admin
from tests.support.processes import Gateway, Key
from tests.support.wait import until
from tests.support.wire import CHAT, chat

STEP_S = 0.1
"""Of a slowed engine: an answer of `NUMBERS` takes 12 s."""
MEMORY = 4 * 1024**3
"""Bytes that two engines may take, idle."""
HOLD_S = 580

Record = Callable[[str, object], None]


@pytest.mark.usefixtures("known")
def test_two_engines_fit_into_a_small_machine(both: Pair, record_property: Record) -> None:
    """And do not keep its cores busy when they have nothing to do."""
    took = both.a.memory_bytes() + both.b.memory_bytes()
    record_property("memory of two engines, GB", round(took / 1e9, 2))
    assert took < MEMORY or both.a.load()["memory"]["weight_gb"] > 1

    def cpu_s() -> float:
        times = [p.cpu_times() for e in (both.a, both.b) for p in e.processes()]
        return float(sum(t.user + t.system for t in times))

    before = cpu_s()
    time.sleep(5)
    used = (cpu_s() - before) / 5
    record_property("cores of two idle engines, probed", round(used, 2))
    assert used < 0.6


@pytest.mark.usefixtures("known")
def test_streams_of_a_killed_engine_go_on_at_the_other(
    both: Pair, house: Gateway, doors: dict[str, Door]
) -> None:
    """kill -9 while four streams run there; none of their clients sees more than a pause."""
    wait_open(house, "a", "b")
    own = both.a.call(CHAT, chat("tiny", f"/{NUMBERS.name}", temperature=0)).json()
    uninterrupted = own["choices"][0]["message"]["content"]
    usage = own["usage"]["prompt_tokens"], own["usage"]["completion_tokens"]
    assert uninterrupted == NUMBERS.text
    both.b.slow_down(STEP_S)
    with ExitStack() as open_streams:
        streams = {
            (name, legacy): open_streams.enter_context(
                door.stream(
                    "on-b",
                    NUMBERS.texts[0] if legacy else f"/{NUMBERS.name}",
                    legacy=legacy,
                    temperature=0,
                    max_tokens=NUMBERS.tokens,
                )
            )
            for name, door in doors.items()
            for legacy in (False, True)
        }
        for stream in streams.values():
            stream.read(12)
        until(lambda: both.b.running() == len(streams), "all run there", 10)
        both.b.kill()
        said: dict[tuple[str, bool], Said] = {}
        for which, stream in streams.items():
            said[which] = stream.rest()
    for (name, legacy), one in said.items():
        texts = NUMBERS.texts[1:] if legacy else NUMBERS.texts
        in_order(one.pieces, texts)
        assert one.error is None, (name, one.error)
        assert one.finish == "stop"
        row = house.usage(1, request_id=one.request_id)[0]
        assert row["outcome"] == "ok"
        assert one.usage == (row["prompt_tokens"], row["completion_tokens"])
        if legacy:
            assert one.usage[1] == NUMBERS.tokens - 1
        else:
            assert one.usage == usage
        log = row["attempt_log"]
        tried = json.loads(log) if isinstance(log, str) else log
        assert [attempt["upstream"] for attempt in tried] == ["b", "a"], tried


@pytest.mark.usefixtures("known")
def test_a_request_waits_for_an_engine_that_starts(
    pair: Pair,
    house: Gateway,
    tmp_path: Path,
    database_url: str,
    record_property: Record,
) -> None:
    """Held while nothing listens, while weights load and while `/ready` says 503; then answered."""
    if pair.b.alive():
        pair.b.stop()
    config = {
        "upstreams": {
            "b": {
                "kind": "sglang",
                "url": pair.b.url,
                "slow_start": 0,
                "cold": {"hold": HOLD_S, "keep_alive": 1},
            }
        },
        "models": {"tiny": {"targets": [{"upstream": "b"}], "timeouts": {"total": HOLD_S}}},
        "listen": {"grpc": "127.0.0.1:0"},
    }
    gateway = Gateway(tmp_path / "gateway", config, database_url)
    gateway.start()
    try:
        key = gateway.key()
        watcher = Admin(gateway)
        assert gateway.health()["checks"]["upstream:b"] != "ok"
        grpc = Grpc(gateway.grpc, key.secret)
        answers: list[Said] = []
        asking = [
            threading.Thread(
                target=lambda door=door: answers.append(door.whole("tiny", "hi", temperature=0))
            )
            for door in (Http(gateway.port, key.secret), grpc)
        ]
        for thread in asking:
            thread.start()
        until(lambda: gateway.metric("forebay_requests_in_flight") == 2, "they are held", 10)
        pair.b.launch()
        seen: list[str] = []

        def state() -> bool:
            found = watcher.send("GET", "/upstreams/b")["state"]
            if not seen or seen[-1] != found:
                seen.append(found)
            return bool(found == "warm")

        until(state, "warm", HOLD_S, every_s=0.05)
        pair.b.wait_ready()
        for thread in asking:
            thread.join(60)
        assert [said.text for said in answers] == [HELLO.text] * 2
        assert seen == ["loading", "warm"]
        assert pair.b.ready_s is not None
        record_property("a start with the gateway's hold, s", round(pair.b.ready_s, 1))
        grpc.close()
    finally:
        assert gateway.stop() == 0
    assert "Traceback (most recent" not in gateway.log()
    wait_open(house, "a", "b")


@pytest.mark.usefixtures("known")
def test_an_engine_that_drains_gets_nothing_new(
    both: Pair, house: Gateway, house_key: Key, doors: dict[str, Door], record_property: Record
) -> None:
    """SIGTERM: `/ready` says 503, requests go to the other, what runs goes on, then it exits."""
    wait_open(house, "a", "b")
    both.b.slow_down(STEP_S)
    with ExitStack() as open_streams:
        streams = {
            name: open_streams.enter_context(door.stream("on-b", f"/{NUMBERS.name}", temperature=0))
            for name, door in doors.items()
        }
        for stream in streams.values():
            stream.read(5)
        both.b.terminate()
        until(lambda: both.b.status("/ready") == 503, "it says so", 10)

        def upstream() -> str:
            answer = house.call(CHAT, chat("on-b", "hi", max_tokens=2), key=house_key.secret)
            assert answer.status == 200, answer.body
            return str(house.usage_of(answer)["upstream"])

        began = time.monotonic()
        until(lambda: upstream() == "a", "requests move", 10)
        record_property("drain: requests moved after, s", round(time.monotonic() - began, 2))
        for _ in range(3):
            assert upstream() == "a"
        assert both.b.running() == len(streams)
        both.b.slow_down(None)
        for stream in streams.values():
            said = stream.rest()
            in_order(said.pieces, NUMBERS.texts)
            assert said.finish == "stop"
            row = house.usage(1, request_id=said.request_id)[0]
            assert (row["outcome"], row["upstream"]) == ("ok", "b")
            assert row["completion_tokens"] == NUMBERS.tokens
    until(lambda: not both.b.alive(), "it exits when it is idle", 60)
    assert upstream() == "a"

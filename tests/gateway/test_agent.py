"""Upstreams with an agent beside the engine: it is believed, it wakes, and it may be away."""

import asyncio
import json
from typing import Any

import pytest
from forebay.config import Agent as AgentSettings
from forebay.config import Cold
from forebay.gateway.agent import INTERVAL_S, Away, Said, read
from forebay.gateway.watcher import Watcher
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.gateway.test_watch import Engine, watch

AGENT = AgentSettings(url="http://127.0.0.1:2", key="k-agent-1")


def says(state: str, **more: Any) -> tuple[int, bytes]:
    """What an agent of `forebay-engine` answers."""
    said = {
        "state": state,
        "parked": False,
        "since_s": 1.0,
        "engine": {"kind": "sglang", "model": "m", "url": "http://127.0.0.1:1", "pid": 7},
        "phases": {"process": 0.1, "import": None},
        "load": {"running": 2, "queued": 1, "kv_used": 0.5, "age_s": 0.1},
    }
    return 200, json.dumps({**said, **more}).encode()


def beside(state: str, answers: dict[str, Any] | None = None, *, down: bool = False) -> Engine:
    """An engine whose agent says `state`."""
    engine = Engine(answers, down=down)
    engine.agent = says(state)
    return engine


def test_an_agent_is_believed_and_the_engine_is_not_asked() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        for state in ("warm", "loading", "cold", "draining", "down", "warm"):
            engine.agent = says(state)
            await asyncio.sleep(3)
        assert engine.states == ["warm", "loading", "cold", "draining", "down", "warm"]
        assert engine.agent_answers == [True]
        assert engine.paths()["/ready"] == 0
        assert engine.paths()["/v1/chat/completions"] == 0, "the agent has warmed it up"
        assert watcher.agents == {"gpu": "ok"}

    watch(beside("warm"), scene, agent=AGENT)


@pytest.mark.parametrize(
    ("state", "check"),
    [
        ("warm", "ok"),
        ("cold", "ok: cold"),
        ("loading", "down: not ready"),
        ("draining", "down: draining"),
        ("down", "down: not ready"),
    ],
)
def test_what_the_readiness_says(state: str, check: str) -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(1)
        assert watcher.checks == {"gpu": check}

    watch(beside(state), scene, agent=AGENT)


def test_an_engine_that_drains_is_seen_within_a_second() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(30.5)
        engine.agent = says("draining")
        at = asyncio.get_running_loop().time()
        await asyncio.sleep(5)
        found = next(when for when, state, _ in engine.told if state == "draining")
        assert found - at <= INTERVAL_S

    watch(beside("warm"), scene, agent=AGENT)


def test_a_cold_engine_is_woken_by_its_agent() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(30)
        assert {path for _, _, path in engine.agent_asked} == {"/state"}, "nobody wants it"
        engine.wanted.append("gpu")
        at = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        (woken,) = [at for at, method, path in engine.agent_asked if (method, path) == WAKE]
        assert woken - at <= 0.5
        engine.agent = says("loading")
        await asyncio.sleep(20)
        engine.agent = says("warm")
        await asyncio.sleep(1)
        assert engine.states == ["cold", "loading", "warm"]
        assert [a[1:] for a in engine.agent_asked].count(WAKE) == 1
        assert engine.paths()["/v1/chat/completions"] == 0

    watch(beside("cold", down=True), scene, agent=AGENT)


WAKE = ("POST", "/wake")
BROKEN = [(b"x-forebay-error", b"upstream_error")]
LARGE = "its answer is too large"
DEEP = b'{"state": "warm", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def test_a_call_that_does_nothing_is_made_again() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        engine.wanted.append("gpu")
        await asyncio.sleep(35)
        assert [a[1:] for a in engine.agent_asked].count(WAKE) in (3, 4)

    watch(beside("cold", down=True), scene, agent=AGENT)


def test_a_pools_agent_is_asked_for_the_member() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        engine.wanted.append("gpu")
        await asyncio.sleep(1)
        paths = {(method, path) for _, method, path in engine.agent_asked}
        assert paths == {("GET", "/state?member=2"), ("POST", "/wake?member=2")}

    settings = AgentSettings(url="http://127.0.0.1:2", member=2)
    watch(beside("cold", down=True), scene, agent=settings)


def test_a_parked_engine_is_a_cold_one() -> None:
    engine = beside("cold", down=True)
    engine.agent = says("cold", parked=True)

    async def scene(engine: Engine, watcher: Watcher) -> None:
        engine.wanted.append("gpu")
        await asyncio.sleep(1)
        assert engine.states == ["cold"]
        assert WAKE in [a[1:] for a in engine.agent_asked]

    watch(engine, scene, agent=AGENT)


@pytest.mark.parametrize("body", [b'{"state": "\xff secret"}', DEEP])
def test_an_agent_that_says_what_cannot_be_read_hides_no_dead_engine(body: bytes) -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(1)
        engine.agent, engine.down = (200, body), True
        await asyncio.sleep(3)
        assert engine.states == ["warm", "down"]
        assert watcher.checks == {"gpu": "down: not ready"}
        assert watcher.agents["gpu"].startswith("degraded: what it says is no state")

    with capture_logs() as logs:
        watch(beside("warm"), scene, agent=AGENT)
    assert "secret" not in str(logs)
    assert "a look failed" not in str(logs)


def test_requests_that_are_not_held_wake_nothing() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        engine.wanted.append("gpu")
        await asyncio.sleep(5)
        assert watcher.checks == {"gpu": "down: cold"}, "nobody may wait, and nobody wakes it"
        assert WAKE not in [a[1:] for a in engine.agent_asked]

    watch(beside("cold", down=True), scene, agent=AGENT, cold=Cold(hold=0))


def test_without_its_agent_the_engine_is_asked_itself() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(3)
        engine.agent = None
        await asyncio.sleep(10)
        assert engine.states == ["warm"], "its own probe says so too"
        assert engine.paths()["/ready"] > 1
        assert watcher.checks == {"gpu": "ok"}
        why = "degraded: no connection; the engine itself is asked"
        assert watcher.agents == {"gpu": why}
        engine.down = True
        await asyncio.sleep(5)
        assert engine.states == ["warm", "down"], "nobody could wake it"
        engine.wanted.append("gpu")
        await asyncio.sleep(5)
        assert WAKE not in [a[1:] for a in engine.agent_asked]
        engine.agent = says("cold")
        await asyncio.sleep(5)
        assert engine.states == ["warm", "down", "cold"]
        assert engine.agent_answers == [True, False, True]

    with capture_logs() as logs:
        watch(beside("warm"), scene, agent=AGENT)
    of_agent = [entry["event"] for entry in logs if "agent" in entry["event"]]
    assert of_agent[:3] == [
        "upstream's agent answers",
        "upstream's agent is away",
        "upstream's agent answers",
    ]
    assert "k-agent-1" not in str(logs)


def test_its_load_counts_where_the_engine_tells_none() -> None:
    async def scene(engine: Engine, watcher: Watcher) -> None:
        await asyncio.sleep(3)
        load = next(load for _, state, load in reversed(engine.told) if state == "warm")
        assert load is not None
        assert json.loads(load) == {"running": 2, "waiting": 1, "tokens": 0}
        assert not [path for path in engine.paths() if "load" in path]

    watch(beside("warm"), scene, kind="tgi", agent=AGENT)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "it was not asked"),
        ((503, [(b"x-forebay-error", b"unavailable")], b"", False), "no connection"),
        ((504, [(b"x-forebay-error", b"upstream_timeout")], b"", False), "no answer in time"),
        (
            (502, BROKEN, b'{"error":{"message":"The upstream\'s answer is too large."}}', False),
            LARGE,
        ),
        ((502, BROKEN, b'{"error":{"message":"The upstream broke off."}}', False), "it broke off"),
        ((401, [], b"", False), "it refuses the key with 401"),
        ((404, [], b"", False), "/state was answered with 404"),
        ((200, [], b"[]", False), "what it says is no state"),
        ((200, [], b'{"state": "\xff"}', False), "what it says is no state"),
        ((200, [], DEEP, False), "what it says is no state"),
        ((200, [], b'{"state": "asleep"}', False), "what it says is no state"),
        ((200, [], b'{"state": "warm", "parked": 3}', False), "what it says is no state"),
    ],
)
def test_what_is_no_word_of_an_agents(answer: Any, why: str) -> None:
    with pytest.raises(Away, match=why):
        read(answer)


@given(st.binary(max_size=200))
def test_whatever_it_answers_is_a_state_or_none(body: bytes) -> None:
    try:
        said = read((200, [], body, False))
    except Away:
        return
    assert isinstance(said, Said)


@given(st.integers(), st.integers())
def test_a_load_fits_the_core(running: int, queued: int) -> None:
    load = {"running": running, "queued": queued, "kv_used": None, "age_s": 0}
    body = json.dumps({"state": "warm", "load": load}).encode()
    try:
        report = read((200, [], body, False)).report()
    except Away:
        return
    assert report is not None
    assert all(0 <= count < 2**32 for count in json.loads(report).values())

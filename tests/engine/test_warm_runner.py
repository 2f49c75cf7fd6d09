"""A pool of real processes: simulated engines that are started, parked, drained and killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from forebay_engine.serve import agent, profile
from forebay_engine.serve.profile import Profile
from forebay_engine.warm import members, runner
from forebay_engine.warm.members import profiles
from forebay_engine.warm.pool import Desired, Limits
from forebay_engine.warm.runner import Pool
from forebay_engine.warm.service import Options, build, routes

from tests.support.ports import closed_ports

WAIT_S = 30.0
SIM = [sys.executable, "-m", "forebay_engine", "sim", "--host", "{host}", "--port", "{port}"]


def simulated(count: int, *more: str, park: str = "stop", **fields: Any) -> Profile:
    """A profile whose engines are simulators that take a moment to load."""
    document = {
        "kind": "sglang",
        "model": "tiny",
        "port": closed_ports(count),
        "command": [*SIM, "--load-delay", "0.3", "--warmup", "0.05", *more],
        "park": park,
        "drain": {"settle_s": 0.1, "grace_s": 20, "kill_s": 5},
        "restart": {"backoff_s": 0.1, "max_crashes": 1},
        **fields,
    }
    return profile.parse(json.dumps(document))


@asynccontextmanager
async def pool(
    of: Profile,
    desired: Desired,
    size: int,
    *,
    limits: Limits = Limits(1, 0.2),  # noqa: B008 (frozen)
    idle_s: float = 300.0,
) -> AsyncIterator[Pool]:
    options = Options(desired, size, limits, idle_s, None, None, None)
    made = build(of, options, gpus=())
    made.start()
    try:
        yield made
    finally:
        await made.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def chat(url: str, words: int = 3) -> str:
    async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as client:
        message = {"role": "user", "content": f"/words {words}"}
        body = {"model": "tiny", "messages": [message]}
        answer = await client.post(f"{url}/v1/chat/completions", json=body)
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_as_many_are_kept_warm_as_are_wanted_and_no_more_start_at_a_time() -> None:
    most = 0
    async with pool(simulated(3), Desired(2), 3) as kept:

        def watched() -> bool:
            nonlocal most
            counts = kept.counts()
            most = max(most, counts["loading"])
            return counts["warm"] == 2

        await until(watched)
        assert most == 1
        assert await chat(kept.members[0].profile.url)
        assert await chat(kept.members[1].profile.url)
        kept.set(Desired(1))
        await until(lambda: kept.counts() == counts(warm=1, cold=2))
        with pytest.raises(ValueError, match="warm: 3 and parked: 1 are more than the pool's 3"):
            kept.set(Desired(3, 1))
        assert kept.desired == Desired(1)


def counts(**given: int) -> dict[str, int]:
    states = ("warm", "loading", "parked", "cold", "draining", "down")
    return {state: given.get(state, 0) for state in states}


async def test_a_member_that_goes_finishes_what_it_has() -> None:
    of = simulated(1, "--decode-rate", "20")
    async with pool(of, Desired(1), 1) as kept:
        await kept.converged(WAIT_S)
        answer = asyncio.ensure_future(chat(of.url, 80))
        await until(lambda: (load := kept.members[0].load) is not None and load.running == 1)
        kept.set(Desired(0))
        await until(lambda: kept.members[0].state == "draining")
        assert len((await answer).split()) == 80
        await until(lambda: kept.counts() == counts(cold=1))


async def test_one_that_is_killed_is_started_again() -> None:
    async with pool(simulated(1), Desired(1), 1) as kept:
        await kept.converged(WAIT_S)
        pid = kept.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: kept.members[0].pid not in (None, pid))
        await until(lambda: kept.counts()["warm"] == 1)


async def test_one_that_cannot_start_is_left_alone_and_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []
    of = simulated(1, "--no-such-option")
    async with pool(of, Desired(1), 1) as kept:
        kept._say = said.append
        await until(lambda: kept.counts()["down"] == 1)
        await until(lambda: "member 0 is left alone for 30 s" in said)
        error = kept.view()["members"][0]["error"]
        assert "no-such-option" in error
        told = capfd.readouterr().err
        assert "forebay-engine warm: member 0: " in told
        assert "forebay-engine serve: " not in told


async def test_processes_wait_at_their_gates_and_go_on_from_there() -> None:
    of = simulated(2, "--gated-launch-port", "{gate}", park="gate")
    async with pool(of, Desired(0, 1), 2) as kept:
        await until(lambda: kept.counts() == counts(parked=1, cold=1))
        parked = next(member for member in kept.members if member.parked)
        pid = parked.pid
        kept.set(Desired(1, 0))
        await until(lambda: kept.counts()["warm"] == 1)
        assert (parked.state, parked.pid) == ("warm", pid), "the same process goes on"


async def test_each_member_has_a_gate_of_its_own() -> None:
    of = simulated(2, "--gated-launch-port", "{gate}", park="gate")
    async with pool(of, Desired(0, 2), 2, limits=Limits(2, 0.2)) as kept:
        await until(lambda: kept.counts() == counts(parked=2))
        pids = {member.pid for member in kept.members}
        kept.set(Desired(2, 0))
        await until(lambda: kept.counts() == counts(warm=2))
        assert {member.pid for member in kept.members} == pids


async def test_memory_that_is_not_released_is_found_out_and_the_member_is_stopped() -> None:
    # Its launch says the flag, but the engine that answers has no saver.
    of = simulated(1, park="stop")
    of = profile.parse(
        json.dumps(
            {
                "kind": "sglang",
                "model": "tiny",
                "port": of.port,
                "command": ["env", "FLAG=--enable-memory-saver", *of.command],
                "drain": {"settle_s": 0.1},
                "park": "stop",
            }
        )
    )
    options = Options(Desired(0, 0), 1, Limits(1, 0.2), 300.0, None, None, None)
    made = build(of, options, gpus=())
    made.park = "memory"
    made._planner = type(made._planner)(Limits(1, 0.2), "memory")
    made.set(Desired(0, 1))
    made.start()
    try:
        await until(lambda: made.park == "stop")
        await until(lambda: made.counts() == counts(cold=1))
        assert "enable_memory_saver" in made.view()["why"]
    finally:
        await made.close()


async def test_memory_that_is_released_parks_and_resumes_the_same_process() -> None:
    of = simulated(1, "--enable-memory-saver", park="memory")
    async with pool(of, Desired(0, 1), 1) as kept:
        await until(lambda: kept.counts() == counts(parked=1))
        pid = kept.members[0].pid
        kept.set(Desired(1, 0))
        await until(lambda: kept.counts() == counts(warm=1))
        assert kept.members[0].pid == pid is not None


async def test_a_release_that_is_refused_is_not_tried_again_at_once() -> None:
    of = simulated(2, "--enable-memory-saver", park="memory")
    said: list[str] = []
    async with pool(of, Desired(1, 1), 2) as kept:
        kept._say = said.append
        for member in kept.members:
            member.kind = _Refuses(member.kind)
        await until(lambda: any("no more are parked for 30 s" in text for text in said))
        await asyncio.sleep(2.0)
        assert kept.counts() == counts(warm=1, cold=1)
        assert sum(text.endswith(": park") for text in said) == 1
        assert "did not release its memory" in kept.view()["why"]


class _Refuses:
    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def park(self, _: Profile) -> Any:
        from forebay_engine.serve.engines import Call, ParkCalls

        return ParkCalls(Call("/no-such-path"), Call("/no-such-path"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)


async def test_one_that_dies_while_its_memory_is_released_is_not_parked_again_at_once() -> None:
    of = simulated(1, "--enable-memory-saver", park="memory")
    said: list[str] = []
    async with pool(of, Desired(0, 1), 1) as kept:
        kept._say = said.append
        await until(lambda: kept.counts() == counts(parked=1))
        await asyncio.sleep(1.0)
        pid = kept.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: any("died while it was parked; no more" in text for text in said))
        await asyncio.sleep(1.0)
        assert kept.counts() == counts(cold=1)
        kept.set(Desired(1, 0))
        await until(lambda: kept.counts() == counts(warm=1))


async def test_one_that_dies_at_its_gate_comes_back_there_each_time_later() -> None:
    restart = {"backoff_s": 0.3, "max_crashes": 2, "within_s": 600}
    of = simulated(1, "--gated-launch-port", "{gate}", park="gate", restart=restart)
    said: list[str] = []
    async with pool(of, Desired(0, 1), 1) as kept:
        (member,) = kept.members
        kept._say = member._say = said.append
        for _ in range(3):
            await until(lambda: kept.counts() == counts(parked=1))
            pid = member.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda gone=pid: member.pid != gone)  # type: ignore[misc]
        await until(lambda: "member 0 is left alone for 30 s" in said)
        starts = [text.rpartition("; ")[2] for text in said if "started again" in text]
        assert starts == [f"it is started again in {pause} s" for pause in ("0.3", "0.6")]
        assert kept.counts() == counts(down=1)


async def test_what_is_woken_from_outside_comes_on_top_and_goes_when_nobody_uses_it() -> None:
    async with pool(simulated(1), Desired(0), 1, idle_s=1.0) as kept:
        await asyncio.sleep(0.1)
        assert kept.counts() == counts(cold=1)
        await kept.members[0].wake()
        await until(lambda: kept.counts() == counts(warm=1))
        assert kept.view()["members"][0]["woken"] is True
        await until(lambda: kept.counts() == counts(cold=1))


async def test_one_that_is_drained_is_left_alone_and_another_takes_its_place() -> None:
    async with pool(simulated(2), Desired(1), 2) as kept:
        await kept.converged(WAIT_S)
        first = next(member for member in kept.members if member.state == "warm")
        await first.drain(5.0)
        await until(lambda: kept.counts() == counts(warm=1, down=1))
        assert first.state == "down"


async def test_one_that_had_crashed_and_is_drained_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "crash_pause_s", lambda times: 1.0)
    said: list[str] = []
    async with pool(simulated(1, "--no-such-option"), Desired(1), 1) as kept:
        kept._say = said.append
        await until(lambda: "member 0 is left alone for 1 s" in said)
        await kept.members[0].drain(5.0)
        said.clear()
        await asyncio.sleep(2.0)
        assert (kept.counts(), said) == (counts(down=1), [])
        await kept.members[0].wake()
        await until(lambda: "member 0: wake" in said)


@asynccontextmanager
async def asked(of: Pool, key: str | None) -> AsyncIterator[httpx.AsyncClient]:
    app = agent.Agent(lambda: of.members, key=key, routes=routes(of))
    server, serving = await agent.serve(app, "127.0.0.1", 0)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    url = f"http://{server.address}"
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        await app.close()


async def test_the_agent_tells_and_sets() -> None:
    of = simulated(2)
    async with pool(of, Desired(0), 2) as kept, asked(kept, "k-1") as client:
        seen = (await client.get("/pool")).json()
        assert (seen["warm"], seen["size"], seen["park"]) == (0, 2, "stop")
        assert seen["places"] == 2
        assert seen["members"][1]["url"] == f"http://127.0.0.1:{of.port + 1}"
        set_ = await client.put("/pool", json={"warm": 1})
        assert (set_.status_code, set_.json()["warm"]) == (200, 1)
        await until(lambda: kept.counts()["warm"] == 1)
        woken = await client.post("/wake?member=1")
        assert woken.status_code == 202
        await until(lambda: kept.counts()["warm"] == 2)
        assert (await client.get("/state?member=1")).json()["state"] == "warm"
        large = await client.put("/pool", content=b" " * 1_000_000)
        assert large.status_code == 413
        deep = await client.put("/pool", content=b"[" * 2_000)
        assert deep.status_code == 422
        wrongs: tuple[Any, ...] = ({"warm": 3}, {"warm": -1}, {"cold": 1}, {"warm": "two"}, [])
        for wrong in wrongs:
            refused = await client.put("/pool", json=wrong)
            assert refused.status_code == 422
            assert refused.json()["error"]
        unknown = await client.get("/pool", headers={"authorization": "Bearer other"})
        assert unknown.status_code == 401
        assert kept.desired == Desired(1)


def test_members_have_their_ports_and_gpus() -> None:
    from forebay_engine.serve.gpu import Gpu

    gpus = [Gpu(i, "H100", 81_559, (9, 0)) for i in range(4)]
    of = profile.parse("{kind: sglang, model: m, tensor_parallel: 2, env: {A: b}}")
    made = profiles(of, 2, gpus)
    assert [(p.port, place) for p, place in made] == [(30000, 0), (30001, 1)]
    devices = [p.env["CUDA_VISIBLE_DEVICES"] for p, _ in made]
    assert devices == ["0,1", "2,3"]
    gated = profile.parse("{kind: sglang, model: m, tensor_parallel: 4, park: gate}")
    assert [place for _, place in profiles(gated, 2, gpus)] == [0, 0], "they share"
    whole = profile.parse("{kind: sglang, model: m}")
    ((one, _),) = profiles(whole, 1, gpus)
    assert one.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@pytest.mark.parametrize(
    ("text", "gpus", "why"),
    [
        ("{kind: sglang, model: m, park: memory}", 0, "park: memory needs CUDA"),
        ("{kind: sglang, model: m, park: memory, tensor_parallel: 2}", 2, "needs GPUs for each"),
        ("{kind: sglang, model: m, tensor_parallel: 4}", 2, "4 GPUs a member, and there are 2"),
        (
            "{kind: sglang, model: m, park: memory, command: [x]}",
            0,
            "park: memory needs --enable-memory-saver in command",
        ),
        (
            "{kind: sglang, model: m, park: gate, command: [x, '{gate}']}",
            0,
            "park: gate needs --gated-launch-port in command",
        ),
    ],
)
def test_a_way_to_park_that_cannot_work_is_refused(text: str, gpus: int, why: str) -> None:
    from forebay_engine.serve.gpu import Gpu

    seen = [Gpu(i, "L4", 23_034, (8, 9)) for i in range(gpus)]
    with pytest.raises(ValueError, match=why):
        members.profiles(profile.parse(text), 2, seen)

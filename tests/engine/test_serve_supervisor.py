"""The supervisor with real child processes: the simulator, shells, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from forebay_engine.serve import client, leash, process, profile
from forebay_engine.serve.engines import make
from forebay_engine.serve.engines.sglang import gate_port
from forebay_engine.serve.supervisor import Supervisor

from tests.engine.serve_helpers import LIMIT_S, alive, gone, supervised, values, warm
from tests.support.ports import closed_port


def chat(words: int) -> dict[str, Any]:
    """A streamed answer of so many words."""
    message = {"role": "user", "content": f"/words {words}"}
    return {"model": "tiny", "stream": True, "max_tokens": words + 1, "messages": [message]}


async def stream(url: str, words: int, started: asyncio.Event | None = None) -> str:
    """The end of a streamed chat: its last event, or the error that cut it."""
    last = ""
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=chat(words)) as answer,
        ):
            async for line in answer.aiter_lines():
                last = line or last
                if started is not None:
                    started.set()
    except httpx.HTTPError as error:
        return type(error).__name__
    return last


async def test_it_is_warm_when_its_prompts_are_answered() -> None:
    prompts = ["one", "two"]
    async with supervised("--load-delay", "0.2", warmup={"prompts": prompts}) as engine:
        assert (engine.state, engine.pid) == ("cold", None)
        await engine.wake()
        await engine.wake()
        assert engine.state == "loading"
        await engine.wait_for("warm", LIMIT_S)
        pid = engine.pid
        await engine.wake()
        assert (engine.state, engine.pid) == ("warm", pid)
        async with httpx.AsyncClient(trust_env=False) as client:
            seen = (await client.get(f"{engine.profile.url}/sim/requests")).json()
        assert len(seen["requests"]) == 2
        phases = engine.phases
        assert phases.process is not None
        assert phases.ready is not None
        assert phases.first_token is not None
        assert phases.process <= phases.ready <= phases.first_token


async def test_a_killed_engine_is_started_again() -> None:
    async with supervised() as engine:
        await warm(engine)
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await engine.wait_for("loading", LIMIT_S)
        await engine.wait_for("warm", LIMIT_S)
        assert engine.pid not in (None, pid)
        assert engine.crashes == 1


async def test_one_that_dies_at_its_start_is_given_up_with_its_last_lines() -> None:
    command = ["sh", "-c", "echo a line; echo ValueError: no such flag >&2; exit 3"]
    async with supervised(command=command) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert (engine.state, engine.exit_status, engine.crashes) == ("down", 3, 3)
        assert "ended with status 3" in engine.error
        assert "  | ValueError: no such flag" in engine.error
        await engine.wake()
        assert engine.state == "loading"


async def test_its_last_lines_are_told_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_ENGINE_KEY", "the-agents")
    command = ["sh", "-c", "echo key: s3cret, agent: $FOREBAY_ENGINE_KEY; exit 1"]
    async with supervised(command=command, api_key="s3cret", restart={"max_crashes": 0}) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "key: ********, agent:" in engine.error
        assert "the-agents" not in engine.error
        assert "s3cret" not in engine.error


async def test_the_signal_that_ended_it_is_named() -> None:
    async with supervised(
        command=["sh", "-c", "kill -SEGV $$"], restart={"max_crashes": 0}
    ) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert engine.exit_status == -signal.SIGSEGV
        assert "SIGSEGV" in engine.error


async def test_a_program_that_is_not_there_is_named() -> None:
    async with supervised(command=["no-such-engine"], restart={"max_crashes": 0}) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "no-such-engine: No such file" in engine.error


async def test_a_port_in_use_is_told_before_the_weights_are_read() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with supervised(port=port) as engine:
            await engine.wake()
            async with asyncio.timeout(LIMIT_S):
                await engine.failed()
            assert engine.error == f"127.0.0.1:{port}: Address already in use"
            assert engine.exit_status is None


async def test_a_gate_s_port_in_use_is_told_before_the_weights_are_read() -> None:
    given = gated()
    port = gate_port(profile.from_values({"kind": "sglang", "model": "tiny", **given}))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        async with supervised(**given) as engine:
            await engine.wake()
            async with asyncio.timeout(LIMIT_S):
                await engine.failed()
            assert engine.error == f"the gate's port 127.0.0.1:{port}: Address already in use"
            assert engine.exit_status is None


async def test_a_model_that_is_not_there_is_told_at_once() -> None:
    async with supervised(model="/no/such/model") as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "model: /no/such/model: no such" in engine.error
        assert engine.crashes <= 1


async def test_one_that_is_not_ready_in_time_is_given_up() -> None:
    async with supervised(
        "--load-delay", "60", load_timeout_s=0.3, restart={"max_crashes": 0}
    ) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "not ready within 0.3 s" in engine.error


async def test_one_that_does_not_answer_its_prompts_is_not_warm() -> None:
    async with supervised(
        "--kind", "vllm", "--model", "other", kind="vllm", restart={"max_crashes": 0}
    ) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "warm-up prompt 1 was answered with 404" in engine.error


@pytest.mark.parametrize("kind", ["sglang", "trtllm"])
async def test_a_drain_lets_a_stream_finish(kind: str) -> None:
    options = ("--decode-rate", "20", "--kind", kind)
    async with supervised(*options, kind=kind) as engine:
        await warm(engine)
        started = asyncio.Event()
        streaming = asyncio.ensure_future(stream(engine.profile.url, 12, started))
        await asyncio.wait_for(started.wait(), LIMIT_S)
        draining = asyncio.ensure_future(engine.drain(20))
        await engine.wait_for("draining", LIMIT_S)
        assert await streaming == "data: [DONE]"
        await asyncio.wait_for(draining, LIMIT_S)
        assert (engine.state, engine.exit_status, engine.pid) == ("down", 0, None)
        await engine.drain(20)


async def test_a_drain_ends_with_its_grace() -> None:
    drain = {"settle_s": 0, "kill_s": 0.2}
    async with supervised("--decode-rate", "2", drain=drain) as engine:
        await warm(engine)
        started = asyncio.Event()
        streaming = asyncio.ensure_future(stream(engine.profile.url, 1000, started))
        await asyncio.wait_for(started.wait(), LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            await engine.drain(0.3)
        assert await streaming != "data: [DONE]"
        assert engine.state == "down"


async def test_stopping_hurries_a_drain() -> None:
    async with supervised("--decode-rate", "2", drain={"settle_s": 600, "kill_s": 0.2}) as engine:
        await warm(engine)
        draining = asyncio.ensure_future(engine.drain(600))
        await engine.wait_for("draining", LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            await engine.stop()
            await draining
        assert engine.state == "down"


async def test_stopping_while_it_loads_ends_it() -> None:
    async with supervised("--load-delay", "600") as engine:
        await engine.wake()
        while engine.pid is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with asyncio.timeout(LIMIT_S):
            await engine.drain(600)
        assert (engine.state, engine.crashes) == ("down", 0)


async def test_stopping_between_two_starts_ends_the_waiting() -> None:
    restart = {"backoff_s": 600, "backoff_max_s": 600, "max_crashes": 9}
    async with supervised(command=["false"], restart=restart) as engine:
        await engine.wake()
        while not engine.crashes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with asyncio.timeout(LIMIT_S):
            await engine.stop()
        assert engine.state == "down"


async def test_parking_ends_the_process_where_memory_cannot_be_released() -> None:
    async with supervised() as engine:
        await warm(engine)
        await engine.park()
        await engine.wait_for("cold", LIMIT_S)
        assert (engine.parked, engine.pid) == (False, None)
        await warm(engine)
        assert engine.crashes == 0


async def test_a_parked_engine_keeps_its_process_and_wakes() -> None:
    async with supervised(park="memory") as engine:
        await warm(engine)
        pid = engine.pid
        assert pid is not None
        await engine.park()
        await engine.park()
        await engine.wait_for("cold", LIMIT_S)
        assert (engine.parked, engine.pid) == (True, pid)
        await warm(engine)
        assert (engine.parked, engine.pid) == (False, pid)
        await engine.park()
        await engine.wait_parked(LIMIT_S)
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        async with asyncio.timeout(LIMIT_S):
            while engine.pid is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (engine.state, engine.parked) == ("cold", False)
        await warm(engine)


async def test_stopping_ends_a_parking_that_waits() -> None:
    options = ("--decode-rate", "2")
    async with supervised(*options, park="memory", drain={"kill_s": 0.2}) as engine:
        await warm(engine)
        started = asyncio.Event()
        streaming = asyncio.ensure_future(stream(engine.profile.url, 1000, started))
        await asyncio.wait_for(started.wait(), LIMIT_S)
        await engine.park()
        assert engine.state == "draining"
        async with asyncio.timeout(LIMIT_S):
            await engine.stop()
        assert (engine.state, engine.parked, engine.pid) == ("down", False, None)
        await streaming


def gated() -> dict[str, Any]:
    """The profile of an engine with a gate."""
    script = Path(__file__).with_name("gated_engine.py")
    command = [sys.executable, str(script), "{gate}", "{port}"]
    return {"command": command, "port": closed_port(), "park": "gate"}


async def test_an_engine_is_held_before_its_weights_until_it_is_wanted() -> None:
    async with supervised(**gated()) as engine:
        await engine.park()
        await engine.wait_parked(LIMIT_S)
        assert engine.state == "cold"
        pid = engine.pid
        assert pid is not None
        assert engine.phases.import_ is not None
        assert engine.phases.weights is None
        await warm(engine)
        assert (engine.pid, engine.parked) == (pid, False)
        assert engine.phases.weights is not None
        await engine.park()
        await engine.wait_parked(LIMIT_S)
        assert engine.state == "cold"
        assert engine.pid not in (None, pid)


async def test_a_gate_that_is_not_there_yet_is_waited_for() -> None:
    async with supervised(**gated(), restart={"max_crashes": 0}) as engine:
        await warm(engine)
        assert engine.phases.weights is not None


async def test_its_load_is_told_while_it_works() -> None:
    async with supervised("--decode-rate", "20", "--max-running", "1") as engine:
        await warm(engine)
        streams = [asyncio.ensure_future(stream(engine.profile.url, 60)) for _ in range(2)]
        async with asyncio.timeout(LIMIT_S):
            while engine.load is None or engine.load.running + engine.load.queued < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (engine.load.running, engine.load.queued) == (1, 1)
        assert engine.load_age_s is not None
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def test_one_that_says_not_ready_is_not_warm_until_it_says_so_again() -> None:
    async with supervised() as engine:
        await warm(engine)
        pid = engine.pid
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{engine.profile.url}/pause_generation", json={"mode": "in_place"})
            await engine.wait_for("loading", LIMIT_S)
            await client.post(f"{engine.profile.url}/continue_generation", json={})
            await engine.wait_for("warm", LIMIT_S)
        assert engine.pid == pid


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_what_an_engine_leaves_behind_is_swept_up(tmp_path: Path, how: str) -> None:
    # A child in a session of its own, whose parent is not the engine either.
    child = tmp_path / "child"
    code = f"(setsid sleep 600 & echo $! > {child}); exec sleep 600"
    async with supervised(command=["sh", "-c", code], restart={"max_crashes": 0}) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            while not (child.exists() and child.read_text().strip()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        pids = [int(child.read_text()), engine.pid or 0]
        if how == "kill":
            os.kill(pids[1], signal.SIGKILL)
        else:
            async with asyncio.timeout(LIMIT_S):
                await engine.stop()
        await gone(*pids)


async def test_its_output_passes_unchanged() -> None:
    data = b"\x00\xffno utf-8\rover\rwritten\n" + b"x" * 200_000 + b"\nno end"
    code = f"import os; os.write(1, {data[:30]!r}); os.write(2, b'error')"
    read, write = os.pipe()
    errors_read, errors_write = os.pipe()
    given = profile.from_values(
        {
            "kind": "sglang",
            "model": "m",
            "port": closed_port(),
            "command": [sys.executable, "-c", code],
            "restart": {"max_crashes": 0},
        }
    )
    engine = Supervisor(
        given, make("sglang"), gpus=(), say=lambda _: None, output=(write, errors_write)
    )
    await engine.wake()
    async with asyncio.timeout(LIMIT_S):
        await engine.failed()
    await engine.close()
    assert (os.read(read, 65536), os.read(errors_read, 100)) == (data[:30], b"error")
    for descriptor in (read, write, errors_read, errors_write):
        os.close(descriptor)


async def test_a_synced_model_is_where_the_engine_is_told(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "model.safetensors").write_bytes(bytes(5000))
    told = tmp_path / "told.json"
    code = "import json,sys; json.dump(sys.argv[1:], open(sys.argv[1], 'w'))"
    async with supervised(
        command=[sys.executable, "-c", code, str(told), "{model}", "{name}"],
        cache_dir=str(tmp_path / "cache"),
        weights={"source": f"file://{source}"},
        restart={"max_crashes": 0},
    ) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        _, folder, name = json.loads(told.read_text())
        assert name == "tiny"
        assert (Path(folder) / "model.safetensors").stat().st_size == 5000
        assert engine.phases.prepare is not None


async def test_one_that_is_drained_while_it_is_being_spawned_does_not_stay(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    for pause in (0.0, 0.005, 0.02, 0.05):
        command = ["sh", "-c", f"echo $$ > {told}; exec sleep 600"]
        async with supervised(command=command) as engine:
            await engine.wake()
            await asyncio.sleep(pause)
            await engine.drain(0)
            assert (engine.state, engine.pid) == ("down", None)
            if told.exists() and (word := told.read_text().strip()):
                assert not alive(int(word))
        told.unlink(missing_ok=True)


async def test_a_signal_to_the_leash_is_no_death_of_the_supervisor() -> None:
    read, write = os.pipe()
    held = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        leash.__file__,
        str(write),
        str(os.getpid()),
        "0.1",
        "sleep",
        "600",
        pass_fds=(write,),
    )
    os.close(write)
    with os.fdopen(read, "rb", 0) as told:
        pid = int((await asyncio.to_thread(told.readline)).split()[1])
        held.terminate()
        await asyncio.sleep(0.4)
        assert alive(pid)
        assert held.returncode is None
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(told.readline) == b"exit -15\n"
    assert await held.wait() == 0


async def test_an_unforeseen_failure_is_told() -> None:
    async def broken(_: process.Start) -> process.Process:
        raise RuntimeError("a surprise")

    given = profile.from_values(values(restart={"max_crashes": 0}))
    said: list[str] = []
    engine = Supervisor(given, make("sglang"), gpus=(), say=said.append, spawn=broken)
    await engine.wake()
    async with asyncio.timeout(LIMIT_S):
        await engine.failed()
    assert (engine.state, engine.error) == ("down", "RuntimeError: a surprise")
    assert said == [engine.error]
    await engine.close()


async def test_one_that_does_not_come_to_its_gate_is_given_up() -> None:
    async with supervised(
        command=["sh", "-c", "exec sleep 600", "{gate}"],
        park="gate",
        load_timeout_s=0.2,
        restart={"max_crashes": 0},
    ) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "not at its gate within 0.2 s" in engine.error


async def test_one_whose_gate_is_not_there_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "GATE_S", 0.3)
    said = "print('Gated launch waiting for activation. rank=0', flush=True)"
    command = [sys.executable, "-c", f"import time; {said}; time.sleep(600)", "{gate}"]
    async with supervised(command=command, park="gate", restart={"max_crashes": 0}) as engine:
        await engine.wake()
        async with asyncio.timeout(LIMIT_S):
            await engine.failed()
        assert "it cannot be let on" in engine.error


async def test_a_drain_waits_for_one_that_does_not_tell_its_load() -> None:
    # The simulator of another kind: `/metrics` is not in TensorRT-LLM's form.
    options = ("--decode-rate", "20", "--kind", "vllm")
    async with supervised(*options, kind="trtllm") as engine:
        await warm(engine)
        assert engine.load is None
        started = asyncio.Event()
        streaming = asyncio.ensure_future(stream(engine.profile.url, 60, started))
        await asyncio.wait_for(started.wait(), LIMIT_S)
        await asyncio.wait_for(engine.drain(4), LIMIT_S)
        assert await streaming == "data: [DONE]"
        assert engine.state == "down"

"""`forebay-engine serve` as a process: signals, exit statuses, what it prints, what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.engine.serve_helpers import LIMIT_S, gone, values
from tests.engine.test_serve_supervisor import stream
from tests.support.ports import closed_port


@dataclass
class Served:
    """A running command. told: its ready file."""

    process: asyncio.subprocess.Process
    told: dict[str, Any]

    async def ended(self) -> tuple[int, str, str]:
        """Its exit status, and what it printed."""
        async with asyncio.timeout(LIMIT_S):
            out, err = await self.process.communicate()
        return self.process.returncode or 0, out.decode(), err.decode()


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


async def start(path: Path, *options: str, **env: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "forebay_engine", "serve", "--profile", str(path), *options]
    return await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **env},
    )


@asynccontextmanager
async def serving(folder: Path, content: dict[str, Any], *options: str) -> AsyncIterator[Served]:
    ready = folder / "ready"
    words = ["--agent", "127.0.0.1:0", "--ready-file", str(ready), *options]
    process = await start(write(folder, content), *words, FOREBAY_ENGINE_KEY="k3y")
    try:
        async with asyncio.timeout(LIMIT_S):
            while not ready.exists():
                assert process.returncode is None
                await asyncio.sleep(0.02)
        yield Served(process, json.loads(ready.read_text()))
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def state(served: Served) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"authorization": "Bearer k3y"}
        answer = await client.get(f"{served.told['agent']}/state", headers=headers)
        found: dict[str, Any] = answer.json()
        return found


async def test_a_signal_drains_it_and_it_ends_well(tmp_path: Path) -> None:
    async with serving(tmp_path, values("--decode-rate", "20")) as served:
        found = await state(served)
        assert (found["state"], found["engine"]["url"]) == ("warm", served.told["url"])
        started = asyncio.Event()
        streaming = asyncio.ensure_future(stream(served.told["url"], 15, started))
        await asyncio.wait_for(started.wait(), LIMIT_S)
        served.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            while (await state(served))["state"] == "warm":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await streaming == "data: [DONE]"
        status, out, err = await served.ended()
        assert (status, err) == (0, "")
        assert out.startswith("forebay-engine sim: serving tiny on ")
        assert not (tmp_path / "ready").exists()
        await gone(found["engine"]["pid"])


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    drain = {"settle_s": 600, "grace_s": 600, "kill_s": 0.2}
    content = values("--decode-rate", "1", drain=drain, warmup={"prompts": []})
    async with serving(tmp_path, content) as served:
        streaming = asyncio.ensure_future(stream(served.told["url"], 1000))
        served.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(LIMIT_S):
            while (await state(served))["state"] == "warm":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        served.process.send_signal(signal.SIGINT)
        assert (await served.ended())[0] == 0
        assert await streaming != "data: [DONE]"


async def test_a_killed_supervisor_takes_the_engine_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path, values()) as served:
        pid = (await state(served))["engine"]["pid"]
        served.process.kill()
        await gone(pid)
        await served.ended()


@pytest.mark.parametrize(("code", "status"), [("exit 7", 7), ("kill -KILL $$", 137)])
async def test_the_engines_status_is_passed_on(tmp_path: Path, code: str, status: int) -> None:
    command = ["sh", "-c", f"echo its own words >&2; {code}"]
    content = values(command=command, restart={"max_crashes": 0})
    process = await start(write(tmp_path, content), "--agent", "off")
    found, out, err = await Served(process, {}).ended()
    assert (found, out) == (status, "")
    assert err.startswith("its own words\n")
    assert "  | its own words" in err


async def test_an_engine_that_is_to_be_woken_waits(tmp_path: Path) -> None:
    port = closed_port()
    address = f"127.0.0.1:{port}"
    process = await start(write(tmp_path, values()), "--cold", "--agent", address)
    told = {"agent": f"http://{address}"}
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                found = await state(Served(process, told))
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.02)
    assert (found["state"], found["engine"]["pid"]) == ("cold", None)
    process.terminate()
    assert (await Served(process, told).ended())[0] == 0


async def test_a_dry_run_prints_the_command_without_secrets(tmp_path: Path) -> None:
    content = {"kind": "vllm", "model": "org/m", "api_key": "s3cret", "env": {"HF_TOKEN": "t0ken"}}
    path = write(tmp_path, content)
    process = await start(path, "--dry-run", "--set", "port=8000", CUDA_VISIBLE_DEVICES="")
    status, out, err = await Served(process, {}).ended()
    assert (status, err) == (0, "")
    assert "vllm serve org/m" in out
    assert "--port 8000" in out
    assert "VLLM_API_KEY=********" in out
    assert not {"s3cret", "t0ken"} & set(out.replace("=", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "prot=1"], "prot: unknown field"),
        (["--agent", "0.0.0.0:1"], "--agent-key is needed"),
        (["--agent", "here"], "must be HOST:PORT"),
    ],
)
async def test_wrong_words_are_said(tmp_path: Path, options: list[str], message: str) -> None:
    process = await start(write(tmp_path, values()), *options)
    status, _, err = await Served(process, {}).ended()
    assert status == 2
    assert message in err


async def test_an_agent_that_cannot_listen_is_said(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await start(write(tmp_path, values()), "--agent", f"127.0.0.1:{port}")
    status, _, err = await Served(process, {}).ended()
    server.close()
    assert status == 1
    assert f"127.0.0.1:{port}: Address already in use" in err


async def test_a_ready_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    ready = str(tmp_path / "absent" / "ready")
    process = await start(write(tmp_path, values()), "--agent", "off", "--ready-file", ready)
    status, _, err = await Served(process, {}).ended()
    assert (status, err.strip()) == (
        1,
        f"forebay-engine serve: --ready-file {ready}: No such file or directory",
    )


async def test_a_ready_file_of_before_is_removed_first(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.write_text("{}")
    words = ["--cold", "--agent", "off", "--ready-file", str(ready)]
    process = await start(write(tmp_path, values()), *words)
    async with asyncio.timeout(LIMIT_S):
        while ready.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert process.returncode is None
    await asyncio.sleep(0.3)
    process.terminate()
    assert (await Served(process, {}).ended())[2] == ""

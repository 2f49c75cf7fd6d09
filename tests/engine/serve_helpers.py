"""Engines for the tests of `serve`: the simulator as a real child process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from forebay_engine.serve import profile
from forebay_engine.serve.engines import make
from forebay_engine.serve.supervisor import Supervisor

from tests.support.ports import closed_port

LIMIT_S = 30.0
"""For anything; on an idle machine a start takes half a second."""


def values(*options: str, port: int | None = None, **fields: Any) -> dict[str, Any]:
    """A profile whose engine is the simulator."""
    sim = [sys.executable, "-m", "forebay_engine", "sim", "--port", "{port}", *options]
    base: dict[str, Any] = {
        "kind": "sglang",
        "model": "tiny",
        "port": port or closed_port(),
        "command": sim,
        "drain": {"settle_s": 0, "grace_s": 20, "kill_s": 5},
        "restart": {"backoff_s": 0.05, "backoff_max_s": 0.1, "max_crashes": 2},
    }
    return {**base, **fields}


@asynccontextmanager
async def supervised(*options: str, **fields: Any) -> AsyncIterator[Supervisor]:
    """A supervisor that has not been woken; what it says is in `supervisor.said`."""
    given = profile.from_values(values(*options, **fields))
    said: list[str] = []
    null = os.open(os.devnull, os.O_WRONLY)
    supervisor = Supervisor(given, make(given.kind), gpus=(), say=said.append, output=(null, null))
    supervisor.said = said  # type: ignore[attr-defined]
    try:
        yield supervisor
    finally:
        async with asyncio.timeout(LIMIT_S):
            await supervisor.close()
        os.close(null)


async def warm(supervisor: Supervisor) -> None:
    """Wake it and wait."""
    await supervisor.wake()
    try:
        await supervisor.wait_for("warm", LIMIT_S)
    except TimeoutError:
        said = getattr(supervisor, "said", "")
        raise AssertionError(f"not warm: {supervisor.state}, {supervisor.phases}, {said}") from None


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(*pids: int) -> None:
    """Return when none of them is there. Raises TimeoutError."""
    async with asyncio.timeout(LIMIT_S):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

"""Does things to simulated engines: kills, stalls, slows them, has them say garbage and 503."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from loadbench.procs import Process

ENGINE = [sys.executable, "-m", "forebay_engine", "sim"]
START_LIMIT_S = 30.0


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Engine:
    """A simulated engine that keeps its address through deaths."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._options = options
        self._lives = 0
        self._process: Process | None = None

    def start(self) -> None:
        """Start, without waiting for it to be ready."""
        self._lives += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"{self.name}-{self._lives}.log"
        options = ["--port", str(self.port), "--warmup", "0", *self._options]
        self._process = Process([*ENGINE, *options], log)

    async def wait_ready(self) -> None:
        """Wait until it answers. Raises TimeoutError."""
        async with asyncio.timeout(START_LIMIT_S):
            while not await self.post("/sim/faults", {"faults": []}):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def signal(self, number: int) -> None:
        """Send a signal to its process."""
        if self._process is not None and self._process.exit_code() is None:
            os.kill(self._process.pid, number)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        self.signal(signal.SIGCONT)
        if self._process is not None:
            self._process.stop(1.0)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.stop(1.0)

    async def post(self, path: str, body: object) -> bool:
        """Post to its control paths. False: it does not answer."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(data)}\r\nconnection: close\r\n\r\n"
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(head.encode() + data)
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return answer.startswith(b"HTTP/1.1 200")


ACTS = ("kill", "stop", "stall", "slow", "garbage", "cut", "503")
_FAULTS = {
    "stall": ("stall:6@0.7",),
    "garbage": ("garbage:4@0.4", "garbage-json:3@0.3", "garbage:0@0.3"),
    "cut": ("cut:5@0.4", "cut-mid-event:8@0.3", "error-event:4@0.3"),
    "503": ("status:503@0.8",),
}


@dataclass
class Monkey:
    """Hurts at most `at_once` engines at a time, each for some seconds, until it is cancelled.

    Which, how and how long depends on the seed alone; when, on how long an engine takes to start.
    """

    engines: list[Engine]
    seed: int
    at_once: int = 2
    hurt_s: tuple[float, float] = (1.0, 4.0)
    rest_s: tuple[float, float] = (0.5, 2.0)
    done: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Until it is cancelled; then every engine is well again."""
        chance = random.Random(self.seed)
        well = list(self.engines)

        async def paw(seed: int) -> None:
            mine = random.Random(seed)
            while True:
                await asyncio.sleep(mine.uniform(*self.rest_s))
                engine = well.pop(mine.randrange(len(well)))
                try:
                    await self._hurt(engine, mine.choice(ACTS), mine.uniform(*self.hurt_s))
                finally:
                    well.append(engine)

        paws = [asyncio.create_task(paw(chance.getrandbits(32))) for _ in range(self.at_once)]
        try:
            await asyncio.gather(*paws)
        finally:
            for task in paws:
                task.cancel()
            await asyncio.gather(*paws, return_exceptions=True)

    async def _hurt(self, engine: Engine, act: str, seconds: float) -> None:
        self.done[act] += 1
        try:
            if act == "kill":
                await asyncio.to_thread(engine.kill)
            elif act == "stop":
                engine.signal(signal.SIGSTOP)
            elif act == "slow":
                await engine.post("/slow_down", {"forward_sleep_time": 0.1})
            else:
                await engine.post("/sim/faults", {"faults": list(_FAULTS[act])})
            await asyncio.sleep(seconds)
        finally:
            await asyncio.shield(self._heal(engine, act))

    async def _heal(self, engine: Engine, act: str) -> None:
        if act == "kill":
            await asyncio.to_thread(engine.start)
            await engine.wait_ready()
        elif act == "stop":
            engine.signal(signal.SIGCONT)
        elif act == "slow":
            await engine.post("/slow_down", {"forward_sleep_time": 0})
        else:
            await engine.post("/sim/faults", {"faults": []})

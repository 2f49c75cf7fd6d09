"""What a call costs at the gRPC door: ``python benches/load/grpc_door.py --help``.

In interleaved rounds the same calls go to the gateway (key, limits and metering on), to a bare
grpc.aio server that answers from memory with the same bytes, and to a gateway written in Python
with aiohttp. What counts is the CPU of each, by call and by streamed message; the client is Python
and costs about as much, so calls a second are lower bounds of all three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from forebay.grpc.v1 import inference_pb2 as pb
from forebay.store import EmbeddedPostgres
from loadbench.grpc_peers import CHAT, STREAM
from loadbench.procs import Process

START_S = 60.0
SETTLE_S = 0.3
"""Seconds after a run in which what was put off is done, and paid for."""


@dataclass
class Server:
    """One of those that are compared."""

    name: str
    process: Process
    target: str
    key: str = ""
    unary: list[float] = field(default_factory=list)
    message: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """CPU so far, without that of a database."""
        used = self.process.usage().cpu_s
        return sum(seconds for name, seconds in used.items() if name != "postgres")

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What each call carries."""
        return [("authorization", f"Bearer {self.key}")]


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--rounds", type=int, default=5, help="each has every server once; the first is not counted"
    )
    add("--calls", type=int, default=5000, help="unary calls a round")
    add("--streams", type=int, default=200, help="streams a round")
    add("--connections", type=int, default=64, help="calls at a time")
    add("--events", type=int, default=100, help="pieces of a stream")
    add("--burst", type=int, default=1, help="pieces that the engine writes at once")
    add("--pause-ms", type=float, default=1.0, help="between them")
    add("--quick", action="store_true", help="to see that all works")
    add("--out", type=Path, help="a folder for grpc.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.calls, options.streams = 2, 640, 32
    return options


def start(stack: ExitStack, folder: Path, name: str, command: list[str], **env: str) -> Any:
    """A process and what is in its ready file once that is there."""
    ready = folder / f"{name}.ready"
    process = Process([*command, "--ready-file", str(ready)], folder / f"{name}.log", env, folder)
    stack.callback(process.stop)
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if process.exit_code() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start:\n{process.log_tail()}")
        time.sleep(0.05)
    return process, json.loads(ready.read_text())


def start_all(stack: ExitStack, folder: Path, options: argparse.Namespace) -> list[Server]:
    """The engine, and those that are compared."""
    peers = [sys.executable, "-m", "loadbench.grpc_peers"]
    here = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])}
    pace = ["--events", str(options.events), "--burst", str(options.burst)]
    pace += ["--pause-ms", str(options.pause_ms)]
    _, port = start(stack, folder, "upstream", [*peers, "upstream", *pace], **here)
    engine = f"http://127.0.0.1:{port}"

    database = EmbeddedPostgres(folder / "pg", durable=False)
    database.start()
    stack.callback(database.stop)
    command = [sys.executable, "-m", "forebay.cli", "dev"]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    process, facts = start(
        stack, folder, "forebay", command, **here, DATABASE_URL=database.url, INFERENCE_URL=engine
    )
    gateway = Server("forebay", process, facts["grpc"], facts["key"])
    asyncio.run(record(gateway, folder))
    process, port = start(stack, folder, "bare", [*peers, "bare", "--folder", str(folder)], **here)
    bare = Server("bare grpc.aio", process, f"127.0.0.1:{port}")
    command = [*peers, "python", "--upstream", engine]
    process, port = start(stack, folder, "python", command, **here)
    return [gateway, bare, Server("python + aiohttp", process, f"127.0.0.1:{port}")]


def request() -> bytes:
    """What every call asks."""
    message = pb.ChatMessage(role=pb.ROLE_USER, content="Tell me a story. " * 8)
    return pb.ChatCompletionRequest(
        model="bench", messages=[message], temperature=0.5, max_tokens=100
    ).SerializeToString()


async def record(gateway: Server, folder: Path) -> None:
    """Keep the gateway's answers, for the bare server to repeat."""
    async with grpc.aio.insecure_channel(gateway.target) as channel:
        whole = await channel.unary_unary(CHAT)(request(), metadata=gateway.metadata, timeout=20)
        (folder / "whole.bin").write_bytes(whole)
        call = channel.unary_stream(STREAM)(request(), metadata=gateway.metadata, timeout=20)
        pieces = [piece.hex() async for piece in call]
        (folder / "pieces.hex").write_text("\n".join(pieces))


async def run_unary(server: Server, options: argparse.Namespace) -> None:
    """One round of unary calls."""
    took: list[float] = []
    body = request()
    async with grpc.aio.insecure_channel(server.target) as channel:
        ask = channel.unary_unary(CHAT)

        async def client() -> None:
            for _ in range(options.calls // options.connections):
                began = time.perf_counter()
                await ask(body, metadata=server.metadata, timeout=60)
                took.append(time.perf_counter() - began)

        before, began = server.cpu_s(), time.perf_counter()
        await asyncio.gather(*(client() for _ in range(options.connections)))
        wall_s = time.perf_counter() - began
        await asyncio.sleep(SETTLE_S)
    server.unary.append((server.cpu_s() - before) * 1e6 / len(took))
    server.rate.append(len(took) / wall_s)
    server.p99_ms.append(sorted(took)[int(len(took) * 0.99)] * 1e3)


async def run_streams(server: Server, options: argparse.Namespace) -> None:
    """One round of streams."""
    body = request()
    messages = 0
    async with grpc.aio.insecure_channel(server.target) as channel:
        ask = channel.unary_stream(STREAM)

        async def client() -> None:
            nonlocal messages
            for _ in range(max(options.streams // options.connections, 1)):
                call = ask(body, metadata=server.metadata, timeout=60)
                while await call.read() is not grpc.aio.EOF:
                    messages += 1

        before = server.cpu_s()
        await asyncio.gather(*(client() for _ in range(options.connections)))
        await asyncio.sleep(SETTLE_S)
    server.message.append((server.cpu_s() - before) * 1e6 / messages)


def report(servers: list[Server]) -> str:
    """Medians without the first round, and ratios to the bare server."""
    bare = next(server for server in servers if server.name.startswith("bare"))

    def middle(values: list[float]) -> float:
        return statistics.median(values[1:] or values)

    lines = [
        "| server | CPU µs/call | / bare | CPU µs/message | / bare | calls/s | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for server in servers:
        unary, message = middle(server.unary), middle(server.message)
        lines.append(
            f"| {server.name} | {unary:.0f} | {unary / middle(bare.unary):.2f}"
            f" | {message:.1f} | {message / middle(bare.message):.2f}"
            f" | {middle(server.rate):.0f} | {middle(server.p99_ms):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Start all, run the rounds, print the table."""
    options = parse_arguments(sys.argv[1:])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-grpc-")))
        folder.chmod(0o711)
        servers = start_all(stack, folder, options)
        for number in range(options.rounds):
            turn = number % len(servers)
            for server in servers[turn:] + servers[:turn]:
                asyncio.run(run_unary(server, options))
                asyncio.run(run_streams(server, options))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        print(report(servers))
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            found = {
                s.name: {"unary": s.unary, "message": s.message, "rate": s.rate, "p99_ms": s.p99_ms}
                for s in servers
            }
            (options.out / "grpc.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""What do a thousand WebSockets cost? ``python benches/load/websocket.py --help``.

Realtime sessions that say something each 100 ms and hear it back, and chats whose answers have an
event each 100 ms, all at once, in rounds: through the gateway, through a bare relay, which copies
bytes and does nothing else, and to the upstream itself. Tells how much later messages are with the
gateway between, and its memory before and after each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from forebay.store import EmbeddedPostgres  # noqa: E402
from loadbench.gateways import SetupError, free_port  # noqa: E402
from loadbench.procs import TICKS_PER_S, raise_file_limit, read_stat  # noqa: E402
from loadbench.sockets import Client, Seen, Upstream, handshake, masked  # noqa: E402
from run import end_on_sigterm, load_binary  # noqa: E402

from tests.support.memory import resident_bytes  # noqa: E402
from tests.support.processes import Gateway  # noqa: E402

RAMP_S = 2.0
"""Over which the sockets of a round open."""
ADDED_MS = 5.0
"""That the 99th percentile may grow."""
STOLEN = 0.01
"""Where others have had more of these processors' time, a 99th percentile is theirs."""
GROWTH = 1.05
"""Of the memory after the first round may be left after the last."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure the gateway's WebSockets.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sockets", type=int, default=1000, help="at once")
    add("--seconds", type=float, default=20.0, help="of each round")
    add("--rounds", type=int, default=3, help="of each kind")
    add("--kinds", nargs="+", default=["realtime", "chat"], choices=["realtime", "chat"])
    add("--bursts", action="store_true", help="sockets talk in five bursts each 100 ms, not evenly")
    add("--database-url", help="a database of its own is made when not given")
    add("--json", action="store_true", help="print JSON")
    add("--binary", type=Path, help="forebay-load; built with cargo if not given")
    add("--upstream", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


async def serve(port: int) -> None:
    """The upstream, until it is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@dataclass
class Way:
    """One way of a round. cpu_us: of what is between, by message; stolen: share of the CPUs."""

    p50_ms: float
    p99_ms: float
    cpu_us: float
    stolen: float

    @property
    def calm(self) -> bool:
        """Whether it can be judged by."""
        return self.stolen <= STOLEN


@dataclass
class Round:
    """One round. resident_mb: the gateway's, after it."""

    kind: str
    direct: Way
    relay: Way | None
    gateway: Way
    failures: int
    resident_mb: float

    @property
    def added_ms(self) -> float:
        """By the gateway, at the 99th percentile."""
        return self.gateway.p99_ms - self.direct.p99_ms

    @property
    def relay_added_ms(self) -> float | None:
        """By the bare relay."""
        return None if self.relay is None else self.relay.p99_ms - self.direct.p99_ms


async def connect(client: Client, port: int) -> None:
    """Open a client's connection."""
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: client, "127.0.0.1", port)


async def drive(port: int, kind: str, key: str, direct: bool, options: Any) -> Seen:
    """One round's clients, against the gateway or the upstream itself."""
    messages = max(1, int(options.seconds / 0.1))
    seen = Seen()
    clients = []
    for number in range(options.sockets):
        if kind == "realtime":
            first, talks = handshake("/v1/realtime?model=m", key), True
        else:
            chat = {"model": "m", "stream": True, "max_tokens": messages}
            body = json.dumps({**chat, "messages": [{"role": "user", "content": "hi"}]})
            if direct:
                head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: "
                first, talks = f"{head}{len(body)}\r\n\r\n{body}".encode(), False
            else:
                # The first message goes with the handshake.
                first, talks = handshake("/v1/chat/completions", key) + masked(body), False
        phase = None if options.bursts else number / options.sockets
        client = Client(first, talks=talks, seen=seen, wanted=messages, phase=phase)
        await connect(client, port)
        clients.append(client)
        if number % 10 == 9:
            await asyncio.sleep(RAMP_S * 10 / options.sockets)
    await asyncio.wait_for(
        asyncio.gather(*(client.done for client in clients)), options.seconds * 2 + 30
    )
    for client in clients:
        client.leave()
    await asyncio.sleep(0.5)
    return seen


@contextmanager
def gateway_for(upstream: int, options: argparse.Namespace) -> Iterator[Gateway]:
    """A gateway in front of the upstream."""
    url = f"http://127.0.0.1:{upstream}"
    config = {
        "upstreams": {"up": {"kind": "openai", "url": url, "api_key": "k"}},
        "models": {"m": {"targets": [{"upstream": "up"}], "timeouts": {"total": 3600}}},
    }
    with tempfile.TemporaryDirectory(prefix="forebay-bench-", dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o711)
        database = None
        if options.database_url is None:
            database = EmbeddedPostgres(place / "pg", durable=False)
            database.start()
        try:
            found = options.database_url if database is None else database.url
            gateway = Gateway(place, config, found)
            gateway.start()
            try:
                yield gateway
            finally:
                gateway.stop()
        finally:
            if database is not None:
                database.stop()


@contextmanager
def relay_for(upstream: int, binary: Path) -> Iterator[tuple[int, int]]:
    """A bare relay in front of the upstream: its port and process."""
    port = free_port()
    places = ["--listen", f"127.0.0.1:{port}", "--upstream", f"127.0.0.1:{upstream}"]
    relay = subprocess.Popen([binary, "relay", *places])
    try:
        yield port, relay.pid
    finally:
        relay.terminate()
        relay.wait()


def stolen_s() -> float:
    """What other machines on this one's hardware have taken of its processors' time so far."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / TICKS_PER_S


def go(port: int, kind: str, key: str, pid: int | None, options: Any) -> tuple[Way, Seen]:
    """One way; pid: of what is between, None for nothing."""
    before, stolen, began = cpu_of(pid), stolen_s(), time.monotonic()
    seen = uvloop.run(drive(port, kind, key, not key, options))
    spent, took = cpu_of(pid) - before, time.monotonic() - began
    way = Way(
        seen.quantile(0.5),
        seen.quantile(0.99),
        spent * 1e6 / max(1, len(seen.delays)),
        (stolen_s() - stolen) / took / (os.cpu_count() or 1),
    )
    return way, seen


def cpu_of(pid: int | None) -> float:
    """CPU seconds of a process so far."""
    if pid is None:
        return 0.0
    stat = read_stat(pid)
    assert stat is not None
    return stat.cpu_s


def measure(
    gateway: Gateway, upstream: int, relay: tuple[int, int], options: argparse.Namespace
) -> list[Round]:
    """All rounds, in each of which the ways are one after another."""
    key = gateway.key().secret
    rounds = []
    for _ in range(options.rounds):
        for kind in options.kinds:
            direct, alone = go(upstream, kind, "", None, options)
            bare = None
            failures = alone.failures
            if kind == "realtime":
                bare, seen = go(relay[0], kind, "", relay[1], options)
                failures += seen.failures
            through, seen = go(gateway.port, kind, key, gateway.pid, options)
            gateway.wait_idle()
            failures += seen.failures
            resident = resident_bytes(gateway.pid) / 1e6
            rounds.append(Round(kind, direct, bare, through, failures, resident))
    return rounds


def table(rounds: list[Round]) -> Iterator[str]:
    """What was seen, a way a line."""
    yield "kind | way | p50 | p99 | added to p99 | CPU a message | stolen | resident"
    for one in rounds:
        resident = f"{one.resident_mb:.1f} MB"
        for name, way, added, memory in (
            ("direct", one.direct, None, ""),
            ("relay", one.relay, one.relay_added_ms, ""),
            ("gateway", one.gateway, one.added_ms, resident),
        ):
            if way is None:
                continue
            later = "" if added is None else f"{added:.2f} ms"
            cpu = "" if added is None else f"{way.cpu_us:.1f} µs"
            times = f"{way.p50_ms:.2f} ms | {way.p99_ms:.2f} ms | {later}"
            yield f"{one.kind} | {name} | {times} | {cpu} | {way.stolen:.1%} | {memory}"


def report(rounds: list[Round], before_mb: float, options: argparse.Namespace) -> list[str]:
    """Print what was seen; what does not hold."""
    if options.json:
        told = [asdict(one) for one in rounds]
        print(json.dumps({"before_mb": before_mb, "rounds": told}, indent=2))
    else:
        print(f"{options.sockets} sockets, {options.seconds:g} s each; {before_mb:.1f} MB before")
        print("\n".join(table(rounds)))
    failures = sum(one.failures for one in rounds)
    wrong = [f"{failures} sockets failed"] if failures else []
    for kind in options.kinds:
        these = [one for one in rounds if one.kind == kind]
        direct = [one.direct.p99_ms for one in these if one.direct.calm]
        through = [one.gateway.p99_ms for one in these if one.gateway.calm]
        if not direct or not through:
            wrong.append(f"{kind}: more than {STOLEN:.0%} of the processors' time was stolen")
        elif (added := median(through) - median(direct)) > ADDED_MS:
            wrong.append(f"{kind}: {added:.2f} ms added at the 99th percentile")
    first, last = rounds[len(options.kinds) - 1].resident_mb, rounds[-1].resident_mb
    if last > first * GROWTH + 2:
        wrong.append(f"memory grew from {first:.1f} to {last:.1f} MB")
    return wrong


def main() -> int:
    """Run it; 1 if something does not hold."""
    options = parse_arguments(sys.argv[1:])
    if options.upstream is not None:
        uvloop.run(serve(options.upstream))
        return 0
    signal.signal(signal.SIGTERM, end_on_sigterm)
    raise_file_limit()
    try:
        binary = load_binary(options.binary)
    except SetupError as error:
        print(f"websocket.py: {error}", file=sys.stderr)
        return 2
    port = free_port()
    upstream = subprocess.Popen([sys.executable, __file__, "--upstream", str(port)])
    try:
        with relay_for(port, binary) as relay, gateway_for(port, options) as gateway:
            before = resident_bytes(gateway.pid) / 1e6
            wrong = report(measure(gateway, port, relay, options), before, options)
    finally:
        upstream.terminate()
        upstream.wait()
    for line in wrong:
        print(f"not met: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

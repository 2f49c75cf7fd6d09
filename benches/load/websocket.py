"""What do a thousand WebSockets cost? ``python benches/load/websocket.py --help``.

Realtime sessions that say something each 100 ms and hear it back, and chats whose answers have an
event each 100 ms, all at once, in rounds, through the gateway and to the upstream itself. Tells how
much later messages are with the gateway between, and its memory before and after each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from forebay.store import EmbeddedPostgres  # noqa: E402
from loadbench.gateways import free_port  # noqa: E402
from loadbench.procs import raise_file_limit, read_stat  # noqa: E402
from loadbench.sockets import Client, Seen, Upstream, handshake, masked  # noqa: E402
from run import end_on_sigterm  # noqa: E402

from tests.support.memory import resident_bytes  # noqa: E402
from tests.support.processes import Gateway  # noqa: E402

RAMP_S = 2.0
"""Over which the sockets of a round open."""
ADDED_MS = 5.0
"""That the 99th percentile may grow."""
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
    add("--upstream", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


async def serve(port: int) -> None:
    """The upstream, until it is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@dataclass
class Round:
    """One round. cpu_us: of the gateway, by message there and back."""

    kind: str
    direct_p50_ms: float
    direct_p99_ms: float
    p50_ms: float
    p99_ms: float
    messages: int
    cpu_us: float
    failures: int
    resident_mb: float

    @property
    def added_ms(self) -> float:
        """At the 99th percentile."""
        return self.p99_ms - self.direct_p99_ms


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


def measure(gateway: Gateway, upstream: int, options: argparse.Namespace) -> list[Round]:
    """All rounds, those without the gateway beside those with it."""
    key = gateway.key().secret
    rounds = []
    for _ in range(options.rounds):
        for kind in options.kinds:
            alone = uvloop.run(drive(upstream, kind, "", True, options))
            before = read_stat(gateway.pid)
            seen = uvloop.run(drive(gateway.port, kind, key, False, options))
            gateway.wait_idle()
            after = read_stat(gateway.pid)
            assert before is not None
            assert after is not None
            rounds.append(
                Round(
                    kind,
                    alone.quantile(0.5),
                    alone.quantile(0.99),
                    seen.quantile(0.5),
                    seen.quantile(0.99),
                    len(seen.delays),
                    (after.cpu_s - before.cpu_s) * 1e6 / max(1, len(seen.delays)),
                    seen.failures + alone.failures,
                    resident_bytes(gateway.pid) / 1e6,
                )
            )
    return rounds


def report(rounds: list[Round], before_mb: float, options: argparse.Namespace) -> list[str]:
    """Print what was seen; what does not hold."""
    if options.json:
        print(json.dumps({"before_mb": before_mb, "rounds": [vars(r) for r in rounds]}, indent=2))
    else:
        print(f"{options.sockets} sockets, {options.seconds:g} s each; {before_mb:.1f} MB before")
        head = (
            "kind",
            "direct p50",
            "p99",
            "gateway p50",
            "p99",
            "added p99",
            "CPU",
            "MB",
        )
        print(" | ".join(head))
        for r in rounds:
            times = (r.direct_p50_ms, r.direct_p99_ms, r.p50_ms, r.p99_ms, r.added_ms)
            cells = [f"{value:.2f} ms" for value in times]
            print(
                " | ".join(
                    [r.kind, *cells, str(r.messages), f"{r.cpu_us:.1f} µs", f"{r.resident_mb:.1f}"]
                )
            )
    wrong = [f"{r.failures} sockets failed" for r in rounds if r.failures]
    for kind in options.kinds:
        added = sorted(r.added_ms for r in rounds if r.kind == kind)
        if added[len(added) // 2] > ADDED_MS:
            wrong.append(f"{kind}: {added[len(added) // 2]:.2f} ms added at the 99th percentile")
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
    port = free_port()
    upstream = subprocess.Popen([sys.executable, __file__, "--upstream", str(port)])
    try:
        with gateway_for(port, options) as gateway:
            before = resident_bytes(gateway.pid) / 1e6
            wrong = report(measure(gateway, port, options), before, options)
    finally:
        upstream.terminate()
        upstream.wait()
    for line in wrong:
        print(f"not met: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

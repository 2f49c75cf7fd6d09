"""Does a gateway go on while its database is away? ``python benches/load/away.py --help``.

Requests come at a constant rate before PostgreSQL is stopped, all the while that it is away, and
after it is back: none may fail, and what waits may not be held in memory. How fast the ledger then
takes what has waited, sums included, is told in events a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import asyncpg  # noqa: E402
from forebay.store import EmbeddedPostgres  # noqa: E402
from loadbench.gateways import MODEL, SetupError  # noqa: E402
from run import load_binary, start_upstream  # noqa: E402

from tests.support.memory import anonymous_bytes, resident_bytes  # noqa: E402
from tests.support.processes import Gateway, Key  # noqa: E402

GROWTH = 0.05
"""Of the memory at the beginning of the absence, at most."""
SETTLE_S = 10.0
"""After PostgreSQL has gone, before memory is first looked at: caches and pools change once."""
DRAIN_S = 600.0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Serve without the database, then give it all that it has missed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--rate", type=int, default=500, help="requests a second")
    add("--away", type=float, default=600.0, help="seconds without PostgreSQL")
    add("--around", type=float, default=20.0, help="seconds of the same load before and after")
    add("--connections", type=int, default=64, help="of the client")
    add("--binary", type=Path, help="forebay-load; built with cargo if not given")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


@dataclass
class Result:
    """What was measured; latencies in milliseconds, memory in MB."""

    requests: int = 0
    errors: int = 0
    p99_ms: dict[str, float] = field(default_factory=dict)
    anonymous_mb: tuple[float, float] = (0.0, 0.0)
    resident_mb: tuple[float, float] = (0.0, 0.0)
    waited: int = 0
    back_s: float = 0.0
    drain_s: float = 0.0
    drained_per_s: float = 0.0
    rows: int = 0
    balanced: bool = False

    @property
    def growth(self) -> float:
        """Of anonymous memory while the database was away."""
        before, after = self.anonymous_mb
        return after / before - 1

    def failures(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.errors:
            found.append(f"{self.errors} requests failed")
        if self.growth > GROWTH:
            found.append(f"memory grew by {self.growth:.1%}")
        if self.rows != self.requests:
            found.append(f"{self.rows} events of {self.requests} requests")
        if not self.balanced:
            found.append("the sums are not those of the events")
        return found


class Watch(threading.Thread):
    """A gateway's memory, bytes, twice a second, as (anonymous, resident)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.seen: list[tuple[int, int]] = []

    def run(self) -> None:
        """Look until `end`."""
        while not self._ended.wait(0.5):
            self.seen.append((anonymous_bytes(self._pid), resident_bytes(self._pid)))

    def end(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Stop; medians of the first and the last tenth, MB: anonymous, resident."""
        self._ended.set()
        self.join()
        part = max(len(self.seen) // 10, 1)

        def both(index: int) -> tuple[float, float]:
            values = [sample[index] / 1e6 for sample in self.seen]
            return statistics.median(values[:part]), statistics.median(values[-part:])

        return both(0), both(1)


class Load:
    """Requests at a constant rate, counted over all runs."""

    def __init__(
        self, binary: Path, gateway: Gateway, key: Key, options: argparse.Namespace
    ) -> None:
        self._command = [
            *(str(binary), "client", "--url", gateway.url, "--model", MODEL),
            *("--workload", "unary", "--concurrency", str(options.connections)),
            *("--rate", str(options.rate)),
        ]
        self._env = {**os.environ, "FOREBAY_LOAD_KEY": key.secret}
        self.requests = self.errors = 0

    def run(self, seconds: float) -> float:
        """Load for so long; the 99th percentile of latencies, ms, from the intended start on."""
        done = subprocess.run(
            [*self._command, "--duration", str(seconds)],
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SetupError(f"the load client failed: {done.stderr}")
        report: dict[str, Any] = json.loads(done.stdout)
        self.requests += int(report["requests"])
        self.errors += int(report["errors"])
        return float(report["latency_us"]["p99"]) / 1e3


@contextmanager
def stack(options: argparse.Namespace) -> Iterator[tuple[EmbeddedPostgres, Gateway, Path]]:
    """Everything that runs."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="forebay-away-")))
        folder.chmod(0o711)
        binary = load_binary(options.binary)
        upstream = start_upstream(
            binary, argparse.Namespace(upstream_threads=1, quantum_us=0), folder
        )
        running.callback(upstream.stop)
        postgres = running.enter_context(EmbeddedPostgres(folder / "postgres"))
        config = {
            "upstreams": {"load": {"kind": "sglang", "url": upstream.url}},
            "models": {
                MODEL: {
                    "targets": [{"upstream": "load"}],
                    "price": {"input": "0.15", "output": "0.6"},
                }
            },
            "spool": {"dir": str(folder / "spool")},
        }
        gateway = Gateway(folder / "gateway", config, postgres.url)
        gateway.start()
        running.callback(gateway.stop)
        yield postgres, gateway, binary


async def count(url: str) -> int:
    """Events in the ledger."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM usage_events"))
    finally:
        await connection.close()


async def balanced(url: str) -> bool:
    """Whether events, hours and days have the same number of requests, tokens and money."""
    sums = "sum(prompt_tokens), sum(completion_tokens), sum(cost)"
    connection = await asyncpg.connect(url)
    try:
        events = await connection.fetchrow(f"SELECT count(*), {sums} FROM usage_events")
        for table in ("usage_hourly", "usage_daily"):
            row = await connection.fetchrow(f"SELECT sum(requests), {sums} FROM {table}")
            if row != events:
                return False
        return True
    finally:
        await connection.close()


async def drain(url: str, until: int) -> float:
    """Waits until there are `until` events; seconds since just before the first of them came."""
    deadline = time.monotonic() + DRAIN_S
    connection = await asyncpg.connect(url)
    try:
        # What spools have shipped is advanced in the transactions that bring events, and to ask for
        # it costs nothing while they come.
        shipped = "SELECT coalesce(sum(shipped), 0) FROM spools"
        before = now = int(await connection.fetchval(shipped))
        missing = until - await count(url)
        began = time.monotonic()
        while now < before + missing:
            if time.monotonic() > deadline:
                raise SetupError(f"{now - before} of {missing} events in {DRAIN_S:g} s")
            if now == before:
                began = time.monotonic()
            await asyncio.sleep(0.01)
            now = int(await connection.fetchval(shipped))
        return time.monotonic() - began
    finally:
        await connection.close()


def measure(options: argparse.Namespace) -> Result:
    """Before, away, back."""
    result = Result()
    with stack(options) as (postgres, gateway, binary):
        load = Load(binary, gateway, gateway.key(), options)
        result.p99_ms["before"] = load.run(options.around)
        postgres.stop()
        settle = min(SETTLE_S, options.away / 4)
        load.run(settle)
        watch = Watch(gateway.pid)
        watch.start()
        result.p99_ms["away"] = load.run(options.away - settle)
        result.anonymous_mb, result.resident_mb = watch.end()
        asked = load.requests
        began = time.monotonic()
        postgres.start()
        result.waited = asked - asyncio.run(count(postgres.url))
        result.drain_s = asyncio.run(drain(postgres.url, asked))
        result.back_s = time.monotonic() - began
        result.drained_per_s = result.waited / max(result.drain_s, 1e-3)
        result.p99_ms["after"] = load.run(options.around)
        result.requests, result.errors = load.requests, load.errors
        gateway.stop()
        result.rows = asyncio.run(count(postgres.url))
        result.balanced = asyncio.run(balanced(postgres.url))
    return result


def table(result: Result) -> str:
    """The result as a table."""
    before, after = result.anonymous_mb
    rows = [
        ("requests, and how many failed", f"{result.requests:,}, {result.errors}"),
        *((f"p99 {when}, ms", f"{ms:.1f}") for when, ms in result.p99_ms.items()),
        ("anonymous memory, begin and end, MB", f"{before:.1f}, {after:.1f}"),
        ("resident memory, begin and end, MB", "{:.1f}, {:.1f}".format(*result.resident_mb)),
        ("events that waited", f"{result.waited:,}"),
        ("all there after, s", f"{result.back_s:.1f}"),
        ("of that drained in, s", f"{result.drain_s:.2f}"),
        ("events drained a second", f"{result.drained_per_s:,.0f}"),
        ("rows, and sums equal", f"{result.rows:,}, {result.balanced}"),
    ]
    return "\n".join(["| what | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def main(arguments: list[str]) -> int:
    """Run it; the exit status: 0 all holds, 1 something does not or a part is missing."""
    options = parse_arguments(arguments)
    try:
        result = measure(options)
    except SetupError as error:
        print(f"away: {error}", file=sys.stderr)
        return 1
    failures = result.failures()
    if options.json:
        print(json.dumps({**asdict(result), "failures": failures}))
    else:
        print(table(result))
        for failure in failures:
            print(f"DOES NOT HOLD: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

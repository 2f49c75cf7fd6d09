"""Does a limit hold across workers? ``python benches/load/limits.py --help``.

One key, many connections at full speed against ``forebay serve --workers N``: the requests admitted
may not exceed what one exact bucket admits in that time, also while workers are killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from forebay.store import EmbeddedPostgres
from loadbench.flood import Flood, Tally
from loadbench.gateways import SetupError
from loadbench.procs import Process, raise_file_limit, read_stat
from run import end_on_sigterm

MODEL = "sim"
FOREBAY = [sys.executable, "-m", "forebay.cli"]
ENGINE = [sys.executable, "-m", "forebay_engine"]
START_LIMIT_S = 60.0
BACK_LIMIT_S = 15.0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Compare what is admitted with the exact bound of the limit.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=int, default=4, help="of the gateway")
    add("--rpm", type=int, default=600, help="requests a minute of the key")
    add("--burst", type=int, default=100, help="requests at once of the key")
    add("--connections", type=int, default=200, help="each with one request at a time")
    add("--seconds", type=float, default=180.0, help="length of the run")
    add("--kill-every", type=float, default=0.0, help="seconds between two kill -9; 0: none")
    add("--seed", type=int, default=1, help="which worker is killed")
    add("--database-url", help="a database of its own is made when not given")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Result:
    """One run. served: requests that reached the engine. elapsed_s: as the bound counts it."""

    tally: Tally
    served: int
    kills: int
    back: int
    elapsed_s: float
    whole_s: float
    rpm: int
    burst: int

    def bound(self, seconds: float) -> int:
        """What a bucket that was full admits at most in so long: burst + rate x time."""
        return math.floor(self.burst + self.rpm * seconds / 60)

    @property
    def holds(self) -> bool:
        """Neither clients nor the engine saw more than the bound."""
        return self.tally.admitted <= self.bound(self.elapsed_s) and self.served <= self.bound(
            self.whole_s
        )

    def table(self) -> str:
        """For people."""
        tally, bound, whole = self.tally, self.bound(self.elapsed_s), self.bound(self.whole_s)
        answered = tally.statuses.total()
        others = {s: n for s, n in sorted(tally.statuses.items()) if s not in (200, 429)}
        rows = [
            ("seconds from the first request to the last 200", f"{self.elapsed_s:.3f}"),
            ("answers", f"{answered:,} ({answered / self.whole_s:,.0f}/s)"),
            ("of them 429", f"{tally.statuses[429]:,}"),
            ("of them others", ", ".join(f"{s}: {n}" for s, n in others.items()) or "0"),
            ("requests cut off", f"{tally.cut:,}"),
            ("workers killed / taking requests at the end", f"{self.kills} / {self.back}"),
            ("admitted, as clients saw it", f"{tally.admitted:,}"),
            ("exact bound, burst + rate x seconds", f"{bound:,}"),
            ("above it", f"{max(0, tally.admitted - bound):,}"),
            ("of it used", f"{tally.admitted / bound:.1%}"),
            ("reached the engine / bound of the whole run", f"{self.served:,} / {whole:,}"),
        ]
        return "\n".join(["| what | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def wait_ready(process: Process, ready_file: Path) -> dict[str, Any]:
    """The ready file's content. Raises SetupError."""
    deadline = time.monotonic() + START_LIMIT_S
    while not ready_file.exists():
        if process.exit_code() is not None or time.monotonic() > deadline:
            raise SetupError(f"it did not start:\n{process.log_tail()}")
        time.sleep(0.02)
    facts: dict[str, Any] = json.loads(ready_file.read_text())
    return facts


def workers_of(ready_file: Path, supervisor: int) -> list[int]:
    """Ids of the workers that take requests now; only children of the supervisor."""
    pids: list[int] = json.loads(ready_file.read_text())["workers"]
    found = []
    for pid in pids:
        stat = read_stat(pid)
        if stat is not None and stat.parent == supervisor:
            found.append(pid)
    return found


def wait_back(ready_file: Path, supervisor: int, workers: int) -> int:
    """How many workers take requests, once all do or too much time has passed."""
    deadline = time.monotonic() + BACK_LIMIT_S
    while (back := len(workers_of(ready_file, supervisor))) < workers:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return back


@contextlib.contextmanager
def database(given: str | None, directory: Path) -> Iterator[str]:
    """The database's URL, of an embedded one unless one is given."""
    if given:
        yield given
        return
    with EmbeddedPostgres(directory / "postgres", durable=False) as postgres:
        yield postgres.url


def new_key(url: str, options: argparse.Namespace) -> str:
    """Make the key; its secret. Raises SetupError."""
    limits = ("--rpm", str(options.rpm), "--rpm-burst", str(options.burst))
    command = [*FOREBAY, "keys", "create", "--name", "limits", *limits, "--json"]
    done = subprocess.run(
        [*command, "--database-url", url], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SetupError(f"no key: {done.stderr}")
    return str(json.loads(done.stdout)["key"])


def request(host: str, key: str) -> bytes:
    """The request that every connection sends."""
    body = json.dumps(
        {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    )
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Killer:
    """Kills a random worker each `every_s` seconds while `run`."""

    def __init__(self, every_s: float, seed: int, ready_file: Path, supervisor: int) -> None:
        self._every_s = every_s
        self._chance = random.Random(seed)
        self._ready_file = ready_file
        self._supervisor = supervisor
        self.kills = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            workers = workers_of(self._ready_file, self._supervisor)
            if workers:
                os.kill(self._chance.choice(workers), signal.SIGKILL)
                self.kills += 1


async def load(flood: Flood, seconds: float, killer: Killer | None) -> float:
    """Put the load on; how long it was, seconds."""
    flood.start()
    killing = None if killer is None else asyncio.create_task(killer.run())
    await asyncio.sleep(seconds)
    if killing is not None:
        killing.cancel()
    await flood.stop()
    return time.monotonic() - flood.tally.first_sent


def measure(options: argparse.Namespace, directory: Path, started: list[Process]) -> Result:
    """Start everything and run the load. What is started is appended to ``started``."""
    ready = directory / "engine.json"
    sim = ("sim", "--port", "0", "--model", MODEL, "--decode-rate", "0")
    engine = Process([*ENGINE, *sim, "--ready-file", str(ready)], directory / "engine.log")
    started.append(engine)
    engine_url = str(wait_ready(engine, ready)["url"])
    with database(options.database_url, directory) as url:
        # Before the gateway starts, so that it knows the key from the first request on.
        key = new_key(url, options)
        ready = directory / "gateway.json"
        gateway = Process(
            [
                *(*FOREBAY, "serve", "--http", "127.0.0.1:0", "--ready-file", str(ready)),
                *("--workers", str(options.workers)),
            ],
            directory / "gateway.log",
            {"DATABASE_URL": url, "INFERENCE_URL": engine_url},
            directory,
        )
        started.append(gateway)
        address = urlsplit(wait_ready(gateway, ready)["http"])
        if address.hostname is None or address.port is None:
            raise SetupError(f"the gateway has no address: {address}")
        flood = Flood(
            (address.hostname, address.port), request(address.netloc, key), options.connections
        )
        every_s: float = options.kill_every
        killer = Killer(every_s, options.seed, ready, gateway.pid) if every_s > 0 else None
        whole_s = asyncio.run(load(flood, options.seconds, killer))
        with urllib.request.urlopen(f"{engine_url}/sim/requests", timeout=30) as answer:
            records = json.load(answer)["requests"]
        # The gateway's own questions are refused; no client's request is.
        served = sum(record["outcome"] != "error:400" for record in records)
        result = Result(
            tally=flood.tally,
            served=served,
            kills=0 if killer is None else killer.kills,
            back=wait_back(ready, gateway.pid, options.workers),
            elapsed_s=flood.tally.last_admitted - flood.tally.first_sent,
            whole_s=whole_s,
            rpm=options.rpm,
            burst=options.burst,
        )
        gateway.stop()
        return result


def main(arguments: list[str]) -> int:
    """Run it; the exit status: 0 the bound holds, 1 it does not or a part is missing."""
    options = parse_arguments(arguments)
    if options.workers < 2:
        print("limits: --workers must be at least 2", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, end_on_sigterm)
    raise_file_limit()
    started: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="forebay-limits-") as name:
        directory = Path(name)
        # A database server that runs as another user must reach its folder in here.
        directory.chmod(0o711)
        try:
            result = measure(options, directory, started)
        except SetupError as error:
            print(f"limits: {error}", file=sys.stderr)
            return 1
        finally:
            for process in reversed(started):
                process.stop()
    print(result.table())
    print("the bound holds" if result.holds else "ABOVE THE BOUND")
    return 0 if result.holds and result.tally.admitted > 0 else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Does the gateway's memory stay flat? ``python benches/load/soak.py --help``.

Keeps 2,000 streams open while 100,000 others come and go, in three equal parts, and compares the
gateway's resident memory between the second part and the last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from loadbench import gateways
from loadbench.gateways import SetupError
from loadbench.procs import Process, raise_file_limit
from run import end_on_sigterm, load_binary, start_upstream

TOLERANCE = 0.05


class Sampler(threading.Thread):
    """The gateway process's resident memory, MB, twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.values: list[float] = []

    def run(self) -> None:
        """Sample until `end`."""
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ended.wait(0.5):
            resident = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            self.values.append(resident * page / 1e6)

    def end(self) -> float:
        """Stop; the median of what was seen."""
        self._ended.set()
        self.join()
        return statistics.median(self.values)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Watch the gateway's memory under load.")
    parser.add_argument("--requests", type=int, default=100_000, help="short streams in all")
    parser.add_argument("--streams", type=int, default=2_000, help="long streams beside them")
    parser.add_argument("--gateway", default="forebay", help="preset or specification")
    parser.add_argument("--binary", type=Path, help="forebay-load; built with cargo if not given")
    return parser.parse_args(arguments)


def client(
    binary: Path, gateway: gateways.Gateway, out: Path, *more: str
) -> subprocess.Popen[bytes]:
    """One load client in the background."""
    command = [str(binary), "client", "--url", gateway.url, "--model", gateway.model, *more]
    env = {**os.environ, "FOREBAY_LOAD_KEY": gateway.key}
    return subprocess.Popen([*command, "--json", str(out)], env=env, stdout=subprocess.DEVNULL)


def part(binary: Path, gateway: gateways.Gateway, options: argparse.Namespace, out: Path) -> int:
    """A third of the load; how many requests failed."""
    long_streams = ("--workload", "paced", "--concurrency", str(options.streams), "--ramp", "2")
    kept = client(
        binary,
        gateway,
        out / "long.json",
        *(*long_streams, "--pace", "2", "--events", "60", "--requests", str(options.streams)),
    )
    try:
        short = client(
            binary,
            gateway,
            out / "short.json",
            *("--workload", "burst", "--concurrency", "64", "--chunks", "20", "--bursts", "2"),
            *("--requests", str(options.requests // 3)),
        )
        if short.wait() != 0 or kept.wait() != 0:
            raise SetupError("the load client failed")
    finally:
        kept.kill()
    reports = [json.loads((out / name).read_text()) for name in ("long.json", "short.json")]
    return sum(int(report["errors"]) for report in reports)


def soak(options: argparse.Namespace, directory: Path, started: list[gateways.Gateway]) -> int:
    """Run it; 0 if memory was flat and nothing failed."""
    binary = load_binary(options.binary)
    upstream = start_upstream(
        binary, argparse.Namespace(upstream_threads=1, quantum_us=0), directory
    )
    started.append(upstream)
    gateway = gateways.parse(options.gateway, None)
    started.append(gateway)
    gateway.start(directory / gateway.name, int(upstream.url.rpartition(":")[2]))
    process = gateway.process
    if not isinstance(process, Process):
        raise SetupError("the gateway did not start")
    thirds, errors = [], 0
    for number in (1, 2, 3):
        sampler = Sampler(process.pid)
        sampler.start()
        errors += part(binary, gateway, options, directory)
        thirds.append(sampler.end())
        print(f"third {number}: {thirds[-1]:.1f} MB resident (median), {errors} errors so far")
    growth = thirds[2] / thirds[1] - 1
    print(f"growth from the second third to the last: {growth:+.1%} (at most {TOLERANCE:.0%})")
    return 0 if growth <= TOLERANCE and errors == 0 else 1


def main(arguments: list[str]) -> int:
    """Run the soak; the exit status: 0 flat, 1 not flat or a part is missing."""
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, end_on_sigterm)
    raise_file_limit()
    started: list[gateways.Gateway] = []
    with tempfile.TemporaryDirectory(prefix="forebay-soak-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        try:
            return soak(options, directory, started)
        except SetupError as error:
            print(f"soak: {error}", file=sys.stderr)
            return 1
        finally:
            for gateway in reversed(started):
                gateway.stop()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

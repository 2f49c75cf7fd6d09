"""The workloads, and how one run of one of them is made and measured."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadbench.gateways import Gateway, SetupError
from loadbench.procs import Memory, PeakMemory, Process, Usage

SETTLE_S = 0.25
DATABASE = frozenset({"postgres"})


@dataclass(frozen=True)
class Workload:
    """One workload: ``unit`` is what its costs are counted per."""

    name: str
    title: str
    unit: str
    arguments: tuple[str, ...]
    length: tuple[str, ...]
    quick: tuple[str, ...]
    warm: bool = True


def _for(seconds: float, quick: float) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("--duration", str(seconds)), ("--duration", str(quick))


def _paced(rate: int) -> tuple[str, ...]:
    streams = ("--workload", "paced", "--concurrency", "1000", "--requests", "1000")
    return (*streams, "--ramp", "1", "--pace", str(rate))


WORKLOADS = (
    Workload(
        "unary-c64",
        "Unary, 64 connections, 500-byte answer",
        "request",
        ("--workload", "unary", "--concurrency", "64"),
        *_for(5, 1.5),
    ),
    Workload(
        "unary-c1",
        "Unary, 1 connection",
        "request",
        ("--workload", "unary", "--concurrency", "1"),
        *_for(3, 1.5),
    ),
    Workload(
        "unary-rate",
        "Unary, constant rate of 2,000 a second, open loop",
        "request",
        ("--workload", "unary", "--concurrency", "256", "--rate", "2000"),
        *_for(5, 1.5),
    ),
    Workload(
        "burst-c32",
        "Streams of 100 chunks in 10 bursts, 32 connections",
        "stream",
        ("--workload", "burst", "--concurrency", "32"),
        *_for(5, 1.5),
    ),
    Workload(
        "paced-20",
        "1,000 streams, 20 events a second each",
        "event",
        _paced(20),
        ("--events", "200"),
        ("--events", "60"),
        warm=False,
    ),
    Workload(
        "paced-100",
        "1,000 streams, 100 events a second each (saturation)",
        "event",
        _paced(100),
        ("--events", "800"),
        ("--events", "300"),
        warm=False,
    ),
    Workload(
        "prompt200k-c16",
        "200 KB prompt, 16 connections",
        "request",
        ("--workload", "prompt200k", "--concurrency", "16"),
        *_for(4, 1.5),
    ),
    Workload(
        "embeddings-c64",
        "Embeddings, 64 connections, 8 KB answer",
        "request",
        ("--workload", "embeddings", "--concurrency", "64", "--answer-bytes", "8000"),
        *_for(4, 1.5),
    ),
)
OPTIONAL = frozenset({"embeddings-c64"})


@dataclass(frozen=True)
class Result:
    """One run: the client's report (times in µs) and what the gateway's process tree used.

    ``units`` is how many requests, streams or events the run had; None stands for "no process".
    """

    client: dict[str, Any]
    units: int
    gateway: Usage | None
    peak: Memory | None
    last: Memory | None
    client_cpu_s: float
    upstream_cpu_s: float

    @property
    def cpu_us(self) -> float | None:
        """CPU of the whole tree, µs a unit."""
        if self.gateway is None:
            return None
        return sum(self.gateway.cpu_s.values()) * 1e6 / max(self.units, 1)

    @property
    def database_cpu_us(self) -> float | None:
        """The part of it that a database server in the tree used."""
        if self.gateway is None:
            return None
        used = sum(cpu for name, cpu in self.gateway.cpu_s.items() if name in DATABASE)
        return used * 1e6 / max(self.units, 1)

    @property
    def switches(self) -> float | None:
        """Voluntary context switches of all threads (sleeps, so wake-ups), a unit."""
        return None if self.gateway is None else self.gateway.switches / max(self.units, 1)

    def as_json(self) -> dict[str, Any]:
        """All of it, for results.json."""
        gateway = self.gateway
        return {
            "client": self.client,
            "units": self.units,
            "cpu_us_per_unit": self.cpu_us,
            "switches_per_unit": self.switches,
            "cpu_s_by_process": None if gateway is None else dict(gateway.cpu_s),
            "memory_peak_mb": _memory_json(self.peak),
            "memory_end_mb": _memory_json(self.last),
            "client_cpu_us_per_unit": self.client_cpu_s * 1e6 / max(self.units, 1),
            "upstream_cpu_us_per_unit": self.upstream_cpu_s * 1e6 / max(self.units, 1),
        }


def _memory_json(memory: Memory | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    return {
        "rss": memory.rss,
        "pss": memory.pss,
        "rss_by_process": memory.rss_mb,
        "pss_by_process": memory.pss_mb,
    }


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    binary: Path
    upstream: Process
    directory: Path
    quick: bool
    client_threads: int

    def client(self, gateway: Gateway, arguments: tuple[str, ...]) -> dict[str, Any]:
        """Run the load client once; its report. Raises SetupError when it fails itself."""
        out = self.directory / "client.json"
        command = [str(self.binary), "client", "--url", gateway.url, "--model", gateway.model]
        command += [*arguments, "--threads", str(self.client_threads), "--json", str(out)]
        # By the environment, so that no process listing and no report shows the key.
        env = {**os.environ, "FOREBAY_LOAD_KEY": gateway.key}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetupError(f"load client against {gateway.name}: {done.stderr.strip()}")
        report: dict[str, Any] = json.loads(out.read_text())
        return report

    def check(self, gateway: Gateway) -> None:
        """One request must come back right before anything is measured. Raises SetupError."""
        report = self.client(gateway, ("--workload", "unary", "--requests", "1"))
        if report["errors"]:
            tail = "" if gateway.process is None else gateway.process.log_tail()
            raise SetupError(f"{gateway.name}: first request: {report['error_samples']}\n{tail}")

    def run(self, gateway: Gateway, workload: Workload) -> Result:
        """Warm up, then measure one run."""
        if workload.warm:
            self.client(gateway, (*workload.arguments, "--duration", "0.5"))
        arguments = (*workload.arguments, *(workload.quick if self.quick else workload.length))
        before_upstream = self.upstream.usage()
        before_client = _children_cpu_s()
        process = gateway.process
        used = peak = last = None
        if process is None:
            report = self.client(gateway, arguments)
        else:
            before = process.usage()
            with PeakMemory(process) as memory:
                report = self.client(gateway, arguments)
                # What a gateway puts off until after the answer, such as metering, is its cost too.
                time.sleep(SETTLE_S)
            used = process.usage().since(before)
            peak, last = memory.peak, memory.last
        upstream = self.upstream.usage().since(before_upstream)
        units = report["events"] if workload.unit == "event" else report["requests"]
        return Result(
            client=report,
            units=int(units),
            gateway=used,
            peak=peak,
            last=last,
            client_cpu_s=_children_cpu_s() - before_client,
            upstream_cpu_s=sum(upstream.cpu_s.values()),
        )


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

"""Medians and spreads of the runs, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loadbench.workloads import Result, Workload

Value = Callable[[Result], "float | None"]
Runs = dict[str, dict[str, list[Result]]]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = "unknown"
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory_kb = 0
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            memory_kb = int(line.split()[1])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_kb / 1e6, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def spread_of(values: Sequence[float | None]) -> tuple[float, float, float] | None:
    """Median, least and greatest, or None when a run lacks the value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return median(known), min(known), max(known)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def cell(values: Sequence[float | None]) -> str:
    """``median (least..greatest)``; a dash when there is none."""
    found = spread_of(values)
    if found is None:
        return "-"
    middle, least, most = map(_number, found)
    return middle if least == most else f"{middle} ({least}..{most})"


def at(*path: str, scale: float = 1.0) -> Value:
    """A value of the client's report by its path, times ``scale``."""

    def read(result: Result) -> float | None:
        value: Any = result.client
        for name in path:
            if value is None:
                return None
            value = value.get(name)
        return None if value is None else float(value) * scale

    return read


MS = 1e-3
Column = tuple[str, Value, bool]


def columns(workload: Workload) -> list[Column]:
    """A table's columns: title, value, and whether to add its difference to ``direct``."""
    unit = workload.unit
    cost: list[Column] = [
        (f"CPU µs/{unit}", lambda r: r.cpu_us, False),
        ("of it database", lambda r: r.database_cpu_us, False),
        (f"sleeps/{unit}", lambda r: r.switches, False),
    ]
    errors: list[Column] = [("errors", at("errors"), False)]
    if unit == "event":
        return [
            ("events/s", at("events_per_s_steady"), False),
            *cost,
            ("gap p99 ms", at("gap_us", "p99", scale=MS), True),
            ("delay p50 ms", at("delay_us", "p50", scale=MS), True),
            ("delay p99 ms", at("delay_us", "p99", scale=MS), True),
            ("longest stall ms", at("longest_stall_ms"), False),
            ("upstream late p99 ms", at("upstream_late_us", "p99", scale=MS), False),
            ("RSS peak MB", lambda r: None if r.peak is None else r.peak.rss, False),
            ("PSS peak MB", lambda r: None if r.peak is None else r.peak.pss, False),
            ("RSS end MB", lambda r: None if r.last is None else r.last.rss, False),
            *errors,
        ]
    first = "first_event_us" if unit == "stream" else "latency_us"
    name = "first event" if unit == "stream" else "latency"
    return [
        (f"{unit}s/s", at("requests_per_s"), False),
        *cost,
        (f"{name} p50 ms", at(first, "p50", scale=MS), True),
        (f"{name} p99 ms", at(first, "p99", scale=MS), True),
        ("RSS peak MB", lambda r: None if r.peak is None else r.peak.rss, False),
        *errors,
    ]


def _against(results: list[Result], other: list[Result]) -> str:
    mine, theirs = spread_of([r.cpu_us for r in results]), spread_of([r.cpu_us for r in other])
    if mine is None or theirs is None or theirs[0] == 0:
        return "-"
    return f"{mine[0] / theirs[0]:.2f}x"


def table(workload: Workload, runs: dict[str, list[Result]], against: str) -> str:
    """One workload's table, a row a gateway."""
    wanted = columns(workload)
    if not any(r.database_cpu_us for results in runs.values() for r in results):
        wanted = [column for column in wanted if column[0] != "of it database"]
    base = runs.get("direct", [])
    titles = ["gateway"]
    for title, _, differs in wanted:
        titles.append(title)
        if differs and base:
            titles.append("added")
    if against in runs:
        titles.append(f"CPU / {against}")
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for name, results in runs.items():
        row = [name]
        for _, value, differs in wanted:
            values = [value(result) for result in results]
            row.append(cell(values))
            if differs and base:
                mine, direct = spread_of(values), spread_of([value(result) for result in base])
                known = mine is not None and direct is not None and name != "direct"
                row.append(_number(mine[0] - direct[0]) if known and mine and direct else "-")
        if against in runs:
            row.append(_against(results, runs[against]))
        rows.append(row)
    lines = [f"### {workload.title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines)


def markdown(workloads: Sequence[Workload], runs: Runs, about: dict[str, Any], against: str) -> str:
    """The whole report."""
    host = about["machine"]
    lines = [
        "## Load bench",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gb']} GB, Linux {host['kernel']}; "
        f"load average at the start {host['load_average'][0]:.1f}. "
        f"{about['rounds']} interleaved rounds: median (least..greatest). "
        "CPU is user + system time of the gateway's whole process tree.",
        "",
        f"`{about['command']}`",
        "",
        *(f"- {name}: {version}" for name, version in about["versions"].items()),
        "",
    ]
    lines += [table(w, runs[w.name], against) for w in workloads if runs.get(w.name)]
    return "\n".join(lines)

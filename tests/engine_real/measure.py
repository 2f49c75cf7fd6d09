"""How long a real SGLang's start takes: `python -m tests.engine_real.measure [RUNS]`.

FOREBAY_ENGINE_PYTHON names the engine's environment. Three kinds of start, three runs each unless
RUNS says otherwise: `first` (neither the files of the environment in the page cache nor compiled
modules), `page cache` (files in memory, modules compiled anew) and `caches` (both). Prints a table.
Nothing else on the machine is touched: files leave the page cache one by one (`posix_fadvise`),
and compiled modules are kept in a folder of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.engine_real.engines import NAME, RealEngine, Setup, make_model
from tests.support.wire import CHAT, chat

RUNS = 3
KINDS = ("first", "page cache", "caches")
MARKS = (
    ("import: server", re.compile(r"server_args=")),
    ("import: scheduler", re.compile(r"Init parallel begin")),
    ("process groups, model classes", re.compile(r"Load weight begin")),
    ("weights", re.compile(r"Load weight end")),
    ("cache", re.compile(r"max_total_num_tokens=")),
)
"""The phase that ends with the line. SGLang's scheduler is a process of its own, which is spawned
once the server has read its arguments, and imports everything again."""
PHASES = (*(phase for phase, _ in MARKS), "HTTP, own warm-up", "first token")


def evict(folder: Path) -> None:
    """Have the kernel forget the contents of the files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                file = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)


def read(folder: Path) -> None:
    """Have the kernel know them."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass


def cpu_s(engine: RealEngine) -> float:
    """CPU time of all its processes so far."""
    found = 0.0
    for process in engine.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found += times.user + times.system
    return found


def start(setup: Setup, folder: Path, compiled: Path) -> tuple[dict[str, float], float]:
    """Start once. Returns when each phase ended, seconds after the begin, and the CPU time."""
    engine = RealEngine(folder, setup, env={"PYTHONPYCACHEPREFIX": str(compiled)})
    ended: dict[str, float] = {}
    seen = 0
    engine.launch()
    began = time.monotonic()
    try:
        while "HTTP, own warm-up" not in ended:
            assert engine.alive(), engine.log()[-4000:]
            lines = engine.log().splitlines()
            for line in lines[seen:]:
                for phase, pattern in MARKS:
                    if pattern.search(line):
                        ended.setdefault(phase, time.monotonic() - began)
            seen = len(lines)
            if engine.status("/ready") == 200:
                ended["HTTP, own warm-up"] = time.monotonic() - began
            time.sleep(0.02)
        assert engine.call(CHAT, chat(NAME, "hi", max_tokens=1)).status == 200
        ended["first token"] = time.monotonic() - began
        return ended, cpu_s(engine)
    finally:
        engine.stop()


def durations(ended: dict[str, float]) -> dict[str, float]:
    """How long each phase took."""
    found, before = {}, 0.0
    for phase in PHASES:
        if phase in ended:
            found[phase] = ended[phase] - before
            before = ended[phase]
    return found


def table(runs: dict[str, list[tuple[dict[str, float], float]]]) -> str:
    """Medians, with the least and the greatest."""

    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({min(values):.1f}..{max(values):.1f})"

    lines = ["| s | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for phase in PHASES:
        cells = [cell([durations(ended)[phase] for ended, _ in kind]) for kind in runs.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    totals = [cell([max(ended.values()) for ended, _ in kind]) for kind in runs.values()]
    lines.append("| **together** | " + " | ".join(totals) + " |")
    lines.append(
        "| CPU time | "
        + " | ".join(cell([cpu for _, cpu in kind]) for kind in runs.values())
        + " |"
    )
    return "\n".join(lines)


def main(times: int) -> int:
    """Measure and print."""
    python = Path(os.environ["FOREBAY_ENGINE_PYTHON"])
    library = python.parent.parent / "lib"
    runs: dict[str, list[tuple[dict[str, float], float]]] = {}
    with tempfile.TemporaryDirectory(prefix="forebay-engine-measure-") as name:
        folder = Path(name)
        model = os.environ.get("MODEL") or make_model(python, folder / "model")
        setup = Setup(python, model, os.environ.get("ENGINE") == "gpu", known=True)
        compiled = folder / "compiled"
        for kind in KINDS:
            runs[kind] = []
            for number in range(times):
                if kind != "caches":
                    shutil.rmtree(compiled, ignore_errors=True)
                evict(library) if kind == "first" else read(library)
                ended, cpu = start(setup, folder / f"{kind}-{number}", compiled)
                runs[kind].append((ended, cpu))
                print(
                    f"{datetime.now():%H:%M:%S} {kind}: {json.dumps(ended)}, CPU {cpu:.1f} s",
                    flush=True,
                )
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else RUNS))

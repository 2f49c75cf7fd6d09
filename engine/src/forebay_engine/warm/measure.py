"""What a start costs, stage by stage, and what each lever saves: `forebay-engine warm --measure N`.

Ways, one after another, N starts each:

- `cold`: weights and the engine's own files are not in the page cache, nothing is compiled.
- `page cache`: they are in memory; compiled modules, kernels and graphs are made anew.
- `caches`: both are kept.
- `resume`: a parked engine is woken, where the profile parks.

Files leave the page cache one by one (posix_fadvise), compiled things go to folders of their own:
nothing else on the machine is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from forebay_engine.serve.clock import SystemClock
from forebay_engine.serve.engines import make
from forebay_engine.serve.gpu import detect, visible
from forebay_engine.serve.plan import plan
from forebay_engine.serve.process import find
from forebay_engine.serve.profile import Profile
from forebay_engine.serve.supervisor import Supervisor
from forebay_engine.warm.members import check_park, saves_memory

STAGES = ("prepare", "process", "import", "weights", "graphs")
"""How long each took (`serve.phases`)."""
ROWS = (*STAGES, "other", "ready", "first_token")
"""`other`: of `ready`, what is in no stage. The last two are when it was."""
COLD = "cold"
PARK_S = 300.0
"""For releasing memory, and on top of a start's own limit."""


class Unmeasured(Exception):
    """A way cannot be measured; the text says why."""


@dataclass(frozen=True)
class Way:
    """One way to start. evict: files leave the page cache first. fresh: nothing is compiled."""

    name: str
    evict: bool
    fresh: bool


WAYS = (Way(COLD, True, True), Way("page cache", False, True), Way("caches", False, False))
RESUME = "resume"


@dataclass
class Measured:
    """All starts: by way, the seconds of each. skipped: ways that cannot be measured, and why."""

    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def rows(phases: Mapping[str, float | None]) -> dict[str, float]:
    """A start's seconds, with what lies between the stages; unknown ones are left out."""
    found = {name: value for name, value in phases.items() if value is not None}
    if "ready" in found:
        found["other"] = found["ready"] - sum(found.get(name, 0.0) for name in STAGES)
    return found


def total(start: Mapping[str, float]) -> float | None:
    """Until it serves: the first token, or ready where no token was asked for."""
    return start.get("first_token", start.get("ready"))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report(measured: Measured) -> dict[str, Any]:
    """Everything, as `--json` prints it. saved_s: medians of the total, against `cold`."""
    ways: dict[str, Any] = {}
    for name, starts in measured.runs.items():
        known = {row: [start[row] for start in starts if row in start] for row in ROWS}
        totals = [found for start in starts if (found := total(start)) is not None]
        ways[name] = {
            "starts": starts,
            "stages": {row: spread(values) for row, values in known.items() if values},
            "total": spread(totals) if totals else None,
        }
    base = ways[COLD]["total"] if COLD in ways else None
    for way in ways.values():
        took = way["total"]
        saved = None
        if base is not None and took is not None:
            saved = base["median"] - took["median"]
        way["saved_s"] = saved
    return {"unit": "s", "ways": ways, "skipped": measured.skipped}


def cell(value: Mapping[str, float] | None) -> str:
    """`median (min..max)`; a dash where nothing is known."""
    if value is None:
        return "-"
    return f"{value['median']:.2f} ({value['min']:.2f}..{value['max']:.2f})"


def lines(told: Mapping[str, Any]) -> list[list[str]]:
    """The table: a head, then a row a stage."""
    ways = told["ways"]
    found = [["seconds", *ways]]
    for row in ROWS:
        if any(row in way["stages"] for way in ways.values()):
            found.append([row, *(cell(way["stages"].get(row)) for way in ways.values())])
    found.append(["total", *(cell(way["total"]) for way in ways.values())])
    saved = [way["saved_s"] for way in ways.values()]
    found.append(["saved", *("-" if s is None else f"{s:.2f}" for s in saved)])
    return found


def evict(folders: Sequence[Path]) -> None:
    """Have the kernel forget the files' contents. What is being written stays."""
    for path in _files(folders):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def keep(folders: Sequence[Path]) -> None:
    """Have the kernel know them."""
    for path in _files(folders):
        with contextlib.suppress(OSError), path.open("rb") as file:
            while file.read(1 << 22):
                pass


def _files(folders: Sequence[Path]) -> list[Path]:
    found = []
    for folder in folders:
        paths = [folder] if folder.is_file() else folder.rglob("*")
        found += [path for path in paths if path.is_file()]
    return found


def read_by(profile: Profile, argv: Sequence[str]) -> list[Path]:
    """What a start reads: the model's folder, and the environment that the engine runs in."""
    found = []
    model = Path((profile.weights.source or profile.model).removeprefix("file://")).expanduser()
    if model.exists():
        found.append(model)
    program = Path(find(argv[0]))
    for folder in (program.parent.parent, program.resolve().parent.parent):
        if (folder / "pyvenv.cfg").exists() and (folder / "lib").is_dir():
            found.append(folder / "lib")
            break
    return found


async def measure(profile: Profile, runs: int, *, as_json: bool = False) -> int:
    """Measure and print. Returns the exit status. Raises ValueError: the profile cannot be used."""
    gpus = visible(detect(), {**os.environ, **profile.env}.get("CUDA_VISIBLE_DEVICES"))
    check_park(profile, gpus)
    folders = read_by(profile, plan(profile, make(profile.kind), gpus).argv)
    measured = Measured()
    failed, name = False, WAYS[0].name
    try:
        with tempfile.TemporaryDirectory(prefix="forebay-engine-measure-") as folder:
            compiled = Path(folder)
            for way in WAYS:
                name = way.name
                for number in range(runs):
                    if way.fresh:
                        await asyncio.to_thread(_empty, compiled)
                    await asyncio.to_thread(evict if way.evict else keep, folders)
                    start = await _start(_with_caches(profile, compiled, way), gpus)
                    measured.runs.setdefault(way.name, []).append(start)
                    _progress(way.name, number, start)
            name = RESUME
            await _resumes(_with_caches(profile, compiled, WAYS[-1]), gpus, runs, measured)
    except Unmeasured as error:
        failed = True
        measured.skipped[name] = str(error)
        print(f"forebay-engine warm: {name}: {error}", file=sys.stderr)
    told = report(measured)
    if measured.runs:
        print(json.dumps(told, indent=2)) if as_json else _print(told)
    return 1 if failed else 0


def _with_caches(profile: Profile, folder: Path, way: Way) -> Profile:
    """The profile with all that is compiled in `folder`; weights are synced where it says."""
    env = {"PYTHONPYCACHEPREFIX": str(folder / "modules"), **profile.env}
    cache_dir = profile.cache_dir if profile.weights.source else str(folder / "caches")
    weights = msgspec.structs.replace(
        profile.weights, preload=profile.weights.preload and not way.evict
    )
    return msgspec.structs.replace(profile, env=env, cache_dir=cache_dir, weights=weights)


async def _start(profile: Profile, gpus: Sequence[Any]) -> dict[str, float]:
    supervisor = Supervisor(profile, make(profile.kind), gpus=gpus, output=(2, 2))
    try:
        await _warm(supervisor)
        return rows(msgspec.to_builtins(supervisor.phases))
    finally:
        await supervisor.close()


async def _warm(supervisor: Supervisor) -> None:
    """Wake it and wait. Raises Unmeasured: it did not come up."""
    await supervisor.wake()
    limit_s = supervisor.profile.load_timeout_s + PARK_S
    await _come(supervisor, supervisor.wait_for("warm", limit_s), "start", limit_s)


async def _put_by(supervisor: Supervisor) -> None:
    """Park it and wait. Raises Unmeasured: it is not parked."""
    profile = supervisor.profile
    await supervisor.park()
    if profile.park == "gate":
        limit_s = profile.load_timeout_s + PARK_S
        await _come(supervisor, supervisor.wait_parked(limit_s), "come to its gate", limit_s)
        return
    limit_s = profile.drain.grace_s + PARK_S
    await _come(supervisor, supervisor.wait_for("cold", limit_s), "park", limit_s)
    if not supervisor.parked:
        raise Unmeasured("the engine did not release its memory, and was stopped")


async def _come(
    supervisor: Supervisor, until: Coroutine[Any, Any, None], deed: str, limit_s: float
) -> None:
    failing = asyncio.ensure_future(supervisor.failed())
    waiting = asyncio.ensure_future(until)
    try:
        await asyncio.wait((failing, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Unmeasured(f"the engine did not {deed}: {supervisor.error}")
        await waiting
    except TimeoutError:
        raise Unmeasured(f"the engine did not {deed} within {limit_s:g} s") from None
    finally:
        failing.cancel()
        waiting.cancel()


async def _resumes(profile: Profile, gpus: Sequence[Any], runs: int, measured: Measured) -> None:
    if profile.park == "stop":
        measured.skipped[RESUME] = "the profile's park is stop"
        return
    clock = SystemClock()
    supervisor = Supervisor(profile, make(profile.kind), gpus=gpus, output=(2, 2))
    try:
        if profile.park == "memory":
            await _warm(supervisor)
            saves = await saves_memory(supervisor._client.http, profile)
            if not saves:
                measured.skipped[RESUME] = "the engine has no memory saver"
                return
        for number in range(runs):
            await _put_by(supervisor)
            began = clock.now()
            await _warm(supervisor)
            # Of a gated one the supervisor's stages count from its own start.
            start = {"ready": clock.now() - began}
            measured.runs.setdefault(RESUME, []).append(start)
            _progress(RESUME, number, start)
    finally:
        await supervisor.close()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True)


def _progress(way: str, number: int, start: Mapping[str, float]) -> None:
    took = total(start)
    text = "?" if took is None else f"{took:.2f} s"
    print(f"forebay-engine warm: {way} {number + 1}: {text}", file=sys.stderr, flush=True)


def _print(told: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    head, *body = lines(told)
    table = Table(*head)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in body:
        table.add_row(*row)
    # No cell is cut: a terminal that is narrower wraps the lines.
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    for name, why in told["skipped"].items():
        console.print(f"{name}: not measured: {why}")

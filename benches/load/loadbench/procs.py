"""Processes: started and ended by id, and what their trees use, read from ``/proc``."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MARKER = "FOREBAY_LOAD_RUN"
PROC = Path("/proc")


def raise_file_limit() -> int:
    """Raise the soft limit on open files to the hard one; returns it. Children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@dataclass(frozen=True)
class Stat:
    """One line of ``/proc/PID/stat``: parent, name, CPU seconds with those of ended children."""

    parent: int
    name: str
    cpu_s: float


def read_stat(pid: int) -> Stat | None:
    """The process's ``stat``, or None when it is gone or a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name is in brackets and may hold spaces and brackets itself.
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    if rest[0] in {"Z", "X"}:
        return None
    ticks = sum(int(value) for value in rest[11:15])
    return Stat(parent=int(rest[1]), name=name, cpu_s=ticks / TICKS_PER_S)


@dataclass
class Usage:
    """What a tree used so far: CPU seconds by process name, voluntary context switches."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    switches: int = 0

    def since(self, before: Usage) -> Usage:
        """The difference to an earlier reading."""
        names = self.cpu_s.keys() | before.cpu_s.keys()
        cpu = {name: self.cpu_s.get(name, 0.0) - before.cpu_s.get(name, 0.0) for name in names}
        return Usage(cpu, self.switches - before.switches)


@dataclass(frozen=True)
class Memory:
    """Memory of a tree, MB (10**6 bytes), by process name."""

    rss_mb: dict[str, float]
    pss_mb: dict[str, float]

    @property
    def rss(self) -> float:
        """Sum of resident sizes: pages that processes share count once for each."""
        return sum(self.rss_mb.values())

    @property
    def pss(self) -> float:
        """Sum of proportional sizes: shared pages count once. 0 where the kernel hides it."""
        return sum(self.pss_mb.values())


def _switches(pid: int) -> int:
    total = 0
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
    except OSError:
        # Ended in between: its share is small, and the run's other figures stand.
        return total
    return total


def _memory_of(pid: int) -> tuple[float, float]:
    rss = pss = 0.0
    try:
        rss = int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES / 1e6
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                pss = int(line.split()[1]) * 1024 / 1e6
    except OSError:
        return rss, pss
    return rss, pss


class Process:
    """A started command and everything it started, daemons that left its tree included.

    What it starts is known by descent and by a variable in its environment: a database server
    that a gateway starts as a daemon has no parent in the tree any more.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start ``command`` in ``cwd`` (this process's own when None); its output goes to ``log``.

        Raises OSError when it cannot start.
        """
        self.marker = uuid.uuid4().hex
        self.log = log
        environment = {**os.environ, **(env or {}), MARKER: self.marker}
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def exit_code(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._child.poll()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def members(self) -> list[int]:
        """Process ids of the tree, now."""
        stats: dict[int, Stat] = {}
        for entry in PROC.iterdir():
            if entry.name.isdecimal():
                stat = read_stat(int(entry.name))
                if stat is not None:
                    stats[int(entry.name)] = stat
        needle = f"{MARKER}={self.marker}".encode()
        mine = {self.pid} & stats.keys()
        for pid in stats:
            try:
                if needle in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                    mine.add(pid)
            except OSError:
                continue
        grew = True
        while grew:
            more = {pid for pid, stat in stats.items() if stat.parent in mine} - mine
            grew = bool(more)
            mine |= more
        return sorted(mine)

    def usage(self) -> Usage:
        """What the tree used so far."""
        usage = Usage()
        for pid in self.members():
            stat = read_stat(pid)
            if stat is not None:
                usage.cpu_s[stat.name] = usage.cpu_s.get(stat.name, 0.0) + stat.cpu_s
                usage.switches += _switches(pid)
        return usage

    def memory(self, members: Iterable[int] | None = None) -> Memory:
        """What the tree holds in memory now."""
        rss: dict[str, float] = defaultdict(float)
        pss: dict[str, float] = defaultdict(float)
        for pid in self.members() if members is None else members:
            stat = read_stat(pid)
            if stat is not None:
                rss_mb, pss_mb = _memory_of(pid)
                rss[stat.name] += rss_mb
                pss[stat.name] += pss_mb
        return Memory(dict(rss), dict(pss))

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the command to end, then end whatever of its tree is left, each by its id."""
        tree = self.members()
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        deadline = time.monotonic() + grace_s / 3
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.05)
        # Ids may be used again: only what is still known by its marker or was in the tree and
        # has the same session as the command.
        left = [pid for pid in {*tree, *self.members()} if _session(pid) == self.pid]
        left += [pid for pid in self.members() if pid not in left]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


class PeakMemory:
    """Samples a tree's memory in a thread; a context manager.

    ``peak`` is the sample with the largest resident size, ``last`` the newest one.
    """

    def __init__(self, process: Process, every_s: float = 0.5) -> None:
        self._process = process
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak = self.last = process.memory()

    def _sample(self) -> None:
        members = self._process.members()
        while not self._stop.wait(self._every_s):
            memory = self._process.memory(members)
            self.last = memory
            if memory.rss > self.peak.rss:
                self.peak = memory

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.last = self._process.memory()

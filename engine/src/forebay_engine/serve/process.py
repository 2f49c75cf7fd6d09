"""An engine's process: started on a leash, its output passed on and its last lines kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from forebay_engine.serve import leash

KEPT_LINES = 40
LINE_BYTES = 4096
"""Longer lines are cut, in what is kept and looked at; they pass on whole."""
ORPHAN_GRACE_S = 5.0
"""For an engine whose supervisor has died."""

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """What to start. env: the whole environment. output: where its stdout and stderr go."""

    argv: Sequence[str]
    env: Mapping[str, str]
    on_line: OnLine
    """Called in the event loop's thread."""
    cwd: str | None = None
    output: tuple[int, int] = (1, 2)


class Process(Protocol):
    """One engine."""

    pid: int

    async def wait(self) -> int:
        """The exit status, once it and all its children are gone; negative: by that signal."""

    def signal(self, number: signal.Signals) -> None:
        """To the engine alone. It may be gone."""

    def kill(self) -> None:
        """SIGKILL to its process group; what is left is swept up after it."""

    def tail(self) -> list[str]:
        """The last lines that it said."""


Spawn = Callable[[Start], Awaitable[Process]]


def find(program: str) -> str:
    """Where a program is: beside this Python, as in one virtual environment, else on the PATH.

    The name itself where it is nowhere.
    """
    if "/" in program:
        return program
    beside = Path(sys.executable).with_name(program)
    if os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which(program) or program


async def spawn(start: Start) -> Process:
    """Start an engine. Raises OSError: not even the leash could be started.

    Cancelled, it ends what it has begun before it returns.
    """
    starting = asyncio.ensure_future(_spawn(start))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            held = await starting
            held.kill()
            await held.wait()
        raise


async def _spawn(start: Start) -> Process:
    loop = asyncio.get_running_loop()
    tail: deque[str] = deque(maxlen=KEPT_LINES)
    report_read, report_write = os.pipe()
    pumps = []
    ends = []
    try:
        for output in start.output:
            read, write = os.pipe()
            ends.append(write)
            pumps.append(_Pump(read, output, loop, start.on_line, tail))
        argv = [find(start.argv[0]), *start.argv[1:]]
        held = [sys.executable, "-I", "-S", leash.__file__]
        process = await asyncio.create_subprocess_exec(
            *held,
            str(report_write),
            str(os.getpid()),
            str(ORPHAN_GRACE_S),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=ends[0],
            stderr=ends[1],
            env=dict(start.env),
            cwd=start.cwd,
            pass_fds=(report_write,),
        )
    except BaseException:
        os.close(report_read)
        for pump in pumps:
            pump.abandon()
        raise
    finally:
        os.close(report_write)
        for end in ends:
            os.close(end)
    for pump in pumps:
        pump.start()
    reader = await _reader(report_read)
    words = (await reader.readline()).split()
    pid = int(words[1]) if len(words) == 2 else process.pid
    return _Held(pid, process, reader, pumps, tail)


class _Held:
    """A process on a leash."""

    def __init__(
        self,
        pid: int,
        leashed: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        pumps: list[_Pump],
        tail: deque[str],
    ) -> None:
        self.pid = pid
        self._tail = tail
        self._gone = False
        self._ending = asyncio.ensure_future(self._end(leashed, reader, pumps))

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    def signal(self, number: signal.Signals) -> None:
        if not self._gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        if not self._gone:
            for kill in (os.killpg, os.kill):  # just forked, it has no group yet
                with contextlib.suppress(ProcessLookupError):
                    kill(self.pid, signal.SIGKILL)

    def tail(self) -> list[str]:
        return list(self._tail)

    async def _end(
        self,
        leashed: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        pumps: list[_Pump],
    ) -> int:
        words = (await reader.readline()).split()
        self._gone = True
        code = await leashed.wait()
        for pump in pumps:
            await pump.ended()
        # Without a word the leash was killed, and the engine with it.
        return int(words[1]) if len(words) == 2 else code or -signal.SIGKILL


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return reader


class _Pump:
    """Passes bytes on from a thread: a slow reader of ours slows the engine, not the loop."""

    def __init__(
        self,
        source: int,
        target: int,
        loop: asyncio.AbstractEventLoop,
        on_line: OnLine,
        tail: deque[str],
    ) -> None:
        self._source = source
        self._target = target
        self._loop = loop
        self._on_line = on_line
        self._tail = tail
        self._rest = b""
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="engine-output", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def abandon(self) -> None:
        """Instead of `start`."""
        os.close(self._source)

    async def ended(self) -> None:
        """Return when all has been passed on, after 2 s at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), 2.0)

    def _run(self) -> None:
        try:
            while chunk := os.read(self._source, 65536):
                self._pass(chunk)
                self._look(chunk)
            if self._rest:
                self._look(b"\n")
        finally:
            os.close(self._source)
            self._tell(self._ended.set)

    def _pass(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        # Nobody may read our output any more: the engine goes on.
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._target, rest) :]

    def _look(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        self._rest = rest[:LINE_BYTES]
        for line in lines:
            text = line[:LINE_BYTES].decode("utf-8", "replace").rstrip()
            if text:
                self._tail.append(text)
                self._tell(self._on_line, text)

    def _tell(self, what: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(what, *args)

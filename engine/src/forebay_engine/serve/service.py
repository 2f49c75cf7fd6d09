"""The life of `forebay-engine serve`: supervisor, agent, signals."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from forebay_engine.serve import agent
from forebay_engine.serve.engines import make
from forebay_engine.serve.profile import Profile
from forebay_engine.serve.supervisor import Supervisor


@dataclass(frozen=True)
class Options:
    """agent: HOST:PORT, None for none. cold: not woken at first."""

    agent: str | None
    key: str | None
    ready_file: str | None
    cold: bool


async def serve(profile: Profile, options: Options) -> int:
    """Run until a signal, or until the engine cannot be kept. Returns the exit status.

    SIGTERM and SIGINT drain; the second one ends it at once. Raises ValueError: a wrong address;
    OSError: it is taken, or the ready file cannot be written.
    """
    if options.ready_file is not None:
        clear(Path(options.ready_file))
    supervisor = Supervisor(profile, make(profile.kind))
    app = agent.Agent(lambda: (supervisor,), key=options.key)
    server, serving, where = None, None, None
    if options.agent is not None:
        host, port = agent.address(options.agent, options.key)
        server, serving = await agent.serve(app, host, port)
        where = server.address
    asked = _signals(supervisor)
    ready = asyncio.ensure_future(_tell(supervisor, options.ready_file, where))
    try:
        if not options.cold:
            await supervisor.wake()
        return await _until_over(supervisor, profile, asked)
    finally:
        ready.cancel()
        await supervisor.close()
        await app.close()
        if server is not None and serving is not None:
            server.should_exit = True
            await serving
        await asyncio.gather(ready, return_exceptions=True)
        if options.ready_file is not None:
            await asyncio.to_thread(Path(options.ready_file).unlink, missing_ok=True)


async def _until_over(supervisor: Supervisor, profile: Profile, asked: asyncio.Event) -> int:
    failing = asyncio.ensure_future(supervisor.failed())
    asking = asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait((failing, asking), return_when=asyncio.FIRST_COMPLETED)
    finally:
        failing.cancel()
        asking.cancel()
    if not asked.is_set():
        return status(supervisor.exit_status)
    await supervisor.drain(profile.drain.grace_s)
    return 0


def status(exit_status: int | None) -> int:
    """Our exit status for the engine's: its own, 128 + n for signal n, 1 where it had none."""
    if exit_status is None or exit_status == 0:
        return 1
    return 128 - exit_status if exit_status < 0 else exit_status


def _signals(supervisor: Supervisor) -> asyncio.Event:
    asked = asyncio.Event()
    stopping: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if asked.is_set():
            stopping.append(asyncio.ensure_future(supervisor.stop()))
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return asked


async def _tell(supervisor: Supervisor, ready_file: str | None, where: str | None) -> None:
    """Write the ready file once it is warm."""
    if ready_file is None:
        return
    await supervisor.wait_for("warm", math.inf)
    told = {"url": supervisor.profile.url, "agent": where and f"http://{where}", "pid": os.getpid()}
    path = Path(ready_file)
    draft = _draft(path)
    try:
        draft.write_text(json.dumps(told) + "\n")
        draft.replace(path)
    except OSError as error:
        text = f"forebay-engine serve: --ready-file {path}: {error.strerror or error}"
        print(text, file=sys.stderr, flush=True)


def clear(ready_file: Path) -> None:
    """Remove what one that was killed has left. Raises OSError: it cannot be written either."""
    draft = _draft(ready_file)
    try:
        if ready_file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        ready_file.unlink(missing_ok=True)
        draft.write_text("")
        draft.unlink()
    except OSError as error:
        raise OSError(f"--ready-file {ready_file}: {error.strerror}") from None


def _draft(ready_file: Path) -> Path:
    return ready_file.with_name(f"{ready_file.name}.{os.getpid()}")

"""The life of `forebay-engine warm`: a pool, its agent, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from forebay_engine.serve import agent
from forebay_engine.serve.engines import make
from forebay_engine.serve.gpu import Gpu, detect, visible
from forebay_engine.serve.profile import Profile
from forebay_engine.warm.members import PoolMember, profiles
from forebay_engine.warm.pool import Desired, Limits
from forebay_engine.warm.runner import Pool, to_stderr

try:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError:
    raise ValueError("a pool needs more: pip install 'forebay-engine[serve]'") from None


MOST_WANTED = 4096
"""Bytes of a `PUT /pool`."""


@dataclass(frozen=True)
class Options:
    """agent: HOST:PORT, None for none. size: members in all. idle_s: see `Pool`."""

    desired: Desired
    size: int
    limits: Limits
    idle_s: float
    agent: str | None
    key: str | None
    ready_file: str | None


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What `PUT /pool` takes; what is left out stays."""

    warm: int | None = None
    parked: int | None = None


def build(profile: Profile, options: Options, gpus: Sequence[Gpu] | None = None) -> Pool:
    """The pool of a profile. gpus: None asks the driver. Raises ValueError."""
    if gpus is None:
        devices = {**os.environ, **profile.env}.get("CUDA_VISIBLE_DEVICES")
        gpus = visible(detect(), devices)
    if options.desired.parked and profile.park == "stop":
        raise ValueError("--parked: the profile's park is stop, which parks nothing")
    placed = profiles(profile, options.size, gpus)
    seen = gpus

    def member(index: int, on_word: object) -> PoolMember:
        own, _ = placed[index]
        devices = own.env.get("CUDA_VISIBLE_DEVICES")
        return PoolMember(
            own,
            make(own.kind),
            on_word=on_word,  # type: ignore[arg-type]
            gpus=visible(seen, devices),
            say=partial(_say_of, index),
        )

    return Pool(
        member,
        [place for _, place in placed],
        options.desired,
        park=profile.park,
        limits=options.limits,
        idle_s=options.idle_s,
    )


def _say_of(index: int, text: str) -> None:
    to_stderr(f"member {index}: {text}")


def routes(pool: Pool) -> list[Route]:
    """What the pool's agent has beside an engine's."""

    async def show(request: Request) -> Response:
        return JSONResponse(pool.view())

    async def put(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await _read(request), type=Wanted)
            before = pool.desired
            pool.set(
                Desired(
                    before.warm if wanted.warm is None else wanted.warm,
                    before.parked if wanted.parked is None else wanted.parked,
                )
            )
        except OverflowError as error:
            return JSONResponse({"error": str(error)}, 413)
        except RecursionError:
            return JSONResponse({"error": "it is nested too deeply"}, 422)
        except (msgspec.MsgspecError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse(pool.view())

    return [Route("/pool", show), Route("/pool", put, methods=["PUT"])]


async def _read(request: Request) -> bytes:
    """Its body. Raises OverflowError: more than `MOST_WANTED`."""
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MOST_WANTED:
            raise OverflowError(f"a body has at most {MOST_WANTED} bytes")
    return bytes(found)


async def keep(profile: Profile, options: Options) -> int:
    """Run until a signal. Returns the exit status.

    SIGTERM and SIGINT drain; a second one ends it at once. Raises ValueError: wrong options;
    OSError: the agent's address is taken, or the ready file cannot be written.
    """
    pool = build(profile, options)
    if options.ready_file is not None:
        await asyncio.to_thread(_clear, Path(options.ready_file))
    app = agent.Agent(lambda: pool.members, key=options.key, routes=routes(pool))
    server, serving, where = None, None, None
    if options.agent is not None:
        host, port = agent.address(options.agent, options.key)
        server, serving = await agent.serve(app, host, port)
        where = f"http://{server.address}"
    asked, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (hurry if asked.is_set() else asked).set())
    ready = asyncio.ensure_future(_tell(pool, options.ready_file, where))
    try:
        pool.start()
        await asked.wait()
        draining = asyncio.ensure_future(pool.drain(profile.drain.grace_s))
        hurrying = asyncio.ensure_future(hurry.wait())
        await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        return 0
    finally:
        ready.cancel()
        await pool.close()
        await app.close()
        if server is not None and serving is not None:
            server.should_exit = True
            await serving
        await asyncio.gather(ready, return_exceptions=True)
        if options.ready_file is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(Path(options.ready_file).unlink, missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what one left that was killed, and see that it can be written anew. Raises OSError."""
    path.unlink(missing_ok=True)
    draft = _draft(path)
    draft.touch()
    draft.unlink()


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}")


async def _tell(pool: Pool, ready_file: str | None, where: str | None) -> None:
    """Write the ready file once as many are warm and parked as are wanted."""
    if ready_file is None:
        return
    while not pool.is_converged:
        with contextlib.suppress(TimeoutError):
            await pool.converged(3600.0)
    urls = [member.profile.url for member in pool.members]
    path = Path(ready_file)
    try:
        draft = _draft(path)
        draft.write_text(json.dumps({"urls": urls, "agent": where, "pid": os.getpid()}) + "\n")
        draft.replace(path)
    except OSError as error:  # a disk that is full by now; the engines serve
        to_stderr(f"--ready-file: {error}")

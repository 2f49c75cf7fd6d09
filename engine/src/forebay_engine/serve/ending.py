"""How an engine's process is ended, and what is said of one that has."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from forebay_engine.serve.clock import Clock, first_of

if TYPE_CHECKING:
    from forebay_engine.serve.client import Client
    from forebay_engine.serve.engines import EngineKind
    from forebay_engine.serve.process import Process
    from forebay_engine.serve.profile import Drain


async def finish(
    held: Process,
    *,
    drain: Drain,
    grace_s: float,
    kind: EngineKind,
    client: Client,
    clock: Clock,
    hurry: asyncio.Event,
    say: Callable[[str], None],
) -> None:
    """Let requests finish for `grace_s` at most, end the process, and return when it is gone.

    1. `settle_s`, so that gateways have seen that it drains.
    2. SIGTERM where the kind finishes what runs by itself; else first wait until its load is 0.
    3. SIGTERM (again) when that is done, the grace is over, or `hurry` is set.
    4. SIGKILL `kill_s` later.
    """
    deadline = clock.now() + grace_s
    gone = asyncio.ensure_future(held.wait())
    pressed = asyncio.ensure_future(hurry.wait())
    try:
        if grace_s > 0:
            await first_of(clock, min(drain.settle_s, grace_s), gone, pressed)
            if kind.drains_on_sigterm:
                held.signal(signal.SIGTERM)
                await first_of(clock, max(0.0, deadline - clock.now()), gone, pressed)
            elif not pressed.done() and not gone.done():
                idle: asyncio.Future[Any] = asyncio.ensure_future(client.until_idle(deadline))
                await first_of(clock, max(0.0, deadline - clock.now()), gone, pressed, idle)
                idle.cancel()
        if not gone.done():
            held.signal(signal.SIGTERM)
            await first_of(clock, drain.kill_s, gone)
        if not gone.done():
            say(f"it did not end within {drain.kill_s:g} s of SIGTERM: SIGKILL")
            held.kill()
        await gone
    finally:
        gone.cancel()
        pressed.cancel()


def report(why: str, status: int | None, tail: Sequence[str]) -> str:
    """How a process ended, with its last lines. why: where it was the supervisor's doing."""
    if not why:
        why = f"the engine ended with status {status}"
        if status is not None and status < 0:
            why = f"the engine was ended by {_signal_name(-status)}"
    if not tail:
        return why
    lines = "\n".join(f"  | {line}" for line in tail)
    return f"{why}; its last lines were:\n{lines}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

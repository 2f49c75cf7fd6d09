"""What comes before an engine's process: its port, its weights, its GPUs, its command."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from forebay_engine.serve import gpu, process, weights
from forebay_engine.serve.plan import plan, write

if TYPE_CHECKING:
    from forebay_engine.serve.engines import EngineKind
    from forebay_engine.serve.profile import Profile


KEY_VARIABLE = "FOREBAY_ENGINE_KEY"
"""The agent's key, which is none of the engine's business."""


class StartError(Exception):
    """A start that another one would not mend."""


def check_ports(profile: Profile, gate: int | None) -> None:
    """Raise StartError when one of its ports is taken: engines find out after their weights.

    gate: the port of its gate, where it has one.
    """
    family = socket.AF_INET6 if ":" in profile.host else socket.AF_INET
    for port, what in ((profile.port, ""), (gate, "the gate's port ")):
        if port is None:
            continue
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((profile.host, port))
        except OSError as error:
            why = error.strerror or str(error)
            raise StartError(f"{what}{profile.host}:{port}: {why}") from None


async def locate(profile: Profile, say: Callable[[str], None]) -> weights.Located:
    """Find or fetch the weights, in a thread, which is told to stop when this is cancelled."""
    stop = threading.Event()
    finding = asyncio.get_running_loop().run_in_executor(
        None, weights.locate, profile, say, stop.is_set
    )
    try:
        return await asyncio.shield(finding)
    except asyncio.CancelledError:
        stop.set()
        finding.add_done_callback(_give_up)
        raise


async def gpus_of(profile: Profile) -> tuple[gpu.Gpu, ...]:
    """Those of the machine that the profile's environment shows."""
    found = await asyncio.to_thread(gpu.detect)
    return gpu.visible(found, {**os.environ, **profile.env}.get("CUDA_VISIBLE_DEVICES"))


async def launch(
    profile: Profile,
    kind: EngineKind,
    gpus: Sequence[gpu.Gpu],
    *,
    on_line: process.OnLine,
    output: tuple[int, int],
    spawn: process.Spawn,
) -> process.Process:
    """Start it. Raises ValueError: these GPUs cannot do what the profile asks; OSError."""
    planned = plan(profile, kind, gpus)
    await asyncio.to_thread(write, planned)
    inherited = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    return await spawn(
        process.Start(
            argv=planned.argv,
            env={**inherited, **planned.env},
            on_line=on_line,
            cwd=profile.cwd,
            output=output,
        )
    )


def _give_up(finding: asyncio.Future[weights.Located]) -> None:
    """Nobody wants what was found."""
    if not finding.cancelled() and finding.exception() is None:
        lease = finding.result().lease
        if lease is not None:
            lease.close()

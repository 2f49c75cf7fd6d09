"""`forebay-engine warm`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

from forebay_engine.serve import profile
from forebay_engine.serve.command import AGENT
from forebay_engine.serve.launch import KEY_VARIABLE
from forebay_engine.warm.pool import Desired, Limits


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = "Keep engines of one profile warm and parked, or measure their start."
    add = parser.add_argument
    add("--profile", required=True, metavar="PATH", help="YAML; docs/engine-serve.md")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="wins over the profile, as in drain.grace_s=5; repeatable",
    )
    add("--warm", type=int, default=1, metavar="N", help="so many serve (default %(default)s)")
    add("--parked", type=int, default=0, metavar="M", help="so many wait beside them, parked")
    add("--size", type=int, metavar="K", help="members in all (default: N + M, at least 1)")
    add(
        "--max-parallel-starts",
        type=int,
        default=1,
        metavar="P",
        help="starts at a time (default %(default)s)",
    )
    add(
        "--idle",
        type=float,
        default=300.0,
        metavar="S",
        help="how long one that requests had woken stays after the last; 0: for good (%(default)s)",
    )
    add(
        "--settle",
        type=float,
        default=30.0,
        metavar="S",
        help="how long there are too many before one goes (default %(default)s)",
    )
    add("--agent", default=AGENT, metavar="HOST:PORT", help="default %(default)s; off for none")
    add("--agent-key", metavar="KEY", help=f"asked of its clients (default: ${KEY_VARIABLE})")
    add("--ready-file", metavar="PATH", help='written once so: {"urls", "agent", "pid"}')
    add("--measure", type=int, metavar="N", help="start an engine N times in each way, and end")
    add("--json", action="store_true", help="of --measure: JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Keep the pool until a signal, or measure. Returns the exit status.

    Raises ValueError: wrong options or profile.
    """
    loaded = profile.load(args.profile, tuple(args.set))
    if args.measure is not None:
        if args.measure < 1:
            raise ValueError("--measure: must be at least 1")
        from forebay_engine.warm.measure import measure

        return _run(measure(loaded, args.measure, as_json=args.json))
    if args.json:
        raise ValueError("--json: goes with --measure")
    for option in ("warm", "parked", "idle", "settle"):
        if getattr(args, option) < 0:
            raise ValueError(f"--{option}: must not be negative")
    if args.max_parallel_starts < 1:
        raise ValueError("--max-parallel-starts: must be at least 1")
    size = args.size if args.size is not None else max(args.warm + args.parked, 1)
    if size < 1:
        raise ValueError("--size: must be at least 1")
    from forebay_engine.warm.service import Options, keep

    options = Options(
        desired=Desired(args.warm, args.parked),
        size=size,
        limits=Limits(args.max_parallel_starts, args.settle),
        idle_s=args.idle,
        agent=None if args.agent == "off" else args.agent,
        key=args.agent_key or os.environ.get(KEY_VARIABLE) or None,
        ready_file=args.ready_file,
    )
    return _run(keep(loaded, options))


def _run(work: Coroutine[Any, Any, int]) -> int:
    """Its exit status; 1 for what the machine refuses, as a port that is taken, which is said."""
    try:
        return asyncio.run(work)
    except OSError as error:
        print(f"forebay-engine warm: {error}", file=sys.stderr)
        return 1

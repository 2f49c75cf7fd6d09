"""`forebay-engine serve`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from forebay_engine.serve import profile
from forebay_engine.serve.engines import make
from forebay_engine.serve.gpu import Gpu, detect, visible
from forebay_engine.serve.launch import KEY_VARIABLE
from forebay_engine.serve.plan import plan, shown

AGENT = "127.0.0.1:30080"


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = "Serve a model: an engine from a profile, supervised, with an agent."
    add = parser.add_argument
    add("--profile", required=True, metavar="PATH", help="YAML; docs/engine-serve.md")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="wins over the profile, as in drain.grace_s=5; repeatable",
    )
    add("--agent", default=AGENT, metavar="HOST:PORT", help="default %(default)s; off for none")
    add("--agent-key", metavar="KEY", help=f"asked of its clients (default: ${KEY_VARIABLE})")
    add("--ready-file", metavar="PATH", help='written once warm: {"url", "agent", "pid"}')
    add("--cold", action="store_true", help="start nothing until it is woken")
    add("--dry-run", action="store_true", help="print the command and environment, and end")


def run(args: argparse.Namespace) -> int:
    """Serve until ended by a signal, or the engine cannot be kept. Returns the exit status.

    Raises ValueError: wrong options or profile.
    """
    loaded = profile.load(args.profile, tuple(args.set))
    if args.dry_run:
        return _dry_run(loaded, args.profile)
    key = args.agent_key or os.environ.get(KEY_VARIABLE) or None
    from forebay_engine.serve.service import Options, serve

    options = Options(
        agent=None if args.agent == "off" else args.agent,
        key=key,
        ready_file=args.ready_file,
        cold=args.cold,
    )
    try:
        return asyncio.run(serve(loaded, options))
    except OSError as error:
        print(f"forebay-engine serve: {error}", file=sys.stderr)
        return 1


def _dry_run(loaded: profile.Profile, path: str) -> int:
    gpus = visible(detect(), {**os.environ, **loaded.env}.get("CUDA_VISIBLE_DEVICES"))
    try:
        planned = plan(loaded, make(loaded.kind), gpus)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    print(f"# {_name(gpus)}")
    print(shown(planned, loaded))
    return 0


def _name(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(f"{gpu.name} ({gpu.memory_mib} MiB)" for gpu in gpus) or "no GPU"

"""The command `forebay-engine`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from forebay_engine import __version__

COMMANDS = {
    "autoscale": "scale engines by what waits for them",
    "serve": "serve a model with an engine, from a profile",
    "sim": "serve a simulated engine or provider",
    "size": "what a model needs, and which GPUs have it",
    "warm": "keep engines warm and parked, or measure a start",
}
"""What each does. `forebay_engine.NAME.command` has `add(parser)`, its options, and `run(args)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status; 2 for wrong arguments."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="forebay-engine", description="The engine side of Forebay."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=what) for name, what in COMMANDS.items()}
    # Only what is asked for is imported: the simulator starts in a tenth of a second.
    asked = next((word for word in words if word in COMMANDS), None)
    command = import_module(f"forebay_engine.{asked}.command") if asked else None
    if asked and command:
        command.add(parsers[asked])
    args = parser.parse_args(words)
    try:
        status: int = command.run(args)  # type: ignore[union-attr]  # argparse needs one
    except ValueError as error:
        parsers[args.command].error(str(error))
    return status

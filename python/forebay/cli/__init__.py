"""The command `forebay`."""

from forebay.cli.main import main

__all__ = ["main"]

"""Upstream kinds, one file each: what a kind does on the wire and how it is asked how it is."""

from importlib import import_module
from typing import get_args

from forebay.config.kinds import UpstreamKind
from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe, Sign, State, Wake


def _kind(name: str) -> Kind:
    kind: Kind = import_module(f"forebay.upstreams.{name}").KIND
    return kind


KINDS: dict[str, Kind] = {name: _kind(name) for name in get_args(UpstreamKind)}
"""Every kind by the name that the configuration uses; it is in the file of that name."""

__all__ = ["KINDS", "ErrorRule", "Kind", "Paths", "Probe", "Sign", "State", "Wake"]

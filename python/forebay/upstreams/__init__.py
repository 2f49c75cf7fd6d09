"""Upstream kinds, one file each: what a kind can do on the wire and how its health is asked."""

from forebay.upstreams import openai_compatible, sglang
from forebay.upstreams.kind import Kind

KINDS: dict[str, Kind] = {kind.name: kind for kind in (sglang.KIND, openai_compatible.KIND)}
"""Every kind by the name that the configuration uses."""

__all__ = ["KINDS", "Kind"]

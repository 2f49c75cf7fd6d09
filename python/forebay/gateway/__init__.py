"""The gateway behind every front end: the Rust core, its configuration, and its upkeep."""

from forebay.gateway.gateway import Gateway, Health

__all__ = ["Gateway", "Health"]

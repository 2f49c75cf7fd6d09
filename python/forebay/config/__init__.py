"""Configuration: one typed schema, read from a YAML file and the environment.

`load` returns a frozen `Config` or raises `ConfigError`, which names file, line and field.
This package imports nothing else from forebay. Imports are lazy, so that the command starts
without a YAML parser.
"""

from typing import TYPE_CHECKING, Any

from forebay.config.errors import ConfigError

if TYPE_CHECKING:
    from forebay.config.loader import load
    from forebay.config.schema import (
        Adaptive,
        Address,
        Agent,
        Cold,
        Config,
        Credentials,
        GrpcTls,
        Hedge,
        Idempotency,
        Limits,
        Listen,
        Log,
        Model,
        Outlier,
        Price,
        ProbeSettings,
        Queue,
        Responses,
        Retention,
        Retry,
        Shadow,
        Sticky,
        Target,
        Timeouts,
        Upstream,
        json_schema,
        mask_url,
        parse_address,
        to_public,
    )

__all__ = [
    "Adaptive",
    "Address",
    "Agent",
    "Cold",
    "Config",
    "ConfigError",
    "Credentials",
    "GrpcTls",
    "Hedge",
    "Idempotency",
    "Limits",
    "Listen",
    "Log",
    "Model",
    "Outlier",
    "Price",
    "ProbeSettings",
    "Queue",
    "Responses",
    "Retention",
    "Retry",
    "Shadow",
    "Sticky",
    "Target",
    "Timeouts",
    "Upstream",
    "json_schema",
    "load",
    "mask_url",
    "parse_address",
    "to_public",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = "loader" if name == "load" else "schema"
    return getattr(import_module(f"forebay.config.{home}"), name)

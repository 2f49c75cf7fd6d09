"""Which settings a running process can take over, and which need a new start."""

from typing import Any

import msgspec

from forebay.config.schema import Config, Upstream

FIXED = (
    "listen",
    "database_url",
    "redis_url",
    "expected_nodes",
    "node",
    "spool",
    "telemetry",
    "workers",
    "limits.body_bytes",
    "limits.upload_bytes",
    "limits.header_bytes",
    "limits.websockets",
    "limits.websocket_idle_s",
)
"""What a process is started with and keeps to its end; a section means all of its fields."""

_PACE = (
    "max_concurrency",
    "adaptive",
    "queue",
    "on_disconnect",
    "drain_s",
    "drain_bytes",
    "drop_params",
    "max_output_tokens",
    "responses",
    "continues",
    "draining",
    "outlier",
    "slow_start",
)
_WATCHED = ("discover", "probe", "cold", "agent")


def merged(current: Config, wanted: Config) -> tuple[Config, list[str]]:
    """What a process with `current` can have of `wanted`, and the fields that it cannot.

    These keep their values. They are named as in the file, such as ``listen.http``.
    """
    left: list[str] = []
    result = wanted
    for path in FIXED:
        section, _, field = path.partition(".")
        ours, theirs = getattr(current, section), getattr(wanted, section)
        if field:
            if getattr(ours, field) == getattr(theirs, field):
                continue
            left.append(path)
            kept = {field: getattr(ours, field)}
            value = msgspec.structs.replace(getattr(result, section), **kept)
        elif ours == theirs:
            continue
        else:
            left += _differences(section, ours, theirs)
            value = ours
        result = msgspec.structs.replace(result, **{section: value})
    return result, left


def _differences(section: str, ours: Any, theirs: Any) -> list[str]:
    if not isinstance(ours, msgspec.Struct):
        return [section]
    return [
        f"{section}.{field}"
        for field in ours.__struct_fields__
        if getattr(ours, field) != getattr(theirs, field)
    ]


def same_place(one: Upstream, other: Upstream) -> bool:
    """Whether two settings say the same of where an upstream is and of its credentials."""
    return _without(one, (*_PACE, *_WATCHED)) == _without(other, (*_PACE, *_WATCHED))


def same_watch(one: Upstream, other: Upstream) -> bool:
    """Whether an upstream is looked at in the same way under both settings."""
    return _without(one, _PACE) == _without(other, _PACE)


def _without(upstream: Upstream, names: tuple[str, ...]) -> Upstream:
    plain = {
        field.name: field.default
        if field.default is not msgspec.NODEFAULT
        else field.default_factory()
        for field in msgspec.structs.fields(Upstream)
        if field.name in names
    }
    return msgspec.structs.replace(upstream, **plain)

"""From the configuration to the snapshot that the core decides by."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from forebay.config import Config, Model, Target, Timeouts
from forebay.upstreams import KINDS

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Largest unary answer taken from an upstream."""


def build(config: Config, discovered: Mapping[str, Sequence[str]]) -> bytes:
    """The snapshot as JSON.

    discovered: for each upstream with ``discover``, the models it lists; an upstream that has
        never answered is missing. A model under ``models`` goes before a discovered one of the
        same name.
    """
    models = {name: model for name, model in config.models.items()}
    for upstream, names in discovered.items():
        for name in names:
            models.setdefault(name, Model(targets=(Target(upstream=upstream),)))
    taken = set(models)
    return orjson.dumps(
        {
            "upstreams": [_upstream(config, name, models) for name in config.upstreams],
            "models": [_model(name, model, taken) for name, model in models.items()],
            "max_event_bytes": config.limits.event_bytes,
            "max_answer_bytes": MAX_ANSWER_BYTES,
            "prompt_logs": _prompt_logs(config),
            "complete": all(
                name in discovered
                for name, upstream in config.upstreams.items()
                if upstream.discover
            ),
        }
    )


def _prompt_logs(config: Config) -> dict[str, Any] | None:
    """How texts are made fit to be kept; None without a key to encrypt them with."""
    logs = config.prompt_logs
    if logs.active is None:
        return None
    return {
        "key_name": logs.active,
        "key": logs.keys[logs.active],
        "max_bytes": logs.max_bytes,
        "patterns": logs.patterns,
    }


def _upstream(config: Config, name: str, models: Mapping[str, Model]) -> dict[str, Any]:
    upstream = config.upstreams[name]
    kind = KINDS[upstream.kind]
    drains = kind.drains if upstream.on_disconnect is None else upstream.on_disconnect == "drain"
    served = [
        model.timeouts.connect
        for model in models.values()
        if any(target.upstream == name for target in model.targets)
    ]
    return {
        "name": name,
        "url": upstream.url,
        "api_key": upstream.api_key,
        "http2": upstream.http2,
        "max_concurrency": upstream.max_concurrency,
        "adaptive": None
        if upstream.adaptive is None
        else {"min": upstream.adaptive.min, "max": upstream.adaptive.max},
        "max_waiting": upstream.queue.max_waiting,
        "queue_timeout_s": upstream.queue.timeout,
        # A connection is shared by all models of its upstream: the most patient one decides.
        "connect_s": max(served, default=Timeouts().connect),
        "include_usage": kind.include_usage,
        "continuous_usage": kind.continuous_usage,
        "rid": kind.rid,
        "abort_path": kind.abort_path,
        "drain": {"seconds": upstream.drain_s, "bytes": upstream.drain_bytes} if drains else None,
    }


def _model(name: str, model: Model, taken: set[str]) -> dict[str, Any]:
    return {
        "name": name,
        "aliases": [alias for alias in model.aliases if alias not in taken],
        "targets": [
            {"upstream": target.upstream, "model": target.model or name} for target in model.targets
        ],
        "first_byte_s": model.timeouts.first_byte,
        "idle_s": model.timeouts.idle,
        "total_s": model.timeouts.total,
    }

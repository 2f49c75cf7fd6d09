"""From the configuration to the snapshot that the core decides by."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from forebay.config import (
    Cold,
    Config,
    Model,
    Outlier,
    Retry,
    Shadow,
    Target,
    Timeouts,
    Upstream,
)
from forebay.upstreams import KINDS, Kind

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
    owners = {alias: name for name, model in config.models.items() for alias in model.aliases}
    return orjson.dumps(
        {
            "upstreams": [_upstream(config, name, models) for name in config.upstreams],
            "models": [_model(name, model, taken, owners) for name, model in models.items()],
            "files": _files(config),
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


def _files(config: Config) -> dict[str, Any] | None:
    """Where files and batches are kept, as a model of one target; None: nowhere."""
    if config.files is None:
        return None
    kept = Model(targets=(Target(upstream=config.files.upstream),), timeouts=config.files.timeouts)
    return _model("files", kept, set(), {})


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
    served = [
        model.timeouts.connect
        for model in models.values()
        if any(target.upstream == name for target in model.targets)
    ]
    sign = kind.sign(upstream)
    return {
        "name": name,
        "kind": kind.name,
        "url": kind.address(upstream),
        "api_key": kind.bearer_token(upstream),
        "dialect": kind.dialect_for(upstream),
        "paths": asdict(kind.paths_used(upstream)),
        "headers": [*kind.headers(upstream), *upstream.headers.items()],
        "credentials": kind.credentials(upstream) is not None,
        "sign": None if sign is None else asdict(sign),
        "errors": [asdict(rule) for rule in kind.errors_for(upstream)],
        "redirects": kind.redirects,
        "continues": kind.continues if upstream.continues is None else upstream.continues,
        "drop_params": upstream.drop_params,
        "max_output_tokens": upstream.max_output_tokens,
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
        "drain": _drain(kind, upstream),
        "outlier": _outlier(upstream.outlier),
        "slow_start_s": upstream.slow_start,
        "cold": _cold(kind, upstream),
        "draining": upstream.draining,
        "agent": None
        if upstream.agent is None
        else {"url": upstream.agent.url, "key": upstream.agent.key},
    }


def _drain(kind: Kind, upstream: Upstream) -> dict[str, Any] | None:
    drains = kind.drains if upstream.on_disconnect is None else upstream.on_disconnect == "drain"
    return {"seconds": upstream.drain_s, "bytes": upstream.drain_bytes} if drains else None


def _outlier(outlier: Outlier | None) -> dict[str, Any] | None:
    if outlier is None:
        return None
    return {
        "consecutive": outlier.consecutive,
        "failure_percent": outlier.failure_percent,
        "min_requests": outlier.min_requests,
        "latency_factor": outlier.latency_factor,
        "interval_s": outlier.interval,
        "base_ejection_s": outlier.base_ejection,
        "max_ejection_s": outlier.max_ejection,
        "max_ejection_percent": outlier.max_ejection_percent,
    }


def _cold(kind: Kind, upstream: Upstream) -> dict[str, Any] | None:
    cold = upstream.cold
    if cold is None:
        if not kind.starts(upstream):
            return None
        cold = Cold()
    if cold.hold == 0:
        return None
    return {
        "hold_s": cold.hold,
        "spill_after_s": cold.spill_after,
        "keep_alive_s": cold.keep_alive,
        "max_held": cold.max_held,
        "idle_s": kind.idle_s if cold.idle is None else cold.idle,
    }


def _model(name: str, model: Model, taken: set[str], owners: Mapping[str, str]) -> dict[str, Any]:
    def own(named: str | None) -> str | None:
        return None if named is None else owners.get(named, named)

    return {
        "name": name,
        "aliases": [alias for alias in model.aliases if alias not in taken],
        "targets": [_target(name, target) for target in model.targets],
        "policy": model.policy,
        "sticky": None
        if model.sticky is None
        else {"by": model.sticky.by, "ttl_s": model.sticky.ttl},
        "shadow": _shadow(name, model.shadow),
        "retry": _retry(model.retry),
        "hedge": None
        if model.hedge is None
        else {"after_s": model.hedge.after, "max_percent": model.hedge.max_percent},
        "fallbacks": [own(named) for named in model.fallbacks],
        "context_fallback": own(model.context_fallback),
        "content_filter_fallback": own(model.content_filter_fallback),
        "resume": model.resume,
        "first_byte_s": model.timeouts.first_byte,
        "idle_s": model.timeouts.idle,
        "total_s": model.timeouts.total,
    }


def _target(name: str, target: Target) -> dict[str, Any]:
    return {
        "upstream": target.upstream,
        "model": target.model or name,
        "tier": target.tier,
        "weight": target.weight,
        "canary_percent": target.canary_percent,
        "max_cost_nano": None if target.max_cost is None else int(target.max_cost.scaleb(9)),
        "first_byte_s": target.first_byte,
        "context_tokens": target.context_tokens,
    }


def _shadow(name: str, shadow: Shadow | None) -> dict[str, Any] | None:
    if shadow is None:
        return None
    return {
        "upstream": shadow.upstream,
        "model": shadow.model or name,
        "percent": shadow.percent,
        "max_in_flight": shadow.max_in_flight,
    }


def _retry(retry: Retry) -> dict[str, Any]:
    return {
        "attempts": retry.attempts,
        "budget": retry.budget,
        "min_per_second": retry.min_per_second,
        "backoff_s": retry.backoff,
        "max_backoff_s": retry.max_backoff,
        "on": retry.statuses,
    }

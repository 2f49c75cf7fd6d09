"""Gauges, counters and histograms in the names of SGLang 0.5.23, and `/v1/loads`."""

from __future__ import annotations

import time
from bisect import bisect_left
from datetime import UTC, datetime
from typing import Any

from forebay_engine.sim.scheduler import Scheduler

_BUCKETS = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0,
    10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0,
)  # fmt: skip
_HISTOGRAMS = {
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "e2e_request_latency_seconds": "Histogram of End-to-end request latency in seconds",
    "queue_time_seconds": "Histogram of queueing time in seconds.",
}
_COUNTERS = {
    "prompt_tokens_total": "Number of prefill tokens processed.",
    "generation_tokens_total": "Number of generation tokens processed.",
    "num_requests_total": "Number of requests processed.",
    "num_aborted_requests_total": "Number of requests aborted.",
}


class Histogram:
    """Cumulative buckets over seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value, in seconds, `times` times."""
        self.counts[bisect_left(_BUCKETS, value)] += times
        self.sum += value * times


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.histograms = {name: Histogram() for name in _HISTOGRAMS}
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self.cached_tokens = 0
        self._window = (0.0, 0)
        self._throughput = 0.0

    def throughput(self, now: float) -> float:
        """Generated tokens per second since the last call that was at least 1 s ago."""
        total = self.counters["generation_tokens_total"]
        since, before = self._window
        if now - since >= 1.0:
            self._throughput = (total - before) / (now - since) if since else 0.0
            self._window = (now, total)
        return self._throughput

    def hit_rate(self) -> float:
        """Share of prompt tokens found in the prefix cache."""
        total = self.counters["prompt_tokens_total"]
        return self.cached_tokens / total if total else 0.0

    def render(self, scheduler: Scheduler, model: str, context: int, now: float) -> bytes:
        """The Prometheus text of `/metrics`."""
        label = f'engine_type="unified",model_name="{_escape(model)}"'
        ranked = f'{label},moe_ep_rank="0",pp_rank="0",tp_rank="0"'
        lines: list[str] = []
        capacity = scheduler.limits.kv_tokens
        for name, text, value in (
            (
                "max_total_num_tokens",
                "Maximum total number of tokens in the KV cache pool.",
                capacity,
            ),
            ("context_len", "Maximum context length.", context),
            ("num_running_reqs", "The number of running requests.", scheduler.active),
            (
                "num_queue_reqs",
                "The number of requests in the waiting queue.",
                len(scheduler.queue),
            ),
            ("gen_throughput", "The generation throughput (token/s).", self.throughput(now)),
            ("cache_hit_rate", "The prefix cache hit rate.", self.hit_rate()),
            ("token_usage", "The token usage.", scheduler.used_tokens / capacity),
            ("num_used_tokens", "The number of used tokens.", scheduler.used_tokens),
        ):
            lines += [f"# HELP sglang:{name} {text}", f"# TYPE sglang:{name} gauge"]
            lines.append(f"sglang:{name}{{{ranked}}} {float(value)}")
        for name, text in _COUNTERS.items():
            lines += [f"# HELP sglang:{name} {text}", f"# TYPE sglang:{name} counter"]
            lines.append(f"sglang:{name}{{{label}}} {float(self.counters[name])}")
        for name, text in _HISTOGRAMS.items():
            lines += [f"# HELP sglang:{name} {text}", f"# TYPE sglang:{name} histogram"]
            histogram, total = self.histograms[name], 0
            for bound, count in zip((*_BUCKETS, "+Inf"), histogram.counts, strict=True):
                total += count
                lines.append(f'sglang:{name}_bucket{{{label},le="{bound}"}} {float(total)}')
            lines.append(f"sglang:{name}_count{{{label}}} {float(total)}")
            lines.append(f"sglang:{name}_sum{{{label}}} {histogram.sum}")
        return ("\n".join(lines) + "\n").encode()

    def load(self, scheduler: Scheduler, now: float, *, core: bool) -> dict[str, Any]:
        """One entry of `/v1/loads`; `core` leaves out the last three fields."""
        waiting = sum(s.prompt_tokens - s.cached_tokens for s in scheduler.queue)
        used = scheduler.used_tokens
        queued = sum(s.prompt_tokens for s in scheduler.queue)
        capacity = scheduler.limits.kv_tokens
        busy = scheduler.active > 0
        entry: dict[str, Any] = {
            "timestamp": time.time(),
            "dp_rank": 0,
            "num_running_reqs": scheduler.active,
            "num_waiting_reqs": len(scheduler.queue),
            "num_waiting_uncached_tokens": waiting,
            "num_used_tokens": used,
            "num_total_tokens": used + queued,
            "num_active_tokens": used + queued if busy else 0,
            "num_prealloc_ready_tokens": 0,
            "max_total_num_tokens": capacity,
            "max_running_requests": scheduler.limits.max_running,
            "token_usage": round(used / capacity, 4),
            "gen_throughput": round(self.throughput(now), 2),
            "cache_hit_rate": round(self.hit_rate(), 4),
            "utilization": 0.0,
            "total_prefill_uncached_tokens": scheduler.prefill_tokens_total,
            "total_prefill_busy_us": int(scheduler.prefill_seconds_total * 1e6),
            "decode_moments": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        }
        if core:
            return entry
        entry["memory"] = {
            "weight_gb": 0.001,
            "kv_cache_gb": 0.005,
            "graph_gb": 0.0,
            "token_capacity": capacity,
        }
        counts = ("prefill_bootstrap", "prefill_inflight", "decode_prealloc", "decode_transfer")
        entry["disaggregation"] = {
            "mode": "null",
            **{f"{name}_queue_reqs": 0 for name in (*counts, "decode_retracted")},
            "kv_transfer_speed_gb_s": 0.0,
            "kv_transfer_latency_ms": 0.0,
        }
        entry["queues"] = {
            "waiting": len(scheduler.queue),
            "grammar": 0,
            "paused": 0,
            "retracted": 0,
            "prealloc_ready": 0,
        }
        return entry


def loads(entry: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of `/v1/loads`."""
    return {
        "timestamp": datetime.now(UTC).isoformat(),
        "version": "0.5.23",
        "accelerator": None,
        "num_accelerators": 1,
        "loads": [entry],
    }


def loads_prometheus(entry: dict[str, Any]) -> bytes:
    """`/v1/loads?format=prometheus`."""
    lines = []
    for name, value in entry.items():
        prefix = {"memory": "memory_", "disaggregation": "disagg_", "queues": "queues_"}.get(name)
        fields = {name: value} if prefix is None else {prefix + k: v for k, v in value.items()}
        for field, number in fields.items():
            if field != "dp_rank" and isinstance(number, int | float):
                lines.append(f"# TYPE sglang_{field} gauge")
                lines.append(f'sglang_{field}{{dp_rank="0"}} {number}')
    return ("\n".join(lines) + "\n").encode()


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

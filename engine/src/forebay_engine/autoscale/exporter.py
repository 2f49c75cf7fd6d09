"""Decisions, signals and drivers as Prometheus metrics, `forebay_autoscale_*`."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from forebay_engine.autoscale.board import Board, Decision

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def _cost(decision: Decision) -> float | None:
    price = decision.limits.price
    return None if price is None else float(price * decision.wanted.replicas)


_GAUGES = {
    "desired_replicas": "Replicas that the model is to have.",
    "warm_replicas": "Replicas that serve.",
    "starting_replicas": "Replicas that start.",
    "arrivals_per_second": "Requests that began, of the last reading.",
    "running_requests": "Requests that the model's own engines have.",
    "waiting_requests": "Requests that wait for a place.",
    "held_requests": "Requests that wait for an engine to start.",
    "reading_age_seconds": "How old the oldest part of the last reading is.",
}


def _values(decision: Decision) -> dict[str, float]:
    signals = decision.signals
    over = signals.over_s
    return {
        "desired_replicas": decision.wanted.replicas,
        "warm_replicas": signals.warm,
        "starting_replicas": signals.starting,
        "arrivals_per_second": signals.arrivals / over if over else 0.0,
        "running_requests": signals.running,
        "waiting_requests": signals.waiting,
        "held_requests": signals.held,
        "reading_age_seconds": signals.age_s,
    }


def _kv(decision: Decision) -> float | None:
    return decision.signals.kv_used


def _late(decision: Decision) -> float | None:
    signals = decision.signals
    return signals.late / signals.first_tokens if signals.first_tokens else None


_OPTIONAL: dict[str, tuple[str, Callable[[Decision], float | None]]] = {
    "kv_cache_used_ratio": ("Share of the KV cache in use.", _kv),
    "late_first_tokens_ratio": (
        "Share of first tokens after the target, of the last reading.",
        _late,
    ),
    "cost_per_hour": ("What the desired replicas cost in an hour.", _cost),
}


class _Decisions(Collector):
    """Reads the board when it is scraped."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> "Iterable[Metric]":
        decisions = sorted(self._board.decisions.items())
        for name, help_ in _GAUGES.items():
            family = GaugeMetricFamily(f"forebay_autoscale_{name}", help_, labels=["model"])
            for model, decision in decisions:
                family.add_metric([model], _values(decision)[name])
            yield family
        for name, (help_, of) in _OPTIONAL.items():
            family = GaugeMetricFamily(f"forebay_autoscale_{name}", help_, labels=["model"])
            for model, decision in decisions:
                if (value := of(decision)) is not None:
                    family.add_metric([model], value)
            yield family
        reasons = GaugeMetricFamily(
            "forebay_autoscale_reason", "1 for what decided last.", labels=["model", "reason"]
        )
        for model, decision in decisions:
            reasons.add_metric([model, decision.wanted.reason], 1)
        yield reasons


class Exporter:
    """The metrics of one autoscaler. `calls` counts what drivers were told."""

    def __init__(self, board: Board) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Decisions(board))
        self.calls = Counter(
            "forebay_autoscale_driver_calls",
            "Calls of a driver by outcome: ok, failed.",
            ["model", "outcome"],
            registry=self.registry,
        )

    def serve(self, host: str, port: int) -> int:
        """Serve `/metrics` on a thread of its own. Returns the port. Raises: OSError."""
        server, _ = start_http_server(port, host, registry=self.registry)
        found: int = server.server_address[1]
        return found

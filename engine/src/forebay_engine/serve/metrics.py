"""The agent's figures for Prometheus: `forebay_engine_*`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

import msgspec

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
except ImportError:
    raise ValueError("metrics need more: pip install 'forebay-engine[serve]'") from None

from forebay_engine.serve.supervisor import State

if TYPE_CHECKING:
    from forebay_engine.serve.supervisor import Supervisor


def render(members: Sequence[Supervisor]) -> tuple[bytes, str]:
    """The text and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(members))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Figures:
    """Collects when asked: nothing is counted twice."""

    def __init__(self, members: Sequence[Supervisor]) -> None:
        self._members = members

    def collect(self) -> Iterable[Metric]:
        return [family for family in self._families() if family.samples]

    def _families(self) -> Iterator[Metric]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=["member", *labels])

        info = gauge("forebay_engine_info", "Always 1.", "kind", "model")
        state = gauge("forebay_engine_state", "1 for the state that it is in.", "state")
        phase = gauge(
            "forebay_engine_phase_seconds",
            "Of its last start; ready and first_token are when it was, the others how long.",
            "phase",
        )
        parked = gauge("forebay_engine_parked", "1 while its memory is released.")
        since = gauge("forebay_engine_state_seconds", "How long it has been in its state.")
        running = gauge("forebay_engine_running_requests", "As the engine tells it.")
        queued = gauge("forebay_engine_queued_requests", "As the engine tells it.")
        used = gauge("forebay_engine_kv_used_ratio", "Share of the KV cache in use.")
        age = gauge("forebay_engine_load_age_seconds", "How old the three before are.")
        read = gauge("forebay_engine_preload_bytes", "Weights read into the page cache.")
        reading = gauge("forebay_engine_preload_seconds", "What that took.")
        crashes = CounterMetricFamily(
            "forebay_engine_crashes", "Ends that nobody asked for.", labels=["member"]
        )
        for index, member in enumerate(self._members):
            label = [str(index)]
            info.add_metric([*label, member.kind.name, member.profile.served_name], 1)
            for name in get_args(State):
                state.add_metric([*label, name], float(member.state == name))
            for name, seconds in msgspec.to_builtins(member.phases).items():
                if seconds is not None:
                    phase.add_metric([*label, name], seconds)
            parked.add_metric(label, float(member.parked))
            since.add_metric(label, member.since_s)
            crashes.add_metric(label, member.crashes)
            if member.load is not None:
                running.add_metric(label, member.load.running)
                queued.add_metric(label, member.load.queued)
                age.add_metric(label, member.load_age_s or 0.0)
                if member.load.kv_used is not None:
                    used.add_metric(label, member.load.kv_used)
            if member.preloaded is not None:
                read.add_metric(label, member.preloaded.bytes)
                reading.add_metric(label, member.preloaded.seconds)
        yield from (info, state, phase, parked, since, running, queued, used, age)
        yield from (read, reading, crashes)

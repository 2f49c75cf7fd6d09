"""Signals of a model from what gateways, engines and agents say.

Pure: text and numbers in, signals out.
"""

import math
from dataclasses import dataclass, field

from forebay_engine.autoscale.config import Model
from forebay_engine.autoscale.metrics_text import Samples
from forebay_engine.autoscale.signals import Signals

_TTFT = "forebay_model_time_to_first_token_seconds"
_MEMORY = 300
"""Requests over which means of length and time are taken."""


@dataclass(frozen=True, slots=True)
class EngineReading:
    """What one engine says of itself. kv_used: share; None where it does not say."""

    state: str = "warm"
    running: float = 0.0
    queued: float = 0.0
    kv_used: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that was read at one moment.

    gateways: their sum; None where none answered. age_s: of its oldest part.
    """

    at: float
    gateways: Samples | None
    engines: list[EngineReading] = field(default_factory=list)
    age_s: float = 0.0


def of_engine(samples: Samples) -> EngineReading:
    """From an engine's own `/metrics`: SGLang's or vLLM's names."""
    running = samples.sum("sglang:num_running_reqs") + samples.sum("vllm:num_requests_running")
    queued = samples.sum("sglang:num_queue_reqs") + samples.sum("vllm:num_requests_waiting")
    for name in ("sglang:token_usage", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
        if samples.has(name):
            shares = [value for _, value in samples.where(name)]
            return EngineReading("warm", running, queued, max(shares))
    return EngineReading("warm", running, queued)


class Reader:
    """Turns snapshots of one model into signals; remembers the one before."""

    def __init__(self, name: str, model: Model) -> None:
        self._name = name
        self._model = model
        self._before: Snapshot | None = None
        self._counts: dict[str, float] = {}
        self._lengths: tuple[float, float] | None = None
        self._service: float | None = None

    def signals(self, now: Snapshot) -> Signals:
        """What is known now. Where no gateway answered, the reading is as old as the last one."""
        if now.gateways is None:
            age = now.at - self._before.at if self._before else math.inf
            return Signals(at=now.at, over_s=0.0, arrivals=0.0, running=0.0, age_s=age)
        before, self._before = self._before, now
        over = now.at - before.at if before else 0.0
        samples = now.gateways
        own = self._model.upstreams
        ups = [samples.sum("forebay_upstream_requests_in_flight", upstream=name) for name in own]
        waiting = sum(samples.sum("forebay_upstream_waiting", upstream=name) for name in own)
        inside = sum(engine.queued for engine in now.engines)
        attempts = sum(
            self._rise(samples, "forebay_upstream_attempts_total", upstream=name) for name in own
        )
        firsts = self._rise(samples, f"{_TTFT}_count", model=self._name)
        kv = [engine.kv_used for engine in now.engines if engine.kv_used is not None]
        warm, starting = self._states(now)
        running = sum(ups)
        self._learn(samples, running, attempts, over)
        return Signals(
            at=now.at,
            over_s=over,
            arrivals=self._rise(samples, "forebay_model_requests_total", model=self._name),
            running=max(running - inside, 0.0),
            waiting=waiting + min(inside, running),
            held=samples.sum("forebay_model_requests_held", model=self._name),
            service_s=self._service,
            work_s=self._work(),
            kv_used=sum(kv) / len(kv) if kv else None,
            first_tokens=firsts,
            late=max(firsts - self._in_time(samples), 0.0),
            warm=warm,
            starting=starting,
            age_s=now.age_s,
        )

    def _states(self, now: Snapshot) -> tuple[int, int]:
        """Replicas that serve, and that start: as engines say, else as gateways see upstreams."""
        if now.engines:
            states = [engine.state for engine in now.engines]
            return states.count("warm"), states.count("loading")
        samples = now.gateways or Samples()

        def some(upstream: str, *states: str) -> bool:
            name = "forebay_upstream_state"
            return any(samples.sum(name, upstream=upstream, state=state) > 0 for state in states)

        own = self._model.upstreams
        warm = [name for name in own if some(name, "open", "trial")]
        return len(warm), sum(some(name, "loading") for name in own if name not in warm)

    def _rise(self, samples: Samples, name: str, **labels: str) -> float:
        """By how much a counter grew. It never falls, whichever gateway began anew: `summed`."""
        value = samples.sum(name, **labels)
        key = f"{name}{sorted(labels.items())}"
        before = self._counts.get(key, value)
        self._counts[key] = value
        return value - before

    def _in_time(self, samples: Samples) -> float:
        """First tokens within the target since the last reading: the greatest bucket within it."""
        buckets = {
            float(labels["le"])
            for labels, _ in samples.where(f"{_TTFT}_bucket", model=self._name)
            if labels["le"] != "+Inf"
        }
        target = self._model.capacity.ttft_target_s
        # Bounds are few: the one next to the target stands for it.
        bound = min(buckets, key=lambda le: abs(le - target), default=None)
        if bound is None:
            return 0.0
        rise = 0.0
        for labels, _ in samples.where(f"{_TTFT}_bucket", model=self._name):
            if labels["le"] != "+Inf" and float(labels["le"]) == bound:
                rise += self._rise(samples, f"{_TTFT}_bucket", model=self._name, le=labels["le"])
        return rise

    def _learn(self, samples: Samples, running: float, attempts: float, over: float) -> None:
        tokens = [
            self._rise(samples, "forebay_tokens_total", model=self._name, direction=direction)
            for direction in ("input", "output")
        ]
        ended = self._ended(samples)
        if ended > 0:
            weight = min(ended / _MEMORY, 1.0)
            latest = (tokens[0] / ended, tokens[1] / ended)
            old = self._lengths or latest
            self._lengths = (
                old[0] + weight * (latest[0] - old[0]),
                old[1] + weight * (latest[1] - old[1]),
            )
        if attempts > 0 and over > 0:
            # Little's law: what is there over how much comes.
            latest_s = running * over / attempts
            weight = min(attempts / _MEMORY, 1.0)
            self._service = (
                latest_s
                if self._service is None
                else self._service + weight * (latest_s - self._service)
            )

    def _ended(self, samples: Samples) -> float:
        """Requests that ended since the last reading: those that began, less what more is there."""
        begun = samples.sum("forebay_model_requests_total", model=self._name)
        there = samples.sum("forebay_model_requests_in_flight", model=self._name)
        ended, before = begun - there, self._counts.get("ended")
        self._counts["ended"] = ended
        return max(ended - before, 0.0) if before is not None else 0.0

    def _work(self) -> float | None:
        work = self._model.capacity.work
        if work is None or self._lengths is None:
            return None
        prompt, output = self._lengths
        return prompt / work.prefill_tokens_per_s + output / work.decode_tokens_per_s

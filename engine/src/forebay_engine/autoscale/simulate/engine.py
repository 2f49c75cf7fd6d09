"""A model of one engine with continuous batching: how long requests take beside each other.

An engine either reads prompts, one after the other, or makes one token for each running request:
prompts first, as SGLang and vLLM have it without chunked mixing. A step takes `step_s + n *
step_each_s` for `n` running requests: weights are read once a step, and each request's cache
besides (the roofline of decoding).
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from forebay_engine.autoscale.simulate.arrivals import Request


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What a replica can do. The defaults are near Llama 3 70B in 8 bits on four H100.

    slots: requests it runs at once
    prefill_tokens_per_s: how fast it reads prompts
    step_s, step_each_s: what a step takes, and each running request adds to that, seconds
    start_s: from cold to serving, seconds
    gpus: how many one replica has
    """

    slots: int = 48
    prefill_tokens_per_s: float = 14_000.0
    step_s: float = 0.015
    step_each_s: float = 0.000_1
    start_s: float = 60.0
    gpus: int = 4

    def work_s(self, prompt: float, output: float) -> float:
        """How long a replica with a full batch needs for a request, seconds."""
        step = self.step_s + self.slots * self.step_each_s
        return prompt / self.prefill_tokens_per_s + output * step / self.slots

    def service_s(self, prompt: float, output: float) -> float:
        """How long a request takes in a full batch, whose prompts it waits for too, seconds."""
        return self.work_s(prompt, output) * self.slots


@dataclass(slots=True, order=True)
class Job:
    """A request at an engine. ends_at: the engine's token count at which it is complete."""

    ends_at: float
    index: int
    request: Request


class Engine:
    """One replica, from when it was asked for. Times are seconds; `now` never goes back."""

    def __init__(self, model: EngineModel, asked: float, warm: float) -> None:
        self.model = model
        self.asked = asked
        self.warm_at = warm
        self.draining = False
        self.gone: float | None = None
        self._prompts: deque[Job] = deque()
        self._reading_ends = math.inf
        self._running: list[Job] = []
        self._tokens = 0.0
        """Tokens that each request would have that had run since the beginning."""
        self._at = asked

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self._prompts) + len(self._running)

    def add(self, job: Job, now: float) -> None:
        """Take a request in."""
        self._advance(now)
        self._prompts.append(job)
        if len(self._prompts) == 1:
            self._read(now)

    def next_event(self) -> float:
        """When something changes that nobody outside brings about; infinity while it is idle."""
        if self._prompts:
            return self._reading_ends
        if self._running:
            left = self._running[0].ends_at - self._tokens
            return self._at + max(left, 0.0) * self._step()
        return math.inf

    def pop(self, now: float) -> Iterator[tuple[Job, bool]]:
        """What happened until now: jobs whose first token (False) or last token (True) came."""
        self._advance(now)
        if self._prompts and self._reading_ends <= now:
            job = self._prompts.popleft()
            job.ends_at = self._tokens + job.request.output - 1
            heapq.heappush(self._running, job)
            if self._prompts:
                self._read(now)
            yield job, False
        while self._running and self._running[0].ends_at <= self._tokens + 1e-9:
            yield heapq.heappop(self._running), True

    def _read(self, now: float) -> None:
        self._reading_ends = now + self._prompts[0].request.prompt / self.model.prefill_tokens_per_s

    def _step(self) -> float:
        return self.model.step_s + len(self._running) * self.model.step_each_s

    def _advance(self, now: float) -> None:
        if self._running and not self._prompts:
            self._tokens += (now - self._at) / self._step()
        self._at = now

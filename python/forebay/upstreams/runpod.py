"""RunPod Serverless: https://docs.runpod.io/serverless. One bearer key, two kinds of endpoint.

- Queue, ``https://api.runpod.ai/v2/ENDPOINT_ID/openai``: requests become jobs and wait for a worker
  (execution limit 600 s; failed jobs are run again by the platform). ``/v2/ENDPOINT_ID/health``
  tells how many workers there are without starting one. 429 when the queue is too long.
- Load balancer, ``https://ENDPOINT_ID.api.runpod.ai``: straight to a worker's own server, no queue
  and no retry. 400 "no workers available" after 2 min without a worker, 524 after 5.5 min of work,
  502 when the ports are wrong. ``/ping`` is the worker's: 200 healthy, 204 starting. Asking it
  starts one.

``logit_bias`` and ``user`` are not supported on the queue. Streams are OpenAI's with
``RAW_OPENAI_OUTPUT=1`` (the worker's default). Usage is vLLM's. There is a ``/cancel`` for native
jobs; on ``/openai`` only the connection can be closed.

Sources: runpod/docs: serverless/vllm/openai-compatibility.mdx,
serverless/endpoints/send-requests.mdx, serverless/load-balancing/overview.mdx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe, State, Wake
from forebay.upstreams.unreadable import UNREADABLE

if TYPE_CHECKING:
    from forebay.config.schema import Upstream


@dataclass(frozen=True, slots=True)
class Workers(Probe):
    """Counts the queue's workers: ``{"workers": {"idle", "initializing", "ready", "running"}}``."""

    def judge(self, status: int, body: bytes) -> State:
        """Warm with a worker that can run, loading with one that starts, else cold."""
        if status != 200:
            return "down"
        try:
            document: Any = msgspec.json.decode(body)
        except UNREADABLE:
            return "down"
        workers = document.get("workers") if isinstance(document, dict) else None
        if not isinstance(workers, dict):
            return "down"

        def count(*names: str) -> int:
            return sum(n for name in names if isinstance(n := workers.get(name), int))

        if count("idle", "ready", "running"):
            return "warm"
        return "loading" if count("initializing") else "cold"


class RunPod(Kind):
    """A queue's endpoint lies below a path, a load balancer's is a host."""

    __slots__ = ()

    def address(self, upstream: Upstream) -> str:
        """Without the queue's path, which `paths` and `probe_for` have."""
        parts = urlsplit(super().address(upstream))
        if self._queue(upstream) is None:
            return super().address(upstream)
        return f"{parts.scheme}://{parts.netloc}"

    def paths(self, upstream: Upstream) -> Paths:
        """The queue has chat and completions; a load balancer what its worker has."""
        queue = self._queue(upstream)
        if queue is None:
            return self.default_paths
        return Paths(
            chat=f"{queue}/openai/v1/chat/completions",
            completions=f"{queue}/openai/v1/completions",
            embeddings=None,
        )

    def probe_for(self, upstream: Upstream) -> Probe | None:
        """The queue's own count, which starts nothing; a load balancer's worker, which does."""
        queue = self._queue(upstream)
        if queue is None:
            return self._as_set(self.probe, upstream)
        models = f"{queue}/openai/v1/models"
        count = Workers(ready=f"{queue}/health", models=models, interval_s=5.0, timeout_s=5.0)
        return self._as_set(count, upstream)

    def own_wake(self, upstream: Upstream) -> Wake | None:
        """Any request does it; this one runs no model."""
        queue = self._queue(upstream)
        return self.wake if queue is None else Wake("GET", f"{queue}/openai/v1/models")

    def _queue(self, upstream: Upstream) -> str | None:
        """The path of a queue's endpoint, ``/v2/ID``; None for a load balancer."""
        path = urlsplit(super().address(upstream)).path
        base, found, _ = path.partition("/openai")
        return base if found else None


KIND = RunPod(
    name="runpod",
    default_paths=Paths().having("rerank", "score", "transcriptions", "translations"),
    cold=True,
    idle_s=300.0,
    errors=(
        ErrorRule(
            400, "unavailable", contains="no workers available", retry=True, reason="loading"
        ),
        ErrorRule(400, "unavailable", contains="no worker available", retry=True, reason="loading"),
    ),
    probe=Probe(
        ready="/ping",
        loading=frozenset({204}),
        models="/v1/models",
        wakes=True,
        timeout_s=10.0,
    ),
    wake=Wake("GET", "/ping"),
)

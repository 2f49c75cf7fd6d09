"""RunPod serverless: endpoints with a queue, and with a load balancer."""

from __future__ import annotations

import re
from collections.abc import Callable

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.kinds.base import ended
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.vllm import VLLM
from forebay_engine.sim.wire import Exchange

_QUEUE = re.compile(r"/v2/[^/]+/openai(?=/)")
_HEALTH = re.compile(r"/v2/[^/]+/health")


class RunPod(VLLM):
    """Below `/v2/{endpoint}/openai/v1` a request waits in the queue for a worker, however long.

    Below `/v1` it is the load balancer, which says 400 when no worker came in `--wait` seconds.
    """

    cold_way = "wait"

    def is_open(self, exchange: Exchange) -> bool:
        return False

    def below(self, path: str) -> str | None:
        found = _QUEUE.match(path)
        return super().below(path[found.end() :] if found else path)

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and _HEALTH.fullmatch(exchange.path):
            return lambda: self.reply(exchange, dump(self._state()))
        found = super().control(exchange)
        if found is None or self.state == "warm":
            return found
        if exchange.path == "/ping":
            self.wake()  # any request has a worker started
            return lambda: exchange.respond(204, b"", vary=False)
        record, answer = Record(exchange.path, [], b"", 0.0), found
        return lambda: self.when_warm(exchange, record, answer)

    def _state(self) -> dict[str, dict[str, int]]:
        running = self.engine.scheduler.active
        jobs = {"completed": 0, "failed": 0, "inProgress": running, "retried": 0}
        jobs["inQueue"] = len(self.engine.scheduler.queue) + len(self._waiting)
        warm, loading = int(self.state == "warm"), int(self.state == "loading")
        workers = {"idle": warm, "initializing": loading, "ready": warm, "running": warm}
        return {"jobs": jobs, "workers": {**workers, "throttled": 0, "unhealthy": 0}}

    def when_warm(self, exchange: Exchange, record: Record, go: Callable[[], None]) -> None:
        super().when_warm(exchange, record, go)
        if self.state == "warm" or _QUEUE.match(exchange.path):
            return

        def give_up() -> None:
            if self.state != "warm" and not exchange.ended:
                ended(record, "error:400")
                self.fail(exchange, Problem(400, "loading", ""))

        self._loop.call_later(self.options.wait_s, give_up)

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "auth":
            return Failure(401, b"", b"", None)
        if problem.why == "loading":
            return Failure(problem.status, dump({"error": "no workers available"}))
        if problem.status == 524:
            body = b"<html><body>524: A timeout occurred</body></html>"
            return Failure(524, body, b"", b"text/html")
        if problem.why == "full":
            return Failure(429, dump({"error": "too many requests in queue"}))
        return super().failure(problem)

"""A dedicated deployment on Baseten, with vLLM inside; and its Model APIs."""

from __future__ import annotations

import re
from collections.abc import Callable

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.vllm import VLLM
from forebay_engine.sim.wire import Exchange

_DEPLOYMENT = r"/(environments/[^/]+|production|development|deployment/[^/]+)"
_ENGINE = re.compile(_DEPLOYMENT + r"/sync(?=/)")
_WAKE = re.compile(_DEPLOYMENT + r"/wake")


class Baseten(VLLM):
    """Requests to a deployment at zero wait until it is up; `…/wake` starts it.

    The platform's own errors are `{"error": "…"}`; the engine's pass through.
    """

    cold_way = "wait"
    any_model = True

    def is_open(self, exchange: Exchange) -> bool:
        return False

    def authorized(self, exchange: Exchange) -> bool:
        given = exchange.header(b"authorization")
        return self.same(given, b"Api-Key " + self.key) or super().authorized(exchange)

    def below(self, path: str) -> str | None:
        found = _ENGINE.match(path)
        return super().below(path[found.end() :] if found else path)

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "POST" and _WAKE.fullmatch(exchange.path):
            return lambda: self._woken(exchange)
        found = _ENGINE.match(exchange.path)
        rest = exchange.path[found.end() :] if found else exchange.path
        if exchange.method == "GET" and rest in ("/health", "/ping"):
            answer: Callable[[], None] | None = lambda: exchange.respond(200, b"", vary=False)  # noqa: E731
        else:
            answer = super().control(exchange)
        if answer is None or self.state == "warm":
            return answer
        record = Record(exchange.path, [], b"", 0.0)
        ready = answer
        return lambda: self.when_warm(exchange, record, ready)

    def _woken(self, exchange: Exchange) -> None:
        self.wake()
        exchange.respond(202, b"{}", vary=False)

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "auth":
            return Failure(401, dump({"error": "please check the api-key you provided"}))
        if problem.why == "path":
            return Failure(404, dump({"error": "not found"}))
        if problem.why == "full":
            return Failure(429, dump({"error": "Too many requests"}))
        return super().failure(problem)

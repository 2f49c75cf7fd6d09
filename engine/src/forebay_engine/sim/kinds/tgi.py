"""Hugging Face's text-generation-inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.kinds.failure import SIMULATED, Failure, Problem
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm
from forebay_engine.sim.wire import Exchange

_TYPES = {
    422: "validation",
    424: "generation",
    429: "overloaded",
    500: "incomplete_generation",
    503: "healthcheck",
}


class TGIForm(OpenAIForm):
    """Chat of TGI: no chunk for the role, which every chunk has; usage without details."""

    stream_type = b"text/event-stream"
    role_first = False
    role_always = True
    usage_null = True
    reasoning = None
    id_prefix = ""

    def extra(self) -> dict[str, Any]:
        return {"system_fingerprint": "3.3.6-sha-db931fc"}

    def numbers(self, answer: Any) -> dict[str, Any]:
        count = answer.count()
        return {
            "prompt_tokens": count.prompt,
            "completion_tokens": count.completion,
            "total_tokens": count.total,
        }

    def error_value(self) -> dict[str, Any]:
        return {"error": SIMULATED, "error_type": "generation"}

    def _delta(
        self, answer: Any, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        if reason is not None and "content" not in delta:
            delta = {"content": "", **delta}
        return super()._delta(answer, index, delta, reason)


class TGI(OpenAIApp):
    """TGI 3. A comment each 15 s; health and models need no key."""

    chat_form = TGIForm
    apis = ("chat", "completions")
    cold_way = "unavailable"
    any_model = True
    filters = "none"
    comment = b":\n\n"
    comment_s = 15.0
    stream_headers = b"x-accel-buffering: no\r\ncache-control: no-cache\r\n"

    def is_open(self, exchange: Exchange) -> bool:
        return exchange.path in ("/health", "/ping", "/info", "/v1/models", "/metrics", "/")

    def authorized(self, exchange: Exchange) -> bool:
        # Compared without case, as the router does.
        given = (exchange.header(b"authorization") or b"").lower()
        return self.same(given, b"bearer " + self.key.lower())

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method != "GET":
            return None
        if exchange.path in ("/health", "/ping"):
            # Who asks starts it where it has gone to sleep; a container does so by itself.
            self.wake()
            if self.state == "warm" and self._up():
                return lambda: exchange.respond(200, b"", vary=False)
            return lambda: self.fail(exchange, Problem(503, "loading", ""))
        if exchange.path == "/info":
            name = self._names[0]
            info = {"model_id": name, "max_input_tokens": self.options.context_length - 1}
            info["max_total_tokens"] = self.options.context_length
            return lambda: self.reply(exchange, dump({**info, "version": "3.3.6"}))
        found: Callable[[], None] | None = super().control(exchange)
        return found

    def headers(self, record: Record) -> bytes:
        if record.stream:
            return b""
        tokens = record.prompt_tokens
        return b"x-compute-type: gpu+optimized\r\nx-prompt-tokens: %d\r\n" % tokens

    def overflow(self, tokens: int, limit: int) -> Problem:
        return Problem(422, "overflow", "", tokens=tokens, limit=limit)

    def failure(self, problem: Problem) -> Failure:
        message, status = problem.message, problem.status
        if problem.why == "auth":
            return Failure(401, b"", b"", None)
        if problem.why == "path":
            return Failure(status, b"", b"", None)
        if problem.why == "overflow":
            message = f"Input validation error: `inputs` must have less than {problem.limit} "
            message += f"tokens. Given: {problem.tokens}"
        elif problem.why == "invalid" and status == 400:
            status = 422
            message = f"Input validation error: {message}"
        elif problem.why == "full":
            message = "Model is overloaded"
        elif problem.why == "loading":
            message = "unhealthy"
        kind = _TYPES.get(status, "generation")
        return Failure(status, dump({"error": message, "error_type": kind}))

    def error_value(self, problem: Problem) -> dict[str, Any]:
        return {"error": problem.message, "error_type": "generation"}

"""TensorRT-LLM's `trtllm-serve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay_engine.sim.kinds.failure import Problem
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm
from forebay_engine.sim.wire import Exchange

_TYPES = {400: "BadRequestError", 404: "NotFoundError", 501: "NotImplementedError"}


class TRTLLMForm(OpenAIForm):
    """Chat of trtllm-serve."""

    def numbers(self, answer: Any) -> dict[str, Any]:
        count = answer.count()
        return {
            "prompt_tokens": count.prompt,
            "total_tokens": count.total,
            "completion_tokens": count.completion,
            "prompt_tokens_details": {"cached_tokens": count.cached},
        }

    def choice_extra(self, reason: str | None) -> dict[str, Any]:
        return {"logprobs": None, "stop_reason": None}


class TRTLLM(OpenAIApp):
    """trtllm-serve: asks for no key; an error within an answer closes the connection."""

    chat_form = TRTLLMForm
    apis = ("chat", "completions")
    cold_way = "refuse"
    any_model = True
    filters = "none"
    cuts_on_error = True
    hang_up_s = 1.0

    def is_open(self, exchange: Exchange) -> bool:
        return True

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and exchange.path in ("/health", "/health_generate"):
            if self._up():
                return lambda: exchange.respond(200, b"", vary=False)
            text = b"text/plain; charset=utf-8"
            body = b"Executor is shutting down."
            return lambda: exchange.respond(503, body, text, vary=False)
        if exchange.method == "GET" and exchange.path == "/version":
            return lambda: self.reply(exchange, b'{"version":"1.2.0"}')
        found: Callable[[], None] | None = super().control(exchange)
        return found

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, status = problem.message, problem.status
        if problem.why == "path":
            return {"detail": "Not Found" if status == 404 else "Method Not Allowed"}
        if problem.why == "overflow":
            message = f"The sum of prompt length ({problem.tokens}), query length (0) should not "
            message += f"exceed max_num_tokens ({problem.limit})"
        kind = _TYPES.get(status, "InternalServerError")
        return {"object": "error", "message": message, "type": kind, "param": None, "code": status}

"""vLLM's server, and Anyscale's services, which put FastAPI in front of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from forebay_engine.sim.errors import dump
from forebay_engine.sim.kinds.base import Call, ColdWay, Filters
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm, retry_after
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.wire import Exchange

_TYPES = {
    400: "BadRequestError",
    401: "Unauthorized",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}


class VLLMForm(OpenAIForm):
    """Chat of vLLM: an error is followed by `[DONE]`; thinking is in `reasoning`.

    A named `tool_choice` ends with `stop`.
    """

    reasoning = "reasoning"
    named = False

    def choice_extra(self, reason: str | None) -> dict[str, Any]:
        extra: dict[str, Any] = {"logprobs": None}
        if reason is not None:
            extra["stop_reason"] = None
        return extra

    def numbers(self, answer: Any) -> dict[str, Any]:
        count = answer.count()
        usage: dict[str, Any] = {
            "prompt_tokens": count.prompt,
            "total_tokens": count.total,
            "completion_tokens": count.completion,
            "prompt_tokens_details": None,
        }
        if self.app.options.cache_report:
            usage["prompt_tokens_details"] = {"cached_tokens": count.cached}
        if count.reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": count.reasoning}
        return usage

    def reason(self, reason: str) -> str:
        return "stop" if reason == "tool_calls" and self.named else reason


class VLLM(OpenAIApp):
    """`vllm serve`. The port refuses connections while the engine loads.

    `--cache-report` is its `--enable-prompt-tokens-details`.
    """

    chat_form = VLLMForm
    cold_way: ClassVar[ColdWay] = "refuse"
    filters: ClassVar[Filters] = "none"
    beside_apis = frozenset({"rerank", "score", "transcriptions", "translations"})
    beside_style = "vllm"
    continuous = True
    continues = True

    def is_open(self, exchange: Exchange) -> bool:
        return not exchange.path.startswith("/v1")

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and exchange.path in ("/health", "/ping"):
            status = 200 if self._up() else 503
            return lambda: exchange.respond(status, b"", vary=False)
        if exchange.method == "GET" and exchange.path == "/version":
            return lambda: self.reply(exchange, b'{"version":"0.32.0"}')
        if exchange.method == "GET" and exchange.path == "/load":
            load = self.engine.scheduler.active + len(self.engine.scheduler.queue)
            return lambda: self.reply(exchange, dump({"server_load": load}))
        if exchange.method == "POST" and exchange.path == "/v1/messages/count_tokens":
            return lambda: self._count_tokens(exchange)
        found: Callable[[], None] | None = super().control(exchange)
        return found

    def model_entry(self, name: str) -> dict[str, Any]:
        entry = {"object": "model", "owned_by": "vllm", "root": name, "parent": None}
        return {"id": name, **entry, "max_model_len": self.options.context_length}

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        if "application/json" not in (exchange.header(b"content-type") or b"").decode("latin-1"):
            raise Problem(
                415, "invalid", "Unsupported Media Type: Only 'application/json' is allowed"
            )
        return super().read(exchange, call, body)

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        form = super().form(exchange, call, body, request)
        if isinstance(form, VLLMForm):
            form.named = isinstance(body.get("tool_choice"), dict)
        return form

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, status = problem.message, problem.status
        if problem.why == "overflow":
            message = f"This model's maximum context length is {problem.limit} tokens. However, "
            message += f"your request has {problem.tokens} input tokens. Please reduce the length "
            message += "of the input messages."
            problem.param = "input_tokens"
        elif problem.why == "model" and status == 404:
            message = f"The model `{message}` does not exist."
        elif problem.why == "path":
            return {"detail": "Not Found" if status == 404 else "Method Not Allowed"}
        elif problem.why == "loading":
            message = "The engine is not ready."
        elif problem.why == "full":
            message = "The server is overloaded."
        fields = {"message": message, "type": _TYPES.get(status, "Error"), "param": problem.param}
        return {"error": {**fields, "code": status}}

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "auth":
            return Failure(401, b'{"error":"Unauthorized"}', retry_after(problem))
        return super().failure(problem)


class Anyscale(VLLM):
    """A service of Anyscale's: Ray Serve LLM with vLLM inside; all paths want the token."""

    cold_way = "unavailable"

    def is_open(self, exchange: Exchange) -> bool:
        return False

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "auth":
            return Failure(401, b'{"detail":"Unauthorized"}')
        if problem.why == "loading":
            return Failure(503, b"no healthy upstream", b"", b"text/plain")
        return super().failure(problem)

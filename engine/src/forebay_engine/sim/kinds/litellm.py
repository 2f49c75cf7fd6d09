"""A LiteLLM proxy in front of OpenAI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import header
from forebay_engine.sim.kinds.failure import Problem
from forebay_engine.sim.kinds.openai import OpenAICompatible, envelope
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm
from forebay_engine.sim.wire import Exchange

_NAMES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    408: "Timeout",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class LiteLLMForm(OpenAIForm):
    """Chat of the proxy; `[DONE]` does not follow an error."""

    done_after_error = False


class LiteLLM(OpenAIApp):
    """`litellm --config`. Served with and without `/v1`; an error's `code` is a string."""

    beside_apis = OpenAICompatible.beside_apis - {"score", "image_variations"}
    cancels = "streams"
    chat_form = LiteLLMForm

    def below(self, path: str) -> str | None:
        return path.removeprefix("/v1")

    def is_open(self, exchange: Exchange) -> bool:
        return exchange.path.startswith(("/health/liveliness", "/health/readiness"))

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and exchange.path.startswith("/health/liveliness"):
            return lambda: self.reply(exchange, b'"I\'m alive!"')
        if exchange.method == "GET" and exchange.path.startswith("/health/readiness"):
            return lambda: self.reply(exchange, b'{"status":"connected","db":"Not connected"}')
        found: Callable[[], None] | None = super().control(exchange)
        return found

    def headers(self, record: Record) -> bytes:
        return (
            header("x-litellm-call-id", new_id())
            + header("x-litellm-model-id", "sim")
            + b"x-litellm-response-cost: 0.0001\r\nx-litellm-attempted-retries: 0\r\n"
        )

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, why, status = problem.message, problem.why, problem.status
        kind: str = "invalid_request_error"
        if why == "auth":
            text = "Authentication Error, Invalid proxy server token passed."
            return envelope(text, "auth_error", "None", "401")
        if why == "quota":
            text = "Budget has been exceeded! Current cost: 1.0, Max budget: 1.0"
            return envelope(text, "budget_exceeded", None, "429")
        name = _NAMES.get(status, "APIError")
        if why == "overflow":
            inner = f"This model's maximum context length is {problem.limit} tokens. However, your "
            inner += f"messages resulted in {problem.tokens} tokens."
            name = "ContextWindowExceededError: litellm.BadRequestError"
            message = f"ContextWindowExceededError: OpenAIException - {inner}"
        elif why == "filter":
            name = "ContentPolicyViolationError: litellm.BadRequestError"
            message = "ContentPolicyViolationError: OpenAIException - Your prompt was flagged."
        elif why == "model" and status == 404:
            text = f"key not allowed to access model {message}"
            return envelope(text, "key_model_access_denied", "model", "404")
        else:
            message = f"OpenAIException - {message or 'Error'}"
            kind = "throttling_error" if status == 429 else kind
        return envelope(f"litellm.{name}: {message}", kind, problem.param, str(status))

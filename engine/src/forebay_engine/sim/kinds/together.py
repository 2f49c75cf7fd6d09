"""Together: a context that is too long is a 403, too fast growth a 503."""

from __future__ import annotations

from typing import Any

from forebay_engine.sim.history import Record
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.openai import SOUNDS, PlainForm, envelope
from forebay_engine.sim.kinds.openai_form import OpenAIApp

_TYPES = {401: "invalid_request_error", 429: "rate_limit", 500: "server_error", 503: "overloaded"}


class TogetherForm(PlainForm):
    """Chat of api.together.ai."""

    id_prefix = ""
    reasoning = "reasoning"


class Together(OpenAIApp):
    """api.together.ai."""

    chat_form = TogetherForm
    beside_apis = frozenset({"rerank", "images", *SOUNDS})
    filters = "none"

    def headers(self, record: Record) -> bytes:
        return b"x-ratelimit-limit: 10\r\nx-ratelimit-remaining: 9\r\nx-ratelimit-reset: 1\r\n"

    def overflow(self, tokens: int, limit: int) -> Problem:
        return Problem(403, "overflow", "", tokens=tokens, limit=limit)

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "quota":
            problem.status = 402
        return super().failure(problem)

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, why, code = problem.message, problem.why, None
        kind = _TYPES.get(problem.status, "invalid_request_error")
        if why == "auth":
            message = "Invalid API key provided. You can find your API key at "
            message += "https://api.together.ai/settings/api-keys."
            code = "invalid_api_key"
        elif why == "overflow":
            message = "The input token count + `max_tokens` parameter must be less than the "
            message += f"context length of the model being queried ({problem.limit})."
        elif why == "model" and problem.status == 404:
            message = (
                f"Unable to access model {message}. Please visit https://api.together.ai/models"
            )
            code = "model_not_available"
        elif why == "quota":
            message = "You have reached your spending limit."
        value = envelope(message, kind, problem.param, code)
        if why in ("rate", "full") or problem.status == 503:
            value["error"]["error_type"] = "dynamic_request_limited"
        return value

"""OpenRouter: comments while it waits, usage with cost unasked, errors in a 200."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import header
from forebay_engine.sim.kinds.failure import SIMULATED, Problem
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm
from forebay_engine.sim.wire import Exchange

COST_USD = 0.000_002
"""What a token costs."""


class OpenRouterForm(OpenAIForm):
    """Chat of openrouter.ai."""

    usage_when = "always"
    role_first = False
    role_always = True
    reasoning = "reasoning"
    id_prefix = "gen-"

    def extra(self) -> dict[str, Any]:
        return {"provider": "Simulated"}

    def choice_extra(self, reason: str | None) -> dict[str, Any]:
        return {"native_finish_reason": reason, "logprobs": None}

    def _delta(
        self, answer: Any, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        return super()._delta(answer, index, {"content": "", **delta}, reason)

    def message_extra(self) -> dict[str, Any]:
        return {"refusal": None}

    def numbers(self, answer: Any) -> dict[str, Any]:
        cost = round(answer.count().total * COST_USD, 9)
        details = {"upstream_inference_cost": None}
        return {**super().numbers(answer), "cost": cost, "cost_details": details}

    def error(self, answer: Any) -> list[bytes]:
        # The chunk has both the error and a choice that ends with it.
        choice = self._delta(answer, 0, {}, "error")
        value = {"code": 502, "message": SIMULATED}
        return [self._chunk(answer, [choice], error=value), *self.done(answer)]

    def error_value(self) -> dict[str, Any]:
        return {"error": {"code": 502, "message": SIMULATED}}


class OpenRouter(OpenAIApp):
    """openrouter.ai. Only streams are stopped for a client that leaves."""

    base = "/api/v1"
    cancels = "streams"
    chat_form = OpenRouterForm
    quota_status = 402
    filter_status = 403
    comment = b": OPENROUTER PROCESSING\n\n"
    comment_s = 10.0
    comment_first = True

    def is_open(self, exchange: Exchange) -> bool:
        return exchange.path == "/api/v1/models"

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and exchange.path == "/api/v1/key":
            value = {"data": {"label": "sk-or-v1-…", "usage": 0, "limit": None}}
            return lambda: self.reply(exchange, dump(value))
        found: Callable[[], None] | None = super().control(exchange)
        return found

    def headers(self, record: Record) -> bytes:
        return header("x-generation-id", f"gen-{new_id()}")

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, why = problem.message, problem.why
        more: dict[str, Any] = {}
        if why == "auth":
            message = "No auth credentials found"
        elif why == "overflow":
            message = f"This endpoint's maximum context length is {problem.limit} tokens. However, "
            message += f"you requested about {problem.tokens} tokens. Please reduce the length of "
            message += 'either one, or use the "middle-out" transform.'
        elif why == "model" and problem.status == 404:
            message = f"No endpoints found for {message}."
        elif why == "filter":
            message = "The input was flagged by moderation"
            more = {"metadata": {"reasons": ["violence"], "flagged_input": "/filter"}}
        elif why == "quota":
            message = "Insufficient credits. Add more using https://openrouter.ai/settings/credits"
        elif problem.status >= 500:
            more = {"metadata": {"provider_name": "Simulated", "raw": message}}
            message = "Provider returned error"
        return {"error": {"message": message, "code": problem.status, **more}}

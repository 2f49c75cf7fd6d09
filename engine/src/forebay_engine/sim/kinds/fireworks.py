"""Fireworks: usage comes unasked, in the last chunk; `max_tokens` is lowered silently."""

from __future__ import annotations

from typing import Any

from forebay_engine.sim.history import Record
from forebay_engine.sim.kinds.base import Call
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.text import count_bytes
from forebay_engine.sim.wire import Exchange

_TYPES = {401: "UNAUTHORIZED", 412: "PRECONDITION_FAILED", 429: "RATE_LIMITED", 500: "INTERNAL"}


class FireworksForm(OpenAIForm):
    """Chat of api.fireworks.ai."""

    usage_when = "always"
    usage_in = "finish"
    id_prefix = ""
    perf = False

    def numbers(self, answer: Any) -> dict[str, Any]:
        count = answer.count()
        usage = {"prompt_tokens": count.prompt, "total_tokens": count.total}
        usage["completion_tokens"] = count.completion
        return {**usage, "prompt_tokens_details": {"cached_tokens": count.cached}}

    def choice_extra(self, reason: str | None) -> dict[str, Any]:
        return {}

    def finish(self, answer: Any, index: int, reason: str) -> list[bytes]:
        events = super().finish(answer, index, reason)
        if self.perf:
            metrics = b',"perf_metrics":{"server-time-to-first-token":0.01}}\n\n'
            events[-1] = events[-1].removesuffix(b"}\n\n") + metrics
        return events


class Fireworks(OpenAIApp):
    """api.fireworks.ai; models are `accounts/{account}/models/{model}`."""

    beside_apis = frozenset({"rerank"})
    base = "/inference/v1"
    chat_form = FireworksForm
    filters = "none"

    def headers(self, record: Record) -> bytes:
        tokens = record.prompt_tokens
        return (
            b"fireworks-prompt-tokens: %d\r\nfireworks-server-time-to-first-token: 0.010\r\n"
            b"x-ratelimit-limit-tokens-prompt: 60000\r\n" % tokens
        )

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        plain = dict(body)
        given = plain.get("max_tokens") or plain.get("max_completion_tokens")
        if plain.get("context_length_exceeded_behavior") != "error" and isinstance(given, int):
            size = count_bytes(str(plain.get("messages", plain.get("prompt"))), 4)
            if size + given > self.options.context_length:
                plain.pop("max_tokens", None)
                plain.pop("max_completion_tokens", None)
        return super().read(exchange, call, plain)

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        form = super().form(exchange, call, body, request)
        if isinstance(form, FireworksForm):
            form.perf = bool(body.get("perf_metrics_in_response"))
        return form

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "quota":
            problem.status = 412
        return super().failure(problem)

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, why = problem.message, problem.why
        kind = code = "invalid_request_error"
        if problem.status in _TYPES:
            kind, code = "error", _TYPES[problem.status]
        if why == "auth":
            message = "The API key you provided is invalid."
        elif why == "overflow":
            message = f"The prompt is too long: {problem.tokens}, model maximum context length: "
            message += str(problem.limit)
        elif why == "model" and problem.status == 404:
            message = "Model not found, inaccessible, and/or not deployed"
            code = "NOT_FOUND"
        elif why == "quota":
            message = "Account is suspended, possibly due to reaching the monthly spending limit."
        return {"error": {"object": "error", "type": kind, "code": code, "message": message}}

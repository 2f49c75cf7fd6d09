"""OpenAI, and a plain server that speaks its API."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import parse_qs

from forebay_engine.sim import realtime, websocket
from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import Call, Cancels, ended, header
from forebay_engine.sim.kinds.failure import Failure, Problem, invalid
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.openai_form import OpenAIApp, OpenAIForm
from forebay_engine.sim.kinds.responses_form import ResponsesForm, plain_chat
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.wire import Exchange

CHAT_FIELDS = frozenset(
    [
        "messages",
        "model",
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    ]
)
"""Fields of a chat request, as openai-python's `CompletionCreateParams` has them."""
PICTURES = ("images", "image_edits", "image_variations")
SOUNDS = ("speech", "transcriptions", "translations")
_TYPES = {
    401: "invalid_request_error",
    403: "invalid_request_error",
    409: "invalid_request_error",
    429: "requests",
    500: "server_error",
    503: "service_unavailable_error",
}


def envelope(message: str, kind: str, param: str | None, code: object) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ManagedForm(OpenAIForm):
    """Chat of api.openai.com: reasoning is counted and not shown; chunks are padded."""

    usage_null = True
    reasoning = None

    def extra(self) -> dict[str, Any]:
        return {"service_tier": "default", "system_fingerprint": "fp_50cad350e4"}

    def delta_extra(self) -> dict[str, Any]:
        return {"obfuscation": self.id[-8:]}

    def role_delta(self) -> dict[str, Any]:
        return {"role": "assistant", "content": "", "refusal": None}

    def message_extra(self) -> dict[str, Any]:
        return {"refusal": None, "annotations": []}


class OpenAI(OpenAIApp):
    """api.openai.com. Closing a stream stops it; other requests go on."""

    cancels: ClassVar[Cancels] = "streams"
    has_realtime: ClassVar[bool] = True
    chat_form: ClassVar[type[OpenAIForm]] = ManagedForm
    known_fields: ClassVar[frozenset[str] | None] = CHAT_FIELDS
    beside_apis: ClassVar[frozenset[str]] = frozenset(
        {"moderations", *PICTURES, *SOUNDS, "files", "batches"}
    )

    def call(self, exchange: Exchange) -> Call | None:
        if self.below(exchange.path) == "/responses":
            return Call("responses")
        return super().call(exchange)

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        if call.api != "responses":
            return super().read(exchange, call, body)
        return self.generation(exchange.path, plain_chat(body), str(body.get("model")))

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        if call.api == "responses":
            return ResponsesForm(request, body)
        return super().form(exchange, call, body, request)

    def control(self, exchange: Exchange) -> Any:
        if self.below(exchange.path) == realtime.PATH and self.has_realtime:
            return lambda: self._realtime(exchange)
        return super().control(exchange)

    def _realtime(self, exchange: Exchange) -> None:
        model = parse_qs(exchange.query).get("model", [""])[0]
        if not websocket.is_wanted(exchange):
            self.fail(exchange, invalid("Realtime sessions are WebSockets.", status=400))
        elif model not in self.options.models:
            self.fail(exchange, Problem(404, "model", model, param="model"))
        else:
            record = self._record(exchange)
            record.model, record.stream = model, True
            session = realtime.Realtime(self.options, model)
            websocket.Socket(exchange, session).accept()
            ended(record, "ok")

    def headers(self, record: Record) -> bytes:
        return (
            header("x-request-id", f"req_{new_id()}")
            + header("openai-processing-ms", 12)
            + header("openai-version", "2020-10-01")
            + b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
            b"x-ratelimit-reset-requests: 6ms\r\n"
        )

    def failure(self, problem: Problem) -> Failure:
        failure = super().failure(problem)
        more = b""
        if problem.why in ("rate", "full") and problem.retry_after_s is not None:
            more = b"retry-after-ms: %d\r\n" % (problem.retry_after_s * 1000)
            more += b"x-ratelimit-reset-requests: %ds\r\n" % problem.retry_after_s
        return Failure(failure.status, failure.body, failure.headers + more)

    def error_value(self, problem: Problem) -> dict[str, Any]:
        message, why, status = problem.message, problem.why, problem.status
        if why == "auth":
            text = "Incorrect API key provided: ******. You can find your API key at "
            text += "https://platform.openai.com/account/api-keys."
            return envelope(text, "invalid_request_error", None, "invalid_api_key")
        if why == "overflow":
            text = f"This model's maximum context length is {problem.limit} tokens. However, your "
            text += f"messages resulted in {problem.tokens} tokens. Please reduce the length of "
            text += "the messages."
            code = "context_length_exceeded"
            return envelope(text, "invalid_request_error", "messages", code)
        if why == "filter":
            text = "Invalid prompt: your prompt was flagged as potentially violating our usage "
            text += "policy. Please try again with a different prompt."
            return envelope(text, "invalid_request_error", None, "invalid_prompt")
        if why == "quota":
            text = "You exceeded your current quota, please check your plan and billing details."
            return envelope(text, "insufficient_quota", None, "insufficient_quota")
        if why == "model" and status == 404:
            text = f"The model `{message}` does not exist or you do not have access to it."
            return envelope(text, "invalid_request_error", None, "model_not_found")
        if why == "path":
            text = f"Invalid URL (POST {message})"
            return envelope(text, "invalid_request_error", None, None)
        if why in ("rate", "full"):
            text = "Rate limit reached for this model. Please try again later."
            return envelope(text, "requests", None, "rate_limit_exceeded")
        if why in ("other", "stream", "loading"):
            kind = _TYPES.get(status, "server_error")
            busy = "server_is_overloaded" if status == 503 else None
            return envelope(message, kind, None, busy)
        kind = _TYPES.get(status, "invalid_request_error")
        unknown = message.startswith("Unknown parameter")
        return envelope(message, kind, problem.param, "unknown_parameter" if unknown else None)


class PlainForm(OpenAIForm):
    """Nothing but what any server of this API has."""

    def numbers(self, answer: Any) -> dict[str, Any]:
        count = answer.count()
        return {
            "prompt_tokens": count.prompt,
            "completion_tokens": count.completion,
            "total_tokens": count.total,
        }


class OpenAICompatible(OpenAI):
    """Some server with OpenAI's API: no cache in its usage, any field is taken."""

    cancels = "always"
    has_realtime = False
    chat_form = PlainForm
    known_fields = None
    beside_apis = OpenAI.beside_apis | {"rerank", "score"}

    def headers(self, record: Record) -> bytes:
        return b""

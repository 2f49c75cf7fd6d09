"""Gemini's generateContent and its compatibility layer; Vertex AI, which has both too.

Nothing is stopped for a client that leaves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

from forebay_engine.sim import render
from forebay_engine.sim.kinds.base import Call, KindApp, ended
from forebay_engine.sim.kinds.canonical import items, known, message, schema_format, tool
from forebay_engine.sim.kinds.failure import Failure, Problem, invalid
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.gemini_form import ContentForm
from forebay_engine.sim.kinds.openai_form import APIS, OpenAIApp, OpenAIForm
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.text import count_bytes
from forebay_engine.sim.wire import Exchange

_FIELDS = frozenset(
    [
        "contents",
        "systemInstruction",
        "system_instruction",
        "tools",
        "toolConfig",
        "tool_config",
        "safetySettings",
        "generationConfig",
        "generation_config",
        "cachedContent",
        "labels",
        "serviceTier",
    ]
)
_CONFIG = frozenset(
    [
        "stopSequences",
        "responseMimeType",
        "responseSchema",
        "responseJsonSchema",
        "responseModalities",
        "candidateCount",
        "maxOutputTokens",
        "temperature",
        "topP",
        "topK",
        "seed",
        "presencePenalty",
        "frequencyPenalty",
        "responseLogprobs",
        "logprobs",
        "thinkingConfig",
        "speechConfig",
        "mediaResolution",
        "enableEnhancedCivicAnswers",
    ]
)
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TYPE = "type.googleapis.com/google.rpc."


class CompatForm(OpenAIForm):
    """Chat of the compatibility layer: every chunk has the role."""

    role_first = False
    role_always = True
    reasoning = None
    id_prefix = ""


class Gemini(OpenAIApp):
    """generativelanguage.googleapis.com."""

    base = "/v1beta/openai"
    cancels = "never"
    filters = "answer"  # `promptFeedback.blockReason` in a 200
    chat_form = CompatForm
    native = re.compile(r"/v1(?:beta)?/models/([^/:]+):(\w+)")
    apis = ("chat", "embeddings")

    def authorized(self, exchange: Exchange) -> bool:
        if self.below(exchange.path) is not None:
            return super().authorized(exchange)
        query = parse_qs(exchange.query).get("key", [""])[0].encode()
        given = exchange.header(b"x-goog-api-key")
        if given is None and not query:
            text = "Method doesn't allow unregistered callers."
            raise Problem(403, "auth", text)
        if not self.same(given or query, self.key):
            # A wrong key is a bad request here.
            raise Problem(400, "auth", "API key not valid. Please pass a valid API key.")
        return True

    def call(self, exchange: Exchange) -> Call | None:
        rest = self.below(exchange.path)
        if rest is not None:
            api = APIS.get(rest)
            return Call(api) if api in self.apis and api is not None else None
        found = self.native.fullmatch(exchange.path)
        if found is None:
            return None
        model, method = unquote(found.group(1)), found.group(2)
        if method in ("batchEmbedContents", "embedContent"):
            return Call("embeddings", model)
        if method not in ("generateContent", "streamGenerateContent"):
            return None
        return Call("generate", model, method.startswith("stream"))

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        path = exchange.path
        if exchange.method == "GET" and path.startswith("/v1beta/models"):
            models = [{"name": f"models/{name}", "displayName": name} for name in self._names]
            name = path.removeprefix("/v1beta/models").removeprefix("/")
            if name and name not in self._names:
                return lambda: self.fail(exchange, Problem(404, "model", name))
            value: Any = {"models": models} if not name else {"name": f"models/{name}"}
            return lambda: self.reply(exchange, pretty(value))
        return super().control(exchange)  # type: ignore[no-any-return]

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        if call.api != "generate":
            return super().form(exchange, call, body, request)
        return ContentForm(sse=parse_qs(exchange.query).get("alt") == ["sse"])

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        if call.api != "generate":
            # Google's models are `google/…` on Vertex, and may be `models/…`.
            given = body.get("model")
            if isinstance(given, str):
                name = given.removeprefix("google/").removeprefix("models/")
                body = {**body, "model": name}
            return super().read(exchange, call, body)
        known(body, _FIELDS, 'Invalid JSON payload received. Unknown name "{}": Cannot find field.')
        config = body.get("generationConfig") or body.get("generation_config") or {}
        what = "Invalid JSON payload received. Unknown name \"{}\" at 'generation_config': "
        known(config, _CONFIG, what + "Cannot find field.")
        plain: Body = {"messages": _messages(body), "stream": bool(call.stream)}
        names = {"maxOutputTokens": "max_tokens", "stopSequences": "stop", "seed": "seed"}
        names |= {"temperature": "temperature", "topP": "top_p"}
        plain |= {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
        schema = config.get("responseJsonSchema", config.get("responseSchema"))
        if config.get("responseMimeType") == "application/json":
            plain["response_format"] = schema_format(schema or {"properties": {"answer": {}}})
        _tools(body, plain)
        return self.generation(exchange.path, plain, str(call.model))

    def failure(self, problem: Problem) -> Failure:
        value = self.error_value(problem)
        return Failure(value["error"]["code"], pretty(value), b"", _JSON)

    def error_value(self, problem: Problem) -> dict[str, Any]:
        text, why, status = problem.message, problem.why, problem.status
        details: list[dict[str, Any]] = []
        if why == "auth":
            reason = "API_KEY_INVALID" if status == 400 else "ACCESS_TOKEN_TYPE_UNSUPPORTED"
            info = {"@type": _TYPE + "ErrorInfo", "reason": reason, "domain": "googleapis.com"}
            details.append(info)
            text = text or (
                "Request had invalid authentication credentials. Expected OAuth 2 access token, "
                "login cookie or other valid authentication credential."
            )
        elif why == "overflow":
            text = f"The input token count ({problem.tokens}) exceeds the maximum number of tokens "
            text += f"allowed ({problem.limit})."
        elif why == "model" and status == 404:
            text = f"models/{text} is not found for API version v1beta, or is not supported for "
            text += "generateContent."
        elif why in ("rate", "full", "quota"):
            day = why == "quota"
            text = "You exceeded your current quota, please check your plan and billing details."
            quota = "GenerateRequestsPer" + ("Day" if day else "Minute") + "PerProjectPerModel"
            violation = {"quotaMetric": "generate_content_requests", "quotaId": quota}
            details.append({"@type": _TYPE + "QuotaFailure", "violations": [violation]})
            if problem.retry_after_s is not None or day:
                wait = f"{problem.retry_after_s or 39}.837906927s"
                if problem.retry_after_s is not None:
                    wait = f"{problem.retry_after_s}s"
                details.append({"@type": _TYPE + "RetryInfo", "retryDelay": wait})
        elif why in ("path", "loading"):
            text = "The model is overloaded. Please try again later." if why == "loading" else ""
        error: dict[str, Any] = {"code": status, "message": text}
        error["status"] = _STATUS.get(status, "UNKNOWN")
        if details:
            error["details"] = details
        return {"error": error}

    def _kind_embed(self, exchange: Exchange, call: Call) -> None:
        if call.model is None:
            super()._kind_embed(exchange, call)
            return
        record = self._record(exchange)
        try:
            body = self.load(exchange)
            if self._early_fault(exchange, record, self._fault(exchange, body)):
                return
            if call.model not in self.options.embedding_models:
                raise Problem(404, "model", call.model)
            asked = items(body.get("requests", [body]), "requests")
            texts = [_text(item.get("content")) for item in asked]
        except Problem as problem:
            ended(record, f"error:{problem.status}")
            self.fail(exchange, problem)
            return
        size, seed = self.options.embedding_dim, self.options.seed
        values = [{"values": render.vector(text, seed, size)} for text in texts]
        record.model = call.model
        record.prompt_tokens = sum(count_bytes(t, self.options.bytes_per_token) for t in texts)
        self.reply(exchange, pretty({"embeddings": values}))
        ended(record, "stop")


class Vertex(Gemini):
    """`{location}-aiplatform.googleapis.com`, with an OAuth access token."""

    place = r"/v1/projects/[^/]+/locations/[^/]+"
    native = re.compile(place + r"/publishers/google/models/([^/:]+):(\w+)")
    _compat = re.compile(place + r"/endpoints/openapi(?=/)")

    def below(self, path: str) -> str | None:
        found = self._compat.match(path)
        return path[found.end() :] if found else None

    def authorized(self, exchange: Exchange) -> bool:
        return KindApp.authorized(self, exchange)


_JSON = b"application/json; charset=UTF-8"


def pretty(value: object) -> bytes:
    """JSON over several lines, as Google writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _messages(body: Body) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    system = body.get("systemInstruction") or body.get("system_instruction")
    if isinstance(system, dict):
        made += [message("system", _text({"parts": [p]})) for p in items(system["parts"], "parts")]
    for index, content in enumerate(items(body.get("contents"), "contents")):
        role = content.get("role", "user")
        if role not in ("user", "model", "function"):
            raise invalid("Please use a valid role: user, model.", f"contents[{index}].role")
        parts = items(content.get("parts"), f"contents[{index}].parts")
        for part in parts:
            if "functionResponse" in part:
                if not part["functionResponse"].get("name"):
                    raise invalid("functionResponse.name: Name cannot be empty.")
                made.append(message("tool", json.dumps(part["functionResponse"].get("response"))))
        text = _text(content)
        if text or role == "model" or not any("functionResponse" in part for part in parts):
            made.append(message("assistant" if role == "model" else "user", text))
    return made


def _text(content: object) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        return ""
    shown = [part for part in parts if isinstance(part, dict) and not part.get("thought")]
    return "".join(part["text"] for part in shown if isinstance(part.get("text"), str))


def _tools(body: Body, plain: Body) -> None:
    made = [
        tool(
            item.get("name"),
            item.get("description"),
            item.get("parametersJsonSchema", item.get("parameters")),
        )
        for group in items(body.get("tools", []), "tools", empty=True)
        for item in items(group.get("functionDeclarations", []), "functionDeclarations", empty=True)
    ]
    if made:
        plain["tools"] = made
    chosen = body.get("toolConfig") or body.get("tool_config") or {}
    calling = chosen.get("functionCallingConfig") or {}
    mode, names = calling.get("mode"), calling.get("allowedFunctionNames")
    if mode == "NONE":
        plain["tool_choice"] = "none"
    elif mode == "ANY" and names:
        plain["tool_choice"] = {"type": "function", "function": {"name": names[0]}}
    elif mode == "ANY":
        plain["tool_choice"] = "required"

"""`/openapi.json`: the inference API, made of the ways in and of the other routes.

What the gateway itself judges of a request has a schema; what is the engine's to judge has none.
"""

import re
from collections.abc import Iterable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from forebay._core import WAYS
from forebay.http.core_only import PASSED

PATH = "/openapi.json"
_GRPC = "/forebay."
_ADMIN = "/admin/"

_COUNT = {"type": ["integer", "null"], "minimum": 1, "maximum": 2_147_483_647}
_FLAG = {"type": ["boolean", "null"]}
_TEXT = {"type": "string", "minLength": 1}
_MESSAGES = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_INPUT = {"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1}]}

_BODIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "/v1/chat/completions": (
        "Answer a conversation.",
        {
            "messages": _MESSAGES,
            "max_tokens": _COUNT,
            "max_completion_tokens": _COUNT,
            "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
            "stream": _FLAG,
        },
        ("messages",),
    ),
    "/v1/completions": (
        "Continue a text.",
        {"prompt": _INPUT, "max_tokens": _COUNT, "stream": _FLAG},
        ("prompt",),
    ),
    "/v1/embeddings": ("Turn texts into vectors.", {"input": _INPUT}, ("input",)),
    "/v1/responses": (
        "Answer, in the Responses API's words.",
        {"input": _INPUT, "max_output_tokens": _COUNT, "stream": _FLAG, "store": _FLAG},
        (),
    ),
    "/v1/messages": (
        "Answer a conversation, in Anthropic's words.",
        {
            "messages": _MESSAGES,
            "max_tokens": {**_COUNT, "type": "integer"},
            "stream": _FLAG,
        },
        ("messages", "max_tokens"),
    ),
    "/v1/messages/count_tokens": (
        "Count the tokens of a conversation, in Anthropic's words.",
        {"messages": _MESSAGES},
        ("messages",),
    ),
}
"""What is said of a way in: a summary, fields besides `model`, and which of them are required."""

_SUMMARIES = {
    "/v1/models": "The models that the key may use.",
    "/v1/models/{model}": "One model.",
    "/healthz": "Whether the process is alive.",
    "/readyz": "Whether traffic may come.",
    "/metrics": "Figures, as Prometheus reads them.",
}
_OPEN = ("/healthz", "/readyz", "/metrics")
_TEXTS = ("/healthz", "/metrics")

_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "request_id": {"type": ["string", "null"]},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
    },
}
_STATUSES = {
    "400": "The request is wrong.",
    "401": "No key, or none that is good.",
    "403": "The key may not do this.",
    "404": "There is no such model or path.",
    "405": "The path has no such method.",
    "409": "An idempotency key that is in use.",
    "413": "The body is too large.",
    "422": "An idempotency key that was used for another body.",
    "429": "A limit is reached, or a budget used up.",
    "500": "The gateway failed.",
    "502": "The engine failed.",
    "503": "Nothing can take the request now.",
    "504": "The engine did not answer in time.",
}


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of everything that these routes serve but the admin API."""
    paths: dict[str, dict[str, Any]] = {}
    for path in WAYS:
        if not path.startswith(_GRPC):
            paths[path] = {"post": _way(path)}
    for path, method, kind in PASSED:
        paths.setdefault(path, {})[method.lower()] = _passed(path, method, kind)
    for route in routes:
        if not isinstance(route, Route) or route.path.startswith(_ADMIN) or route.path == PATH:
            continue
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {}).setdefault(method.lower(), _route(path, method))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Forebay",
            "version": "1",
            "description": "Inference as OpenAI's and Anthropic's APIs have it. Fields that are not"
            " named here are the engine's to judge.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {"Error": _OPENAI_ERROR, "AnthropicError": _ANTHROPIC_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def openapi(request: Request) -> Response:
    """The document of the application that answers."""
    return Response(orjson.dumps(document(request.app.routes)), media_type="application/json")


def _way(path: str) -> dict[str, Any]:
    summary, fields, needed = _BODIES.get(path, ("Ask a model.", {}, ()))
    body = {
        "type": "object",
        "required": ["model", *needed],
        "properties": {"model": {"type": "string"}, **fields},
    }
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in fields:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    if path not in _BODIES:
        answers["*/*"] = {}
    return {
        "operationId": _id("post", path),
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The answer.", "content": answers}, **_errors(path)},
    }


def _passed(path: str, method: str, kind: str | None) -> dict[str, Any]:
    """A route whose body and answer pass as they come. kind: of the body; None: it has none."""
    described = _route(path, method)
    described["summary"] = "Passed on to the upstream, with listen.server: core."
    described["responses"]["200"]["content"] = {"*/*": {}}
    if kind is not None:
        described["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": {"type": "object"}}},
        }
    return described


def _route(path: str, method: str) -> dict[str, Any]:
    kind = "text/plain" if path in _TEXTS else "application/json"
    shape = {"type": "string"} if path in _TEXTS else {"type": "object"}
    answer = {"description": "The answer.", "content": {kind: {"schema": shape}}}
    described: dict[str, Any] = {
        "operationId": _id(method.lower(), path),
        "summary": _SUMMARIES.get(path, "What is stored there."),
        "responses": {"200": answer, **_errors(path)},
    }
    if path == "/readyz":
        described["responses"]["503"] = {**answer, "description": "Traffic may not come."}
    if names := re.findall(r"{(\w+)}", path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names
        ]
    if path in _OPEN:
        described["security"] = []
    return described


def _errors(path: str) -> dict[str, Any]:
    name = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {status: {"description": told, "content": content} for status, told in _STATUSES.items()}


def _id(method: str, path: str) -> str:
    return "_".join([method, *re.findall(r"\w+", path)])

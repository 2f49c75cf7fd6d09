"""Bedrock: Converse with its binary streams, and the OpenAI layer."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds import sigv4
from forebay_engine.sim.kinds.base import Call, header
from forebay_engine.sim.kinds.bedrock_form import ConverseForm
from forebay_engine.sim.kinds.canonical import items, known, message, schema_format, tool
from forebay_engine.sim.kinds.failure import Failure, Problem, invalid
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.openai import OpenAI
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.wire import Exchange

_FIELDS = frozenset(
    [
        "messages",
        "system",
        "inferenceConfig",
        "toolConfig",
        "guardrailConfig",
        "projectIdentifier",
        "additionalModelRequestFields",
        "promptVariables",
        "additionalModelResponseFieldPaths",
        "requestMetadata",
        "performanceConfig",
        "serviceTier",
        "outputConfig",
    ]
)
_INFERENCE = frozenset(["maxTokens", "temperature", "topP", "stopSequences"])
_PATH = re.compile(r"/model/([^/]+)/(converse|converse-stream)")
_NAMES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}


class Bedrock(OpenAI):
    """`bedrock-runtime.{region}.amazonaws.com`.

    `--api-key ACCESS_KEY:SECRET` asks for signed requests, anything else for that bearer token.
    Nothing is stopped for a client that leaves.
    """

    beside_apis = frozenset()
    base = "/openai/v1"
    cancels = "never"
    filters = "answer"  # the stop reason is `guardrail_intervened`
    apis = ("chat",)
    cold_way = "unavailable"
    loading_status = 429
    known_fields = None

    def authorized(self, exchange: Exchange) -> bool:
        if b":" not in self.key:
            if exchange.header(b"authorization") is None:
                raise Problem(403, "auth", "Missing Authentication Token")
            return super().authorized(exchange)
        try:
            sigv4.check(exchange, self.key.decode(), "bedrock", self.options.region)
        except sigv4.BadSignature as bad:
            raise Problem(403, "auth", bad.message, param=bad.name) from None
        return True

    def call(self, exchange: Exchange) -> Call | None:
        found = _PATH.fullmatch(exchange.path)
        if found is None:
            return super().call(exchange)
        model = unquote(found.group(1))
        return Call("converse", model, found.group(2) == "converse-stream")

    def headers(self, record: Record) -> bytes:
        return header("x-amzn-requestid", new_id())

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        if call.api == "converse":
            return ConverseForm()
        return super().form(exchange, call, body, request)

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        if call.api != "converse":
            return super().read(exchange, call, body)
        known(body, _FIELDS, "The model returned the following errors: {}: extra inputs")
        config = body.get("inferenceConfig") or {}
        known(config, _INFERENCE, "inferenceConfig.{}: extra inputs are not permitted")
        plain: Body = {"messages": _messages(body), "stream": bool(call.stream)}
        names = {"maxTokens": "max_tokens", "temperature": "temperature", "topP": "top_p"}
        names["stopSequences"] = "stop"
        plain |= {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
        tools = body.get("toolConfig") or {}
        if tools:
            specs = [item.get("toolSpec") for item in items(tools.get("tools"), "toolConfig.tools")]
            plain["tools"] = [
                tool(spec["name"], spec.get("description"), spec["inputSchema"]["json"])
                for spec in specs
                if isinstance(spec, dict)
            ]
            choice = tools.get("toolChoice") or {}
            if "any" in choice:
                plain["tool_choice"] = "required"
            elif "tool" in choice:
                name = {"name": choice["tool"].get("name")}
                plain["tool_choice"] = {"type": "function", "function": name}
        shape = (body.get("outputConfig") or {}).get("textFormat") or {}
        if shape.get("type") == "json_schema":
            given = shape.get("structure", {}).get("jsonSchema", {}).get("schema", "{}")
            plain["response_format"] = schema_format(_json(given))
        return self.generation(exchange.path, plain, str(call.model))

    def failure(self, problem: Problem) -> Failure:
        text, why, status = problem.message, problem.why, problem.status
        name = _NAMES.get(status, "ValidationException" if status < 500 else _NAMES[500])
        if why == "auth":
            status = 403
            name = problem.param or "AccessDeniedException"
            text = text or "Authentication failed: Please make sure your API Key is valid."
        elif why == "overflow":
            text = "Input is too long for requested model."
        elif why == "loading":
            name, text = "ModelNotReadyException", "Model is not ready for inference."
        elif why == "model" and status == 404:
            status, name = 400, "ValidationException"
            text = "The provided model identifier is invalid."
        elif why == "quota":
            text = "Too many tokens per day, please wait before trying again."
        elif why in ("rate", "full"):
            text = "Too many requests, please wait before trying again."
        elif why == "path":
            status, name, text = 404, "UnknownOperationException", ""
        kind = f"{name}:http://internal.amazon.com/coral/com.amazon.bedrock/"
        lines = header("x-amzn-requestid", new_id()) + header("x-amzn-errortype", kind)
        return Failure(status, dump({"message": text}), lines)


def _json(text: object) -> object:
    return json.loads(text) if isinstance(text, str) else text


def _messages(body: Body) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for item in items(body.get("system") or [], "system", empty=True):
        if isinstance(item.get("text"), str):
            made.append(message("system", item["text"]))
    for index, item in enumerate(items(body.get("messages"), "messages")):
        role, where = item.get("role"), f"messages.{index}"
        if role not in ("user", "assistant"):
            raise invalid(f"{where}.role: must be user or assistant")
        blocks = items(item.get("content"), f"{where}.content")
        for block in blocks:
            if "toolResult" in block:
                result = items(block["toolResult"].get("content"), "toolResult.content")
                texts = [part.get("text") or dump(part.get("json")).decode() for part in result]
                made.append(message("tool", "".join(texts)))
        texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
        if texts or role == "assistant":
            made.append(message(role, "".join(texts)))
    return made

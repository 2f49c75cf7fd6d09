"""Requests to simulated kinds in their own dialects, and what their answers say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from botocore.eventstream import EventStreamBuffer  # type: ignore[import-untyped]

from tests.engine.engine_client import Answer

TOOLS = ("get_weather", "get_time")
OPENAI_PATHS = {
    "vllm": "/v1",
    "tgi": "/v1",
    "trtllm": "/v1",
    "modal": "/v1",
    "baseten": "/environments/production/sync/v1",
    "runpod": "/v2/abc/openai/v1",
    "together": "/v1",
    "fireworks": "/inference/v1",
    "anyscale": "/v1",
    "openai": "/v1",
    "azure": "/openai/v1",
    "openrouter": "/api/v1",
    "litellm": "/v1",
    "openai_compatible": "/v1",
}
NATIVE = ("anthropic", "gemini", "vertex", "bedrock")
ALL = (*OPENAI_PATHS, *NATIVE)


@dataclass
class Seen:
    """What an answer came to. calls: names and arguments. usage: prompt, completion, cached."""

    text: str = ""
    reason: str | None = None
    calls: list[list[str]] = field(default_factory=list)
    usage: tuple[int, int, int] | None = None
    error: Any = None
    done: bool = False


def ask(
    kind: str, prompt: str, *, stream: bool = False, tools: bool = False, **more: Any
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Path, body and headers of a chat request."""
    if kind in OPENAI_PATHS:
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": prompt}],
            **more,
        }
        if stream:
            body = {"stream_options": {"include_usage": True}, **body, "stream": True}
        if tools:
            body["tools"] = [{"type": "function", "function": {"name": n}} for n in TOOLS]
        return f"{OPENAI_PATHS[kind]}/chat/completions", body, {}
    if kind == "anthropic":
        body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}
        body |= {"max_tokens": 4096, "stream": stream, **more}
        if tools:
            body["tools"] = [{"name": n, "input_schema": {"type": "object"}} for n in TOOLS]
        return "/v1/messages", body, {"anthropic-version": "2023-06-01"}
    if kind in ("gemini", "vertex"):
        body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], **more}
        if tools:
            body["tools"] = [{"functionDeclarations": [{"name": n} for n in TOOLS]}]
        place = "/v1/projects/p/locations/l/publishers/google" if kind == "vertex" else "/v1beta"
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"{place}/models/tiny:{method}", body, {}
    body = {"messages": [{"role": "user", "content": [{"text": prompt}]}], **more}
    if tools:
        specs = [{"toolSpec": {"name": n, "inputSchema": {"json": {}}}} for n in TOOLS]
        body["toolConfig"] = {"tools": specs}
    return f"/model/tiny/converse{'-stream' if stream else ''}", body, {}


def credentials(kind: str) -> tuple[str, dict[str, str]]:
    """A key for the server's options, and the header lines that carry it."""
    if kind == "modal":
        return "wk-1:ws-1", {"modal-key": "wk-1", "modal-secret": "ws-1"}
    carried = {
        "azure": {"api-key": "k-1"},
        "anthropic": {"x-api-key": "k-1"},
        "gemini": {"x-goog-api-key": "k-1"},
        "baseten": {"authorization": "Api-Key k-1"},
    }
    return "k-1", carried.get(kind, {"authorization": "Bearer k-1"})


def see(kind: str, answer: Answer, *, stream: bool) -> Seen:
    """Read an answer in its own dialect."""
    if kind == "anthropic":
        return _messages(answer, stream=stream)
    if kind in ("gemini", "vertex"):
        return _content(answer, stream=stream)
    if kind == "bedrock":
        return _converse(answer, stream=stream)
    return _chat(answer, stream=stream)


def _chat(answer: Answer, *, stream: bool) -> Seen:
    seen = Seen()
    values = [] if stream else [answer.json()]
    if stream:
        data = [item for item in answer.data() if not item.startswith(":")]
        seen.done = data[-1:] == ["[DONE]"]
        values = [json.loads(item) for item in data if item != "[DONE]"]
    for value in values:
        seen.error = value.get("error", seen.error)
        if usage := value.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens") or 0
            seen.usage = (usage["prompt_tokens"], usage["completion_tokens"], cached)
        for choice in value.get("choices", []):
            part = choice.get("delta", choice.get("message")) or {}
            seen.text += part.get("content") or ""
            seen.reason = choice.get("finish_reason") or seen.reason
            for call in part.get("tool_calls") or []:
                if call["function"].get("name"):
                    seen.calls.append([call["function"]["name"], ""])
                seen.calls[-1][1] += call["function"].get("arguments", "")
    return seen


def _messages(answer: Answer, *, stream: bool) -> Seen:
    seen = Seen()
    if not stream:
        value = answer.json()
        seen.error, seen.reason = value.get("error"), value.get("stop_reason")
        for block in value.get("content", []):
            seen.text += block.get("text", "")
            if block["type"] == "tool_use":
                seen.calls.append([block["name"], json.dumps(block["input"])])
        usage = value.get("usage", {})
    else:
        usage = {}
        for part in answer.body.decode().split("\n\n")[:-1]:
            name, _, data = part.partition("\n")
            value = json.loads(data.removeprefix("data: "))
            assert name == f"event: {value['type']}"
            kind = value["type"]
            if kind == "message_start":
                usage = value["message"]["usage"]
            elif kind == "content_block_start" and value["content_block"]["type"] == "tool_use":
                seen.calls.append([value["content_block"]["name"], ""])
            elif kind == "content_block_delta":
                seen.text += value["delta"].get("text", "")
                if "partial_json" in value["delta"]:
                    seen.calls[-1][1] += value["delta"]["partial_json"]
            elif kind == "message_delta":
                seen.reason = value["delta"]["stop_reason"]
                usage = {**usage, **value["usage"]}
            elif kind == "error":
                seen.error = value["error"]
            seen.done = kind == "message_stop"
    if usage:
        cached = usage["cache_read_input_tokens"]
        whole = usage["input_tokens"] + cached + usage["cache_creation_input_tokens"]
        seen.usage = (whole, usage["output_tokens"], cached)
    return seen


def _content(answer: Answer, *, stream: bool) -> Seen:
    seen = Seen()
    values = [answer.json()] if not stream else []
    if stream:
        for part in answer.body.decode().split("\r\n\r\n"):
            if part.startswith("data: "):
                values.append(json.loads(part.removeprefix("data: ")))
            elif part.strip():
                values += json.loads(part)
    for value in values:
        seen.error = value.get("error", seen.error)
        if block := value.get("promptFeedback"):
            seen.reason = block["blockReason"]
        if usage := value.get("usageMetadata"):
            made = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
            cached = usage.get("cachedContentTokenCount", 0)
            seen.usage = (usage["promptTokenCount"], made, cached)
        for candidate in value.get("candidates", []):
            seen.reason = candidate.get("finishReason", seen.reason)
            for part in candidate["content"]["parts"]:
                if not part.get("thought"):
                    seen.text += part.get("text", "")
                if call := part.get("functionCall"):
                    seen.calls.append([call["name"], json.dumps(call["args"])])
    seen.done = seen.reason is not None
    return seen


def _converse(answer: Answer, *, stream: bool) -> Seen:
    seen = Seen()
    usage: dict[str, int] = {}
    if not stream:
        value = answer.json()
        seen.reason, usage = value.get("stopReason"), value.get("usage", {})
        seen.error = value.get("message")
        for block in value.get("output", {}).get("message", {}).get("content", []):
            seen.text += block.get("text", "")
            if use := block.get("toolUse"):
                seen.calls.append([use["name"], json.dumps(use["input"])])
    else:
        buffer = EventStreamBuffer()
        buffer.add_data(answer.body)
        for message in buffer:
            headers, value = message.headers, json.loads(message.payload)
            if headers[":message-type"] == "exception":
                seen.error = headers[":exception-type"]
                continue
            kind = headers[":event-type"]
            if kind == "contentBlockStart":
                seen.calls.append([value["start"]["toolUse"]["name"], ""])
            elif kind == "contentBlockDelta":
                seen.text += value["delta"].get("text", "")
                seen.calls[-1:] = [
                    [name, args + value["delta"].get("toolUse", {}).get("input", "")]
                    for name, args in seen.calls[-1:]
                ]
            elif kind == "messageStop":
                seen.reason = value["stopReason"]
            elif kind == "metadata":
                usage, seen.done = value["usage"], True
    if usage:
        cached = usage.get("cacheReadInputTokens", 0)
        seen.usage = (usage["inputTokens"] + cached, usage["outputTokens"], cached)
    return seen

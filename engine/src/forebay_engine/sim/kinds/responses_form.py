"""OpenAI's Responses: requests read as chat, answers and events written."""

from __future__ import annotations

import os
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.canonical import items, known, message, tool
from forebay_engine.sim.kinds.failure import SIMULATED, invalid
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.jobs import Answer
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.text import Delta

_FIELDS = frozenset(
    [
        "background",
        "context_management",
        "conversation",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "moderation",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    ]
)
"""Fields of a request, as openai-python's `ResponseCreateParams` has them."""
_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def plain_chat(body: Body) -> Body:
    """The request as one of chat. Raises Problem, which names the field."""
    known(body, _FIELDS, "Unknown parameter: '{}'.")
    if body.get("previous_response_id") is not None:
        text = "Previous response with id '{}' not found."
        raise invalid(text.format(body["previous_response_id"]), "previous_response_id")
    plain: Body = {"messages": _messages(body)}
    plain |= {k: body[k] for k in ("stream", "temperature", "top_p") if body.get(k) is not None}
    if body.get("max_output_tokens") is not None:
        plain["max_completion_tokens"] = body["max_output_tokens"]
    functions = [one for one in body.get("tools") or [] if one.get("type") == "function"]
    if functions:
        plain["tools"] = [
            tool(one.get("name"), one.get("description"), one.get("parameters"))
            for one in functions
        ]
        choice = body.get("tool_choice")
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        if choice is not None:
            plain["tool_choice"] = choice
    asked = (body.get("text") or {}).get("format") or {}
    if asked.get("type") == "json_schema":
        inner = {key: asked[key] for key in ("name", "schema", "strict") if key in asked}
        plain["response_format"] = {"type": "json_schema", "json_schema": inner}
    elif asked.get("type") == "json_object":
        plain["response_format"] = {"type": "json_object"}
    return plain


def _messages(body: Body) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if body.get("instructions"):
        made.append(message("system", str(body["instructions"])))
    given = body.get("input")
    if isinstance(given, str):
        return [*made, message("user", given)]
    calls: set[object] = set()
    for index, item in enumerate(items(given, "input")):
        kind = item.get("type", "message")
        if kind == "message":
            role = {"developer": "system"}.get(str(item.get("role")), str(item.get("role")))
            made.append(message(role, _text(item.get("content"))))
        elif kind == "function_call":
            calls.add(item.get("call_id"))
        elif kind == "function_call_output":
            if item.get("call_id") not in calls:
                text = "No tool call found for function call output with call_id {}."
                raise invalid(text.format(item.get("call_id")), "input")
            made.append(message("tool", _text(item.get("output"))))
        elif kind == "reasoning" and not item.get("encrypted_content"):
            # What a server says that kept nothing of it.
            text = f"Item with id '{item.get('id')}' not found. Items are not persisted when "
            raise invalid(text + "`store` is set to false.", f"input[{index}]")
    return made


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content)


class ResponsesForm(Form):
    """Writes a response, or its events. Thoughts are sealed and not shown."""

    begins = True

    def __init__(self, request: Generation, body: Body) -> None:
        self._id = new_id()
        self._body = body
        self._request = request
        self._items: list[dict[str, Any]] = []
        self._open = ""
        self._sequence = 0

    def _event(self, kind: str, **fields: Any) -> bytes:
        value = {"type": f"response.{kind}", "sequence_number": self._sequence, **fields}
        if kind == "error":
            value["type"] = "error"
        self._sequence += 1
        return b"event: %s\ndata: %s\n\n" % (value["type"].encode(), dump(value))

    def _response(
        self, answer: Answer, status: str, *, reason: str | None = None, ended: bool = True
    ) -> dict[str, Any]:
        count = answer.count()
        usage = {
            "input_tokens": count.prompt,
            "input_tokens_details": {"cached_tokens": count.cached, "cache_write_tokens": 0},
            "output_tokens": count.completion,
            "output_tokens_details": {"reasoning_tokens": count.reasoning},
            "total_tokens": count.total,
        }
        why = _REASONS.get(reason or "")
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if why is None else {"reason": why},
            "instructions": self._body.get("instructions"),
            "max_output_tokens": self._body.get("max_output_tokens"),
            "model": answer.model,
            "output": self._items if ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": self._body.get("store") is not False,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": self._body.get("tools") or [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage if ended and not answer.no_usage else None,
            "metadata": self._body.get("metadata") or {},
        }

    def begin(self, answer: Answer, index: int) -> list[bytes]:
        begun = self._response(answer, "in_progress", ended=False)
        return [self._event("created", response=begun), self._event("in_progress", response=begun)]

    # Items

    def _id_of(self, kind: str) -> str:
        return f"{kind}_{self._id}{len(self._items)}"

    def _start(self, kind: str, item: dict[str, Any]) -> list[bytes]:
        events = self._close()
        self._open = kind
        self._items.append(item)
        where = len(self._items) - 1
        return [*events, self._event("output_item.added", output_index=where, item=dict(item))]

    def _of(self, kind: str, **fields: Any) -> bytes:
        where = len(self._items) - 1
        return self._event(kind, item_id=self._items[-1]["id"], output_index=where, **fields)

    def _message(self) -> list[bytes]:
        item = {"id": self._id_of("msg"), "type": "message", "status": "in_progress"}
        events = self._start("message", {**item, "content": [], "role": "assistant"})
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        events.append(self._of("content_part.added", content_index=0, part=dict(part)))
        self._items[-1]["content"] = [part]
        return events

    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        if delta.kind == "content":
            events = [] if self._open == "message" else self._message()
            self._items[-1]["content"][0]["text"] += delta.text
            said = {"content_index": 0, "delta": delta.text, "logprobs": []}
            return [*events, self._of("output_text.delta", **said)]
        if delta.kind == "reasoning":
            if self._open == "reasoning":
                return []
            item = {"id": self._id_of("rs"), "type": "reasoning", "summary": []}
            return self._start("reasoning", item)
        if delta.kind == "tool_name":
            return self._start("call", self._call(delta.text))
        self._items[-1]["arguments"] += delta.text
        half = len(delta.text) // 2
        pieces = (delta.text[:half], delta.text[half:])
        return [self._of("function_call_arguments.delta", delta=piece) for piece in pieces]

    def _call(self, name: str) -> dict[str, Any]:
        item = {"id": self._id_of("fc"), "type": "function_call", "status": "in_progress"}
        made = {"call_id": f"call_{os.urandom(12).hex()}", "name": name, "arguments": ""}
        return {**item, **made}

    def _close(self, status: str = "completed") -> list[bytes]:
        if not self._open:
            return []
        item, events = self._items[-1], []
        if self._open == "message":
            part = item["content"][0]
            text = {"content_index": 0, "text": part["text"], "logprobs": []}
            events.append(self._of("output_text.done", **text))
            events.append(self._of("content_part.done", content_index=0, part=part))
        elif self._open == "call":
            whole = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._of("function_call_arguments.done", **whole))
        elif "reasoning.encrypted_content" in (self._body.get("include") or []):
            item["encrypted_content"] = f"gAAAAA{self._id}"
        if self._open != "reasoning":
            item["status"] = status
        self._open = ""
        where = len(self._items) - 1
        return [*events, self._event("output_item.done", output_index=where, item=item)]

    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        status = "incomplete" if reason in _REASONS else "completed"
        events = self._close(status)
        response = self._response(answer, status, reason=reason)
        return [*events, self._event(status, response=response)]

    def error(self, answer: Answer) -> list[bytes]:
        fault = {"code": "server_error", "message": SIMULATED}
        response = {**self._response(answer, "failed"), "error": fault}
        event = self._event("error", **fault, param=None)
        return [event, self._event("failed", response=response)]

    def broken(self) -> bytes:
        return b'event: response.output_text.delta\ndata: {"type":"response.output_text.del\n\n'

    # Whole

    def whole(self, answer: Answer) -> bytes:
        sequence = answer.sequences[0]
        for delta in answer.made(sequence):
            self.delta(answer, 0, delta)
        reason = "stop" if answer.no_finish else answer.reason(sequence)
        status = "incomplete" if reason in _REASONS else "completed"
        self._close(status)
        return dump(self._response(answer, status, reason=reason))

    def whole_error(self, answer: Answer) -> bytes:
        fault = {"code": "server_error", "message": SIMULATED}
        return dump({**self._response(answer, "failed"), "error": fault})

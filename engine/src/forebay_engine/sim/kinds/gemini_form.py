"""Answers of generateContent."""

from __future__ import annotations

import json
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.canonical import arguments
from forebay_engine.sim.kinds.failure import SIMULATED
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.jobs import Answer
from forebay_engine.sim.text import Delta

_REASONS = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
    "abort": "OTHER",
}
_JSON = b"application/json; charset=UTF-8"
_ERROR = {"error": {"code": 503, "message": SIMULATED, "status": "UNAVAILABLE"}}


class ContentForm(Form):
    """Writes a response, or its chunks: events, or the items of one array.

    A function call is one part, whole; its finish reason is `STOP` all the same.
    """

    def __init__(self, *, sse: bool) -> None:
        self.id = new_id()[:22]
        self._sse = sse
        self.stream_type = b"text/event-stream" if sse else _JSON
        self._sent = 0
        self._name = ""
        self._signed = False

    def _event(self, value: dict[str, Any]) -> bytes:
        self._sent += 1
        if self._sse:
            return b"data: %s\r\n\r\n" % dump(value)
        lead = b"[" if self._sent == 1 else b",\r\n"
        return lead + json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"

    def _usage(self, answer: Answer, *, whole: bool) -> dict[str, Any]:
        count = answer.count()
        usage: dict[str, Any] = {"promptTokenCount": count.prompt}
        if count.cached:
            usage["cachedContentTokenCount"] = count.cached
        spoken = count.completion - count.reasoning
        if whole:
            usage["candidatesTokenCount"] = spoken
        usage["totalTokenCount"] = count.prompt + (count.completion if whole else 0)
        if count.reasoning and whole:
            usage["thoughtsTokenCount"] = count.reasoning
        return usage

    def _value(
        self, answer: Answer, parts: list[dict[str, Any]], reason: str | None
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}}
        if reason is not None:
            candidate["finishReason"] = _REASONS[reason]
        candidate["index"] = 0
        value: dict[str, Any] = {"candidates": [candidate]}
        if not answer.no_usage:
            value["usageMetadata"] = self._usage(answer, whole=reason is not None)
        return {**value, "modelVersion": answer.model, "responseId": self.id}

    def _part(self, delta: Delta) -> dict[str, Any] | None:
        if delta.kind == "content":
            return {"text": delta.text}
        if delta.kind == "reasoning":
            return {"text": delta.text, "thought": True}
        if delta.kind == "tool_name":
            self._name = delta.text
            return None
        part: dict[str, Any] = {"functionCall": {"name": self._name, "args": arguments(delta.text)}}
        if not self._signed:
            # Only the first of parallel calls carries the signature.
            self._signed = True
            part["thoughtSignature"] = "c2ltdWxhdGVkLXRob3VnaHQ="
        return part

    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        part = self._part(delta)
        return [] if part is None else [self._event(self._value(answer, [part], None))]

    @staticmethod
    def _refused(answer: Answer) -> bool:
        """Whether the filter struck before there was anything."""
        return answer.fault is not None and answer.fault.after == 0

    def _blocked(self, answer: Answer) -> dict[str, Any]:
        usage = {"promptTokenCount": answer.count().prompt}
        usage["totalTokenCount"] = usage["promptTokenCount"]
        value = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
        return {**value, "modelVersion": answer.model, "responseId": self.id}

    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        if reason == "content_filter" and self._refused(answer):
            self._sent = 0
            return [self._event(self._blocked(answer))]
        return [self._event(self._value(answer, [{"text": ""}], reason))]

    def done(self, answer: Answer) -> list[bytes]:
        return [] if self._sse else [b"]"]

    def error(self, answer: Answer) -> list[bytes]:
        # Bare, over several lines, in the middle of the events.
        text = json.dumps(_ERROR, indent=2).encode()
        if self._sse:
            return [b"[" + text + b"\n]\n"]
        return [(b"[" if not self._sent else b",\r\n") + text + b"\n]"]

    def broken(self) -> bytes:
        return b'data: {"candidates": [{"content": {"parts": [{"te\r\n\r\n'

    def whole(self, answer: Answer) -> bytes:
        sequence = answer.sequences[0]
        reason = answer.reason(sequence)
        if reason == "content_filter" and self._refused(answer):
            return dump(self._blocked(answer))
        made = answer.made(sequence)
        parts: list[dict[str, Any]] = []
        for delta in made:
            part = self._part(delta)
            if part is None:
                continue
            same = parts and "text" in parts[-1] and "text" in part
            if same and parts[-1].get("thought") == part.get("thought"):
                parts[-1]["text"] += part["text"]
            else:
                parts.append(part)
        value = self._value(answer, parts, reason)
        if answer.no_finish:
            del value["candidates"][0]["finishReason"]
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"

    def whole_error(self, answer: Answer) -> bytes:
        return json.dumps(_ERROR, indent=2).encode()

"""Answers of Converse and ConverseStream."""

from __future__ import annotations

import os
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.kinds.canonical import arguments
from forebay_engine.sim.kinds.eventstream import event, exception
from forebay_engine.sim.kinds.failure import SIMULATED
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.jobs import Answer
from forebay_engine.sim.text import Delta

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "guardrail_intervened",
    "abort": "end_turn",
}
SIGNATURE = "c2ltdWxhdGVkLXNpZ25hdHVyZQ=="


class ConverseForm(Form):
    """Writes an answer, or its frames. Text has no `contentBlockStart`; padding is in `p`."""

    begins = True
    stream_type = b"application/vnd.amazon.eventstream"

    def __init__(self) -> None:
        self._open: str | None = None
        self._block = -1
        self._begun = False

    def _event(self, kind: str, value: dict[str, Any]) -> bytes:
        return event(kind, dump({**value, "p": "abcdefgh"[: 1 + self._block % 8]}))

    def begin(self, answer: Answer, index: int) -> list[bytes]:
        self._begun = True
        return [self._event("messageStart", {"role": "assistant"})]

    def _switch(self, block: str) -> list[bytes]:
        events = self._close()
        self._open = block
        self._block += 1
        return events

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        events = []
        if self._open == "reasoning":
            events.append(self._delta({"reasoningContent": {"signature": SIGNATURE}}))
        self._open = None
        return [*events, self._event("contentBlockStop", {"contentBlockIndex": self._block})]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        value = {"contentBlockIndex": self._block, "delta": delta}
        return self._event("contentBlockDelta", value)

    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        events: list[bytes] = []
        if delta.kind == "content":
            if self._open != "text":
                events = self._switch("text")
            return [*events, self._delta({"text": delta.text})]
        if delta.kind == "reasoning":
            if self._open != "reasoning":
                events = self._switch("reasoning")
            return [*events, self._delta({"reasoningContent": {"text": delta.text}})]
        if delta.kind == "tool_name":
            events = self._switch("tool")
            start = {"toolUse": {"toolUseId": tool_id(), "name": delta.text}}
            value = {"contentBlockIndex": self._block, "start": start}
            return [*events, self._event("contentBlockStart", value)]
        half = len(delta.text) // 2
        pieces = (delta.text[:half], delta.text[half:])
        return [self._delta({"toolUse": {"input": piece}}) for piece in pieces]

    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        events = [] if self._begun else self.begin(answer, index)
        stop = self._event("messageStop", {"stopReason": self._reason(answer, reason)})
        return [*events, *self._close(), stop]

    def _reason(self, answer: Answer, reason: str) -> str:
        if reason == "stop" and answer.stop_string(answer.sequences[0]) is not None:
            return "stop_sequence"
        return _REASONS[reason]

    def _usage(self, answer: Answer) -> dict[str, Any]:
        count = answer.count()
        usage = {"inputTokens": count.prompt - count.cached, "outputTokens": count.completion}
        usage["totalTokens"] = count.total
        if count.cached:
            usage["cacheReadInputTokens"] = count.cached
            usage["cacheWriteInputTokens"] = 0
        return usage

    def usage(self, answer: Answer) -> list[bytes]:
        value = {"usage": self._usage(answer), "metrics": {"latencyMs": 42}}
        return [self._event("metadata", value)]

    def error(self, answer: Answer) -> list[bytes]:
        value = {"message": SIMULATED, "originalStatusCode": 500}
        return [exception("modelStreamErrorException", dump(value))]

    def broken(self) -> bytes:
        good = event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"x"}}')
        return good[:-1] + bytes([good[-1] ^ 0xFF])

    def whole(self, answer: Answer) -> bytes:
        sequence = answer.sequences[0]
        made = answer.made(sequence)
        blocks: list[dict[str, Any]] = []
        thought = "".join(d.text for d in made if d.kind == "reasoning")
        text = "".join(d.text for d in made if d.kind == "content")
        if thought:
            signed = {"text": thought, "signature": SIGNATURE}
            blocks.append({"reasoningContent": {"reasoningText": signed}})
        if text:
            blocks.append({"text": text})
        names = [d.text for d in made if d.kind == "tool_name"]
        given = [d.text for d in made if d.kind == "tool_args"]
        for name, value in zip(names, given, strict=False):
            use = {"toolUseId": tool_id(), "name": name, "input": arguments(value)}
            blocks.append({"toolUse": use})
        said: dict[str, Any] = {"output": {"message": {"role": "assistant", "content": blocks}}}
        if not answer.no_finish:
            said["stopReason"] = self._reason(answer, answer.reason(sequence))
        if not answer.no_usage:
            said["usage"] = self._usage(answer)
        return dump({**said, "metrics": {"latencyMs": 42}})

    def whole_error(self, answer: Answer) -> bytes:
        return dump({"message": SIMULATED})


def tool_id() -> str:
    """The id of a tool use."""
    return f"tooluse_{os.urandom(11).hex()}"

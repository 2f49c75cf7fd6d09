"""Realtime sessions, text only: the events of OpenAI's API in their order, the answers of `text`.

An audio buffer holds no audio: `input_audio_buffer.commit` makes a user's item of what was
appended, and with `turn_detection` a response without a `response.create`, as a turn that the
server heard end.
A message that asks for `/cut` breaks the connection off in the middle of its answer.

Source: openai/openai-python `types/realtime`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.text import Ask, Plan, count_bytes, plan
from forebay_engine.sim.websocket import Socket

PATH = "/realtime"
MAX_TOKENS = 4096
CUT_AFTER = 3
"""Deltas of an answer that is cut."""


class Realtime:
    """One session with a model."""

    def __init__(self, options: SimOptions, model: str) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._socket: Socket | None = None
        self._items: list[tuple[str, str]] = []
        self._session: dict[str, Any] = {
            "id": f"sess_{new_id()}",
            "object": "realtime.session",
            "type": "realtime",
            "model": model,
            "output_modalities": ["text"],
            "instructions": "",
        }
        self._appended = 0
        self._running: asyncio.Task[None] | None = None
        self._cancelled = False

    def opened(self, socket: Socket) -> None:
        """Say hello."""
        self._socket = socket
        self._say("session.created", session=self._session)

    def closed(self) -> None:
        """Stop what runs."""
        self._socket = None
        if self._running is not None:
            self._running.cancel()

    def received(self, data: bytes, opcode: int) -> None:
        """Take a client's event."""
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._fail("invalid_json", "The event is not a JSON object.", None)
            return
        kind = str(event.get("type"))
        handler = {
            "session.update": self._update,
            "conversation.item.create": self._item,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.clear": self._clear,
            "input_audio_buffer.commit": self._commit,
            "response.create": self._create,
            "response.cancel": self._cancel,
        }.get(kind)
        if handler is None:
            message = f"Invalid value: '{kind}'."
            self._fail("invalid_value", message, event.get("event_id"), "type")
        else:
            handler(event)

    # The client's events

    def _update(self, event: dict[str, Any]) -> None:
        changes = event.get("session")
        if isinstance(changes, dict):
            self._session.update(changes)
        self._say("session.updated", session=self._session)

    def _item(self, event: dict[str, Any]) -> None:
        item = event.get("item")
        content = item.get("content") if isinstance(item, dict) else None
        parts = content if isinstance(content, list) else []
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        self._add("user", "".join(text for text in texts if isinstance(text, str)))

    def _add(self, role: str, text: str) -> None:
        self._items.append((role, text))
        item = {"id": f"item_{new_id()}", "object": "realtime.item", "type": "message"}
        item |= {"role": role, "status": "completed"}
        content = [{"type": "input_text", "text": text}]
        for name in ("conversation.item.added", "conversation.item.done"):
            self._say(name, item={**item, "content": content})

    def _append(self, event: dict[str, Any]) -> None:
        self._appended += len(str(event.get("audio", "")))

    def _clear(self, event: dict[str, Any]) -> None:
        self._appended = 0
        self._say("input_audio_buffer.cleared")

    def _commit(self, event: dict[str, Any]) -> None:
        self._say("input_audio_buffer.committed", item_id=f"item_{new_id()}")
        self._add("user", f"audio of {self._appended} characters")
        self._appended = 0
        if self._session.get("turn_detection"):
            self._begin({})

    def _create(self, event: dict[str, Any]) -> None:
        if self._running is not None and not self._running.done():
            code = "conversation_already_has_active_response"
            message = "Conversation already has an active response in progress."
            self._fail(code, message, event.get("event_id"))
            return
        response = event.get("response")
        self._begin(response if isinstance(response, dict) else {})

    def _cancel(self, event: dict[str, Any]) -> None:
        if self._running is None or self._running.done():
            message = "Cancellation failed: no active response found."
            self._fail("response_cancel_not_active", message, event.get("event_id"))
        else:
            self._cancelled = True

    # Answers

    def _begin(self, asked: dict[str, Any]) -> None:
        self._cancelled = False
        self._running = self._loop.create_task(self._respond(asked))

    async def _respond(self, asked: dict[str, Any]) -> None:
        prompt = "\n".join(text for _, text in self._items)
        select = self._items[-1][1] if self._items else ""
        most = asked.get("max_output_tokens")
        bound = most if isinstance(most, int) else MAX_TOKENS
        answer = plan(Ask(prompt, select, self._options.seed, bound))
        response_id, item_id = f"resp_{new_id()}", f"item_{new_id()}"
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0}
        response: dict[str, Any] = {"id": response_id, "object": "realtime.response"}
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        self._say("response.created", response=begun)
        item = {"id": item_id, "object": "realtime.item", "type": "message", "role": "assistant"}
        self._say("response.output_item.added", response_id=response_id, output_index=0, item=item)
        made = await self._stream(answer, place, select)
        if made is None:
            return
        text = answer.text(made)
        self._items.append(("assistant", text))
        self._say("response.output_text.done", **place, content_index=0, text=text)
        self._say("response.output_item.done", response_id=response_id, output_index=0, item=item)
        status, reason = "completed", None
        if self._cancelled:
            status, reason = "cancelled", "client_cancelled"
        elif answer.finish == "length":
            status, reason = "incomplete", "max_output_tokens"
        details = None if reason is None else {"type": status, "reason": reason}
        ended = {"status": status, "status_details": details, "output": [item]}
        usage = self._usage(prompt, made)
        self._say("response.done", response={**response, **ended, "usage": usage})

    async def _stream(self, answer: Plan, place: dict[str, Any], select: str) -> int | None:
        """Say the deltas; how many tokens were made, or None where the connection is cut."""
        rate = self._options.limits.decode_rate
        for at in range(answer.total):
            if self._cancelled:
                return at
            if "/cut" in select and at == CUT_AFTER:
                if self._socket is not None:
                    self._socket.cut()
                return None
            if piece := answer.piece(at):
                self._say("response.output_text.delta", **place, content_index=0, delta=piece)
            await asyncio.sleep(1 / rate if rate > 0 else 0)
        return answer.total

    def _usage(self, prompt: str, made: int) -> dict[str, Any]:
        given = count_bytes(prompt, self._options.bytes_per_token)
        return {
            "total_tokens": given + made,
            "input_tokens": given,
            "output_tokens": made,
            "input_token_details": {
                "text_tokens": given,
                "audio_tokens": 0,
                "image_tokens": 0,
                "cached_tokens": given // 2,
            },
            "output_token_details": {"text_tokens": made, "audio_tokens": 0},
        }

    # What is said

    def _say(self, kind: str, **members: Any) -> None:
        if self._socket is not None:
            event = {"type": kind, "event_id": f"event_{new_id()}", **members}
            self._socket.send(json.dumps(event, separators=(",", ":"), ensure_ascii=False))

    def _fail(self, code: str, message: str, about: object, param: str | None = None) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message}
        self._say("error", error={**error, "param": param, "event_id": about})

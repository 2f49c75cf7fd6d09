"""Anthropic's Messages API, with and without `stream`."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from tests.support.doors.door import CAP, REQUEST_HEADERS, Api, Ask, Door, Trouble
from tests.support.doors.openai_http import HttpCall
from tests.support.wire import request

PATH = "/v1/messages"
ERRORS = {
    "invalid_request": (400, "invalid_request_error"),
    "unauthenticated": (401, "authentication_error"),
    "forbidden": (403, "permission_error"),
    "model_not_found": (404, "not_found_error"),
    "payload_too_large": (413, "request_too_large"),
    "budget_exhausted": (429, "billing_error"),
    "rate_limited": (429, "rate_limit_error"),
    "internal": (500, "api_error"),
    "upstream_error": (502, "api_error"),
    "unavailable": (503, "overloaded_error"),
    "upstream_timeout": (504, "timeout_error"),
}
"""How this API says each kind: status and `type`."""
FINISHES = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def messages_trouble(value: Any, status: int | None, headers: dict[str, str]) -> Trouble:
    """What an error says. status: None where it came inside a stream."""
    assert value["type"] == "error", value
    assert set(value) <= {"type", "error", "request_id"}, value
    error = value["error"]
    assert set(error) == {"type", "message"}, error
    known = [
        kind
        for kind, (code, type_) in ERRORS.items()
        if type_ == error["type"] and status in (None, code)
    ]
    assert known, (status, error)
    # Inside a stream nothing tells the gateway's own faults from the engine's.
    kind = "upstream_error" if status is None and "upstream_error" in known else known[0]
    wait = headers.get("retry-after-ms")
    again = headers.get("x-should-retry")
    return Trouble(
        kind,
        error["message"],
        retry_s=int(wait) / 1000 if wait is not None else None,
        retry={None: None, "true": True, "false": False}[again],
    )


class MessagesCall(HttpCall):
    """One request; of a stream the order of its events is checked."""

    _open: str | None = None
    _started = False
    _delta = False

    def _whole(self, value: Any) -> None:
        got = self._got
        assert "request-id" in got.headers, got.headers
        status = self.head().status
        if status != 200:
            got.trouble = messages_trouble(value, status, got.headers)
            return
        assert (value["type"], value["role"]) == ("message", "assistant"), value
        got.text = "".join(part["text"] for part in value["content"] if part["type"] == "text")
        got.finish = FINISHES[value["stop_reason"]]
        got.usage = value["usage"]["input_tokens"], value["usage"]["output_tokens"]
        got.ended = True

    def _event(self, name: str | None, data: str) -> None:
        value = json.loads(data)
        kind = value["type"]
        assert name == kind, (name, data)
        got = self._got
        assert not got.ended, "something follows the end"
        if kind == "error":
            got.trouble = messages_trouble(value, None, {})
        elif kind == "message_start":
            assert not self._started
            self._started = True
            assert value["message"]["content"] == []
        elif kind == "content_block_start":
            assert self._started
            assert self._open is None
            self._open = value["content_block"]["type"]
        elif kind == "content_block_delta":
            assert self._open is not None
            if value["delta"]["type"] == "text_delta":
                assert self._open == "text"
                got.text += value["delta"]["text"]
        elif kind == "content_block_stop":
            assert self._open is not None
            self._open = None
        elif kind == "message_delta":
            assert self._open is None
            self._delta = True
            got.finish = FINISHES[value["delta"]["stop_reason"]]
            got.usage = value["usage"]["input_tokens"], value["usage"]["output_tokens"]
        elif kind == "message_stop":
            assert self._delta
            got.ended = True
        else:
            assert kind == "ping", value


class Messages(Door):
    """Anthropic's API, whole answers."""

    name = "messages"
    apis = (Api.CHAT,)
    streams = False
    wrong_param: ClassVar = {Api.CHAT: "max_tokens"}
    param_in_message = True
    limit_headers = REQUEST_HEADERS

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self, ask: Ask) -> MessagesCall:
        body = {
            "model": ask.model,
            "max_tokens": -1 if ask.wrong else CAP,
            "messages": [{"role": "user", "content": ask.content}],
            **({"stream": True} if self.streams else {}),
            **ask.extra,
        }
        headers = [("anthropic-version", "2023-06-01")]
        if ask.key is not None:
            headers.append(("x-api-key", ask.key))
        return MessagesCall(self.port, request(PATH, body, headers=headers), ask.api)


class MessagesStream(Messages):
    """Anthropic's API, streams."""

    name = "messages-stream"
    streams = True

"""WebSockets: chats, and the Responses API."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from tests.support.doors.door import Api, Ask, Call, Door, Told, Trouble
from tests.support.doors.openai_http import note_openai, openai_body, openai_trouble
from tests.support.doors.responses import ResponsesReader, responses_body
from tests.support.doors.ws_wire import Socket
from tests.support.wire import Answer

CHAT_PATH, RESPONSES_PATH = "/v1/chat/completions", "/v1/responses"


def _handshake_trouble(answer: Answer) -> Trouble:
    """What is told before there is a socket: OpenAI's error over HTTP."""
    value = answer.json()
    assert list(value) == ["error"], value
    return openai_trouble(value["error"], answer.status, dict(answer.headers))


def _message_trouble(value: Any) -> Trouble:
    """An error that takes an answer's place: OpenAI's, with what a status line would say."""
    assert set(value) <= {"type", "status", "error", "request_id", "retry_after_ms"}, value
    wait = value.get("retry_after_ms")
    headers = {} if wait is None else {"retry-after-ms": str(wait)}
    if value["error"]["code"] == "insufficient_quota":
        headers["x-should-retry"] = "false"  # as this code means
    return openai_trouble(value["error"], value["status"], headers)


class WsCall(Call):
    """One request on a socket of its own."""

    def __init__(self, port: int, path: str, ask: Ask, body: dict[str, Any]) -> None:
        self._api = ask.api
        self._got = Told()
        self._over = False
        self._socket = Socket(port, path, ask.key)
        if self._socket.refused:
            self._got.trouble = _handshake_trouble(self._socket.opening)
            self._over = True
            return
        self._socket.say(json.dumps(body))

    def text(self, pieces: int) -> str:
        seen = 0
        while seen < pieces:
            before = self._got.text
            assert not self._over, self._got
            self._next()
            seen += self._got.text != before
        return self._got.text

    def told(self) -> Told:
        while not self._over:
            self._next()
        return self._got

    def hang_up(self) -> None:
        self._socket.abort()

    def _next(self) -> None:
        said = self._socket.hear()
        if said == "[DONE]":
            self._got.ended = self._over = True
            return
        value = json.loads(said)
        if "error" in value:
            self._over = True
            in_place = "status" in value
            if in_place:
                self._got.trouble = _message_trouble(value)
            else:
                self._got.trouble = openai_trouble(value["error"], None, {})
            return
        whole = value["object"] == "chat.completion"
        note_openai(self._got, self._api, value, part=not whole)
        if whole:
            self._got.ended = self._over = True


class ResponsesWsCall(WsCall):
    """One turn on a socket of its own."""

    _reader: ResponsesReader | None = None

    def _next(self) -> None:
        value = json.loads(self._socket.hear())
        if value["type"] == "error" and "status" in value:
            self._got.trouble = _message_trouble(value)
            self._over = True
            return
        if self._reader is None:
            self._reader = ResponsesReader(self._got)
        self._reader.event(value)
        self._over = self._got.ended or self._got.trouble is not None


class WebSocket(Door):
    """Chats, each answer event a message."""

    name = "ws"
    apis = (Api.CHAT,)
    streams = True
    front = "ws"
    wrong_param: ClassVar = {Api.CHAT: "max_tokens"}

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self, ask: Ask) -> WsCall:
        body = {**openai_body(ask), "stream": self.streams}
        if self.streams:
            body["stream_options"] = {"include_usage": True}
        return WsCall(self.port, CHAT_PATH, ask, body)


class WebSocketWhole(WebSocket):
    """Chats, each answer one message."""

    name = "ws-whole"
    streams = False


class ResponsesWebSocket(Door):
    """OpenAI's WebSocket mode of the Responses API."""

    name = "responses-ws"
    apis = (Api.CHAT,)
    streams = True
    front = "ws"
    wrong_param: ClassVar = {Api.CHAT: "max_output_tokens"}

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self, ask: Ask) -> ResponsesWsCall:
        body = {"type": "response.create", **responses_body(ask)}
        return ResponsesWsCall(self.port, RESPONSES_PATH, ask, body)

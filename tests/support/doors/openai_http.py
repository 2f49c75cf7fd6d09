"""OpenAI's API over HTTP, with and without `stream`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from tests.support.doors.door import CAP, REQUEST_HEADERS, Api, Ask, Call, Door, Told, Trouble
from tests.support.wire import Answer, Client, request

PATHS = {
    Api.CHAT: "/v1/chat/completions",
    Api.COMPLETION: "/v1/completions",
    Api.EMBEDDING: "/v1/embeddings",
}
ERRORS = {
    "invalid_request": (400, "invalid_request_error"),
    "unauthenticated": (401, "invalid_request_error"),
    "forbidden": (403, "permission_error"),
    "model_not_found": (404, "invalid_request_error"),
    "budget_exhausted": (429, "insufficient_quota"),
    "rate_limited": (429, "rate_limit_error"),
    "internal": (500, "server_error"),
    "upstream_error": (502, "server_error"),
    "unavailable": (503, "service_unavailable_error"),
    "upstream_timeout": (504, "timeout_error"),
}
"""How OpenAI's API says each kind: status and `type`."""


def openai_body(ask: Ask) -> dict[str, Any]:
    """The request as OpenAI's API has it."""
    body: dict[str, Any] = {"model": ask.model}
    if ask.api is Api.CHAT:
        body["messages"] = [{"role": "user", "content": ask.content}]
    elif ask.api is Api.COMPLETION:
        body["prompt"] = ask.content
    else:
        body["input"] = "" if ask.wrong else ask.content
    if ask.api is not Api.EMBEDDING:
        body["max_tokens"] = -1 if ask.wrong else CAP
    elif ask.wrong:
        body["input"] = {"not": "a text"}
    return {**body, **ask.extra}


def openai_trouble(error: Any, status: int | None, headers: dict[str, str]) -> Trouble:
    """What an error object says. status: None where it came inside a stream."""
    assert list(error) == ["message", "type", "param", "code"], error
    assert isinstance(error["message"], str)
    assert error["message"]
    if status is not None:
        known = [kind for kind, told in ERRORS.items() if told == (status, error["type"])]
        assert len(known) == 1, (status, error)
    else:  # A stream's head was 200, so the type and the code have to tell.
        known = [
            kind
            for kind, (_, type_) in ERRORS.items()
            if type_ == error["type"] and (type_ != "server_error" or kind == error["code"])
        ]
        assert known, error
    wait = headers.get("retry-after-ms")
    again = headers.get("x-should-retry")
    return Trouble(
        known[0],
        error["message"],
        error["param"],
        error["code"],
        int(wait) / 1000 if wait is not None else None,
        {None: None, "true": True, "false": False}[again],
    )


def note_openai(told: Told, api: Api, value: Any, *, part: bool) -> None:
    """Add what an answer, or a part of it, says."""
    if usage := value.get("usage"):
        told.usage = usage["prompt_tokens"], usage.get("completion_tokens", 0)
    if api is Api.EMBEDDING:
        told.vector = value["data"][0]["embedding"]
        return
    for choice in value["choices"]:
        holder = choice["delta" if part else "message"] if api is Api.CHAT else choice
        told.text += holder.get("content" if api is Api.CHAT else "text") or ""
        told.finish = choice.get("finish_reason") or told.finish


class HttpCall(Call):
    """A request on a connection of its own."""

    def __init__(self, port: int, data: bytes, api: Api) -> None:
        self._client = Client(port).send(data)
        self._api = api
        self._events: Iterator[tuple[str | None, str]] | None = None
        self._answer: Answer | None = None
        self._got = Told()

    def head(self) -> Answer:
        """Status and headers, once they came."""
        if self._answer is None:
            self._answer = self._client.head()
            self._got.headers = dict(self._answer.headers)
        return self._answer

    def text(self, pieces: int) -> str:
        seen = 0
        for _ in range(100):
            if seen >= pieces:
                break
            before = self._got.text
            assert self._next(), f"the answer ended: {self._got}"
            seen += self._got.text != before
        return self._got.text

    def told(self) -> Told:
        if "text/event-stream" not in (self.head().header("content-type") or ""):
            body = b"".join(data for _, data in self._client.body(self.head()))
            assert self.head().complete, "the body was cut"
            self._whole(json.loads(body))
            return self._got
        while self._next():
            pass
        assert self.head().complete, "the stream was cut without a last chunk"
        return self._got

    def hang_up(self) -> None:
        self._client.socket.close()

    def _whole(self, value: Any) -> None:
        status = self.head().status
        if status != 200:
            assert list(value) == ["error"], value
            self._got.trouble = openai_trouble(value["error"], status, self._got.headers)
            return
        note_openai(self._got, self._api, value, part=False)
        self._got.ended = True

    def _event(self, name: str | None, data: str) -> None:
        assert name is None, "OpenAI's streams name no events"
        assert not self._got.ended, "something follows the end"
        if data == "[DONE]":
            self._got.ended = True
            return
        value = json.loads(data)
        if "error" in value:
            self._got.trouble = openai_trouble(value["error"], None, {})
            return
        note_openai(self._got, self._api, value, part=True)

    def _next(self) -> bool:
        if self._events is None:
            assert self.head().status == 200, self.head()
            self._events = sse(self._client, self.head())
        for name, data in self._events:
            self._event(name, data)
            return True
        return False


def sse(client: Client, answer: Answer) -> Iterator[tuple[str | None, str]]:
    """Name and data of each event of a body; the body ends with a whole one."""
    buffer = b""
    for _, data in client.body(answer):
        buffer += data
        while b"\n\n" in buffer:
            block, _, buffer = buffer.partition(b"\n\n")
            name, lines = None, []
            for line in block.decode().split("\n"):
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    lines.append(line.removeprefix("data: "))
                else:
                    assert line.startswith(":"), f"neither event, data nor comment: {line!r}"
            if lines:
                yield name, "\n".join(lines)
    assert buffer == b"", f"the stream ends inside an event: {buffer!r}"


class Http(Door):
    """OpenAI's API, whole answers."""

    name = "http"
    apis = tuple(Api)
    streams = False
    wrong_param: ClassVar = {
        Api.CHAT: "max_tokens",
        Api.COMPLETION: "max_tokens",
        Api.EMBEDDING: "input",
    }
    limit_headers = REQUEST_HEADERS

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self, ask: Ask) -> HttpCall:
        body = openai_body(ask)
        if self.streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return HttpCall(self.port, request(PATHS[ask.api], body, key=ask.key), ask.api)


class HttpStream(Http):
    """OpenAI's API, streams."""

    name = "http-stream"
    apis = (Api.CHAT, Api.COMPLETION)
    streams = True

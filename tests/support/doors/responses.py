"""OpenAI's Responses API, with and without `stream`."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from tests.support.doors.door import CAP, REQUEST_HEADERS, Api, Ask, Door, Told, Trouble
from tests.support.doors.openai_http import HttpCall, openai_trouble
from tests.support.wire import request

PATH = "/v1/responses"
FINISHES = {"completed": "stop", "incomplete": "length"}
CODES = {
    "server_error": "upstream_error",
    "upstream_error": "upstream_error",
    "upstream_timeout": "upstream_timeout",
    "rate_limit_exceeded": "rate_limited",
}
"""The kinds that a failed response's `error.code` stands for."""


def responses_body(ask: Ask) -> dict[str, Any]:
    """The request as this API has it; nothing of it is kept."""
    return {
        "model": ask.model,
        "input": ask.content,
        "max_output_tokens": -1 if ask.wrong else CAP,
        "store": False,
        **ask.extra,
    }


class ResponsesReader:
    """Reads whole responses, and events in their order, into what was told."""

    def __init__(self, got: Told) -> None:
        self.got = got
        self._next = 0
        self._open: list[str] = []
        self._created = False

    def whole(self, value: Any) -> None:
        """A response object of a whole answer."""
        assert value["object"] == "response", value
        assert value["status"] in FINISHES, value
        assert value["error"] is None, value
        text = "".join(
            part["text"]
            for item in value["output"]
            if item["type"] == "message"
            for part in item["content"]
            if part["type"] == "output_text"
        )
        assert self.got.text in ("", text), "the deltas are not the text"
        self.got.text = text
        self.got.finish = FINISHES[value["status"]]
        usage = value["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        self.got.usage = usage["input_tokens"], usage["output_tokens"]
        self.got.ended = True

    def event(self, value: Any) -> None:
        """One event of a stream."""
        kind: str = value["type"]
        assert not self.got.ended, f"{kind} follows the end"
        assert value["sequence_number"] == self._next, value
        self._next += 1
        if kind == "error":
            self.got.trouble = Trouble(
                CODES[value["code"]], value["message"], value["param"], value["code"]
            )
            return
        stem = kind.removeprefix("response.")
        assert self._created != (stem == "created"), value
        if stem == "created":
            self._created = True
            assert value["response"]["status"] == "in_progress"
        elif stem in ("output_item.added", "content_part.added"):
            self._open.append(stem.removesuffix(".added"))
        elif stem in ("output_item.done", "content_part.done"):
            assert self._open.pop() == stem.removesuffix(".done")
        elif stem == "output_text.delta":
            assert self._open[-1] == "content_part"
            self.got.text += value["delta"]
        elif stem == "output_text.done":
            assert value["text"] == self.got.text
        elif stem in ("completed", "incomplete"):
            assert self._open == []
            self.whole(value["response"])
        elif stem == "failed":
            error = value["response"]["error"]
            self.got.trouble = Trouble(CODES[error["code"]], error["message"], code=error["code"])
        else:
            assert stem in ("in_progress", "queued"), value


class ResponsesCall(HttpCall):
    """One request."""

    _reader: ResponsesReader | None = None

    def _whole(self, value: Any) -> None:
        status = self.head().status
        if status != 200:
            assert list(value) == ["error"], value
            self._got.trouble = openai_trouble(value["error"], status, self._got.headers)
            return
        ResponsesReader(self._got).whole(value)

    def _event(self, name: str | None, data: str) -> None:
        if self._reader is None:
            self._reader = ResponsesReader(self._got)
        value = json.loads(data)
        assert name == value["type"], (name, data)
        self._reader.event(value)


class Responses(Door):
    """Responses, whole."""

    name = "responses"
    apis = (Api.CHAT,)
    streams = False
    wrong_param: ClassVar = {Api.CHAT: "max_output_tokens"}
    limit_headers = REQUEST_HEADERS

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self, ask: Ask) -> ResponsesCall:
        body = {**responses_body(ask), **({"stream": True} if self.streams else {})}
        return ResponsesCall(self.port, request(PATH, body, key=ask.key), ask.api)


class ResponsesStream(Responses):
    """Responses, as events."""

    name = "responses-stream"
    streams = True

"""The gateway's two doors with what real engines answer: texts piece by piece, thoughts, tools."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, ClassVar

from forebay.client import Client as GrpcClient
from forebay.client import Error
from forebay.grpc.v1 import inference_pb2 as pb

from tests.support.doors.openai_http import sse
from tests.support.wire import CHAT, COMPLETIONS, Client, chat, request

WAIT_S = 300.0
"""For one answer: an engine on shared cores, perhaps slowed down, perhaps not started yet."""
FINISHES = {
    pb.FINISH_REASON_UNSPECIFIED: None,
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


_numbers = count(1)


def _new_id() -> str:
    return f"engine-test-{next(_numbers)}"


@dataclass
class Said:
    """An answer, as far as it came.

    pieces: of its text. thoughts: of its reasoning. tools: name and arguments of each call, as
    they were put together. usage: prompt and completion tokens. error: the code of what ended it.
    """

    request_id: str
    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tools: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    usage: tuple[int, int] | None = None
    error: str | None = None
    status: int | None = None
    param: str | None = None
    message: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    @property
    def thought(self) -> str:
        """All of its reasoning."""
        return "".join(self.thoughts)

    def add(self, text: str | None, thought: str | None = None) -> None:
        """Note a piece."""
        if text:
            self.pieces.append(text)
        if thought:
            self.thoughts.append(thought)

    def call(self, index: int, name: str | None, arguments: str | None) -> None:
        """Note a part of a call of a tool."""
        while len(self.tools) <= index:
            self.tools.append(["", ""])
        self.tools[index][0] += name or ""
        self.tools[index][1] += arguments or ""


class Stream(ABC):
    """An answer that is being read."""

    said: Said

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def read(self, pieces: int) -> Said:
        """Read until there are so many pieces of text."""
        while len(self.said.pieces) < pieces:
            assert self.step(), f"the answer ended: {self.said}"
        return self.said

    def rest(self) -> Said:
        """Read to the end."""
        while self.step():
            pass
        return self.said

    @abstractmethod
    def step(self) -> bool:
        """Read one message; whether there was one."""

    @abstractmethod
    def leave(self) -> None:
        """Hang up."""


class Door(ABC):
    """A way to the gateway. Fields are OpenAI's, those that only engines know included."""

    name: ClassVar[str]

    @abstractmethod
    def whole(self, model: str, prompt: str, *, legacy: bool = False, **fields: Any) -> Said:
        """An answer in one piece. legacy: a completion of `prompt`, not a chat."""

    @abstractmethod
    def stream(self, model: str, prompt: str, *, legacy: bool = False, **fields: Any) -> Stream:
        """An answer piece by piece."""

    def __str__(self) -> str:
        return self.name


class HttpStream(Stream):
    """Server-sent events."""

    def __init__(self, client: Client, said: Said) -> None:
        self._client = client
        self.said = said
        self._events: Iterator[tuple[str | None, str]] | None = None

    def step(self) -> bool:
        if self._events is None:
            head = self._client.head()
            self.said.status = head.status
            assert head.status == 200, b"".join(data for _, data in self._client.body(head))
            self._events = sse(self._client, head)
        for _, data in self._events:
            if data == "[DONE]":
                assert next(self._events, None) is None, "something follows the end"
                return False
            _note(self.said, json.loads(data), "delta")
            return True
        return False

    def leave(self) -> None:
        self._client.socket.close()


class Http(Door):
    """OpenAI's API."""

    name = "http"

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key

    def _send(
        self, said: Said, model: str, prompt: str, legacy: bool, fields: dict[str, Any]
    ) -> Client:
        path, body = CHAT, chat(model, prompt, **fields)
        if legacy:
            path, body = COMPLETIONS, {"model": model, "prompt": prompt, **fields}
        client = Client(self._port)
        client.socket.settimeout(WAIT_S)
        headers = [("x-request-id", said.request_id)]
        return client.send(request(path, body, key=self._key, headers=headers))

    def whole(self, model: str, prompt: str, *, legacy: bool = False, **fields: Any) -> Said:
        said = Said(_new_id())
        with self._send(said, model, prompt, legacy, fields) as client:
            answer = client.answer()
        said.status = answer.status
        _note(said, answer.json(), "message")
        return said

    def stream(self, model: str, prompt: str, *, legacy: bool = False, **fields: Any) -> Stream:
        asked = {"stream": True, "stream_options": {"include_usage": True}, **fields}
        said = Said(_new_id())
        return HttpStream(self._send(said, model, prompt, legacy, asked), said)


def _note(said: Said, value: dict[str, Any], part: str) -> None:
    if "error" in value:
        error = value["error"]
        said.error, said.param = error["code"] or error["type"], error["param"]
        said.message = error["message"]
        return
    if usage := value.get("usage"):
        said.usage = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in value["choices"]:
        said.finish = choice.get("finish_reason") or said.finish
        message = choice.get(part) or {}
        said.add(message.get("content") or choice.get("text"), message.get("reasoning_content"))
        for number, tool in enumerate(message.get("tool_calls") or ()):
            function = tool["function"]
            index = tool.get("index", number)
            said.call(index, function.get("name"), function.get("arguments"))


class GrpcStream(Stream):
    """A server stream."""

    def __init__(self, stream: Any, said: Said) -> None:
        self._stream = stream
        self.said = said

    def step(self) -> bool:
        try:
            message = next(self._stream)
        except StopIteration:
            return False
        except Error as error:
            _trouble(self.said, error)
            return False
        _note_message(self.said, message, "delta")
        return True

    def leave(self) -> None:
        self._stream.close()


class Grpc(Door):
    """`forebay.client`."""

    name = "grpc"

    def __init__(self, address: str, key: str) -> None:
        self._client = GrpcClient(address, api_key=key, timeout=WAIT_S, retries=False)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def whole(self, model: str, prompt: str, *, legacy: bool = False, **fields: Any) -> Said:
        said = Said(_new_id())
        client = self._client
        asked = {"model": model, "request_id": said.request_id, **fields}
        try:
            if legacy:
                answer: Any = client.complete(prompt=prompt, **asked)
            else:
                answer = client.chat(messages=_messages(prompt), **asked)
        except Error as error:
            _trouble(said, error)
            return said
        _note_message(said, answer, "message")
        return said

    def stream(self, model: str, prompt: str, *, legacy: bool = False, **fields: Any) -> Stream:
        said = Said(_new_id())
        client = self._client
        asked = {"model": model, "request_id": said.request_id, **fields}
        if legacy:
            return GrpcStream(client.stream_complete(prompt=prompt, **asked), said)
        return GrpcStream(client.stream_chat(messages=_messages(prompt), **asked), said)


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _trouble(said: Said, error: Error) -> None:
    said.error = error.metadata.get("code") or error.kind
    said.param, said.message = error.param, error.message


def _note_message(said: Said, message: Any, part: str) -> None:
    if message.HasField("usage"):
        said.usage = message.usage.prompt_tokens, message.usage.completion_tokens
    for choice in message.choices:
        said.finish = FINISHES[choice.finish_reason] or said.finish
        if part not in choice.DESCRIPTOR.fields_by_name:
            said.add(choice.text)
            continue
        inner = getattr(choice, part)
        said.add(inner.content, inner.reasoning_content)
        for number, tool in enumerate(inner.tool_calls):
            index = tool.index if part == "delta" else number
            said.call(index, tool.function.name, tool.function.arguments)

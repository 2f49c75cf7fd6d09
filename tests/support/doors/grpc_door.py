"""`forebay.v1.InferenceService`, with the messages that the contract makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import grpc
from forebay.grpc.v1 import inference_pb2 as pb
from forebay.grpc.v1 import inference_pb2_grpc as stubs
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tests.support.doors.door import CAP, REQUEST_HEADERS, Api, Ask, Call, Door, Told, Trouble

CODES = {
    "INVALID_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "FORBIDDEN": grpc.StatusCode.PERMISSION_DENIED,
    "MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "PAYLOAD_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "BUDGET_EXHAUSTED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "UPSTREAM_ERROR": grpc.StatusCode.UNAVAILABLE,
    "UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "UPSTREAM_TIMEOUT": grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The code of each reason."""
FINISHES = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
TIMEOUT_S = 20.0


def grpc_request(ask: Ask) -> Any:
    """The request as the contract has it."""
    cap = -1 if ask.wrong else CAP
    if ask.api is Api.CHAT:
        messages = [pb.ChatMessage(role=pb.ROLE_USER, content=ask.content)]
        return pb.ChatCompletionRequest(model=ask.model, messages=messages, max_tokens=cap)
    if ask.api is Api.COMPLETION:
        return pb.CompletionRequest(model=ask.model, prompt=ask.content, max_tokens=cap)
    if ask.wrong:
        return pb.EmbedRequest(model=ask.model)
    return pb.EmbedRequest(model=ask.model, input=ask.content)


def grpc_trouble(error: Any) -> Trouble:
    """What a failed call says: one status, told three times, and details of the known types."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    told = error_details_pb2.RequestInfo()
    known = [message for message in (info, retry, request, quota, told)]
    for detail in status.details:
        assert any(detail.Unpack(message) for message in known), detail.type_url
    assert info.domain == "forebay.dev"
    assert CODES[info.reason] == error.code()
    kind = info.reason.lower()
    param = info.metadata.get("param")
    if kind == "invalid_request" and param is not None:
        assert [violation.field for violation in request.field_violations] == [param]
    assert bool(quota.violations) == (kind in ("rate_limited", "budget_exhausted"))
    wait = retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None
    again = info.metadata.get("retry")
    return Trouble(
        kind,
        status.message,
        param,
        info.metadata.get("code"),
        wait,
        None if again is None else again == "true",
    )


class GrpcCall(Call):
    """One call. pieces: its messages."""

    def __init__(self, api: Api, streams: bool, started: Any) -> None:
        self._api = api
        self._call = started
        self._pieces: Iterator[Any] | None = iter(started) if streams else None
        self._got = Told()

    def text(self, pieces: int) -> str:
        seen = 0
        assert self._pieces is not None
        while seen < pieces:
            before = self._got.text
            self._note(next(self._pieces))
            seen += self._got.text != before
        return self._got.text

    def told(self) -> Told:
        try:
            if self._pieces is None:
                self._note(self._call.result())
            else:
                for piece in self._pieces:
                    self._note(piece)
            self._got.ended = True
        except grpc.RpcError:
            self._got.trouble = grpc_trouble(self._call)
        metadata = [*(self._call.initial_metadata() or ()), *self._call.trailing_metadata()]
        self._got.headers = {key: value for key, value in metadata if not key.endswith("-bin")}
        return self._got

    def hang_up(self) -> None:
        self._call.cancel()

    def _note(self, message: Any) -> None:
        got = self._got
        if message.HasField("usage"):
            got.usage = message.usage.prompt_tokens, message.usage.completion_tokens
        if self._api is Api.EMBEDDING:
            got.vector = list(message.data[0].values)
            return
        for choice in message.choices:
            if self._api is Api.COMPLETION:
                got.text += choice.text
            else:
                got.text += (choice.delta if self._pieces is not None else choice.message).content
            got.finish = FINISHES.get(choice.finish_reason, got.finish)


class Grpc(Door):
    """Unary calls."""

    name = "grpc"
    apis = tuple(Api)
    streams = False
    front = "grpc"
    wrong_param: ClassVar = {
        Api.CHAT: "max_tokens",
        Api.COMPLETION: "max_tokens",
        Api.EMBEDDING: "input",
    }
    limit_headers = REQUEST_HEADERS

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._stub: Any = stubs.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def start(self, ask: Ask) -> GrpcCall:
        metadata = () if ask.key is None else (("authorization", f"Bearer {ask.key}"),)
        method = self._method(ask.api)
        started = method(grpc_request(ask), metadata=metadata, timeout=TIMEOUT_S)
        return GrpcCall(ask.api, self.streams, started)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _method(self, api: Api) -> Callable[..., Any]:
        unary: dict[Api, Callable[..., Any]] = {
            Api.CHAT: self._stub.ChatCompletion.future,
            Api.COMPLETION: self._stub.Completion.future,
            Api.EMBEDDING: self._stub.Embed.future,
        }
        return unary[api]


class GrpcStream(Grpc):
    """Server streams."""

    name = "grpc-stream"
    apis = (Api.CHAT, Api.COMPLETION)
    streams = True

    def _method(self, api: Api) -> Callable[..., Any]:
        streams: dict[Api, Callable[..., Any]] = {
            Api.CHAT: self._stub.StreamChatCompletion,
            Api.COMPLETION: self._stub.StreamCompletion,
        }
        return streams[api]

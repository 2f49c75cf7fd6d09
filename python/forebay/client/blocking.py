"""The client for threads. One may be used by many at once."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, Unpack

import grpc

from forebay.client import requests
from forebay.client.connection import TIMEOUT_S, CallOptions, Place, Tls, channel_options
from forebay.client.errors import Error, to_error
from forebay.grpc.v1 import inference_pb2 as pb
from forebay.grpc.v1.inference_pb2_grpc import InferenceServiceStub

T = TypeVar("T")


class Stream(Generic[T]):
    """An answer's messages as they come. Leaving it, or `close`, stops the engine."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Raises: Error."""
        try:
            message: T = next(self._call)
        except grpc.RpcError as error:
            raise _error(error) from None
        return message

    def __enter__(self) -> "Stream[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Want no more of it."""
        self._call.cancel()

    @property
    def request_id(self) -> str | None:
        """What the gateway calls the request; waits for the answer's start."""
        return _metadata(self._call.initial_metadata()).get("x-request-id")


class Client:
    """A gateway's inference API.

    address: HOST:PORT, ``grpc://HOST:PORT``, or ``grpcs://HOST:PORT`` for TLS.
    api_key: None takes FOREBAY_API_KEY. tls: files other than the system's roots, or gRPC's own
    credentials. timeout: seconds for a whole answer, None for no end. retries: whether calls that
    may be are tried again.

    Calls raise Error. Raises: ValueError on an address that is none.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        tls: Tls | grpc.ChannelCredentials | bool | None = None,
        timeout: float | None = TIMEOUT_S,
        retries: bool = True,
    ) -> None:
        self._place = Place(address, api_key, tls, timeout)
        target, credentials = self._place.target()
        options = channel_options(retries)
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._stub = InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what runs on it is cancelled."""
        self._channel.close()

    def chat(
        self,
        *,
        model: str,
        messages: Iterable[requests.MessageLike],
        **options: Unpack[requests.ChatOptions],
    ) -> pb.ChatCompletionResponse:
        """Answer a conversation."""
        values, call = requests.split(options)
        request = requests.chat(model, messages, values)
        answer: pb.ChatCompletionResponse = self._call(self._stub.ChatCompletion, request, call)
        return answer

    def stream_chat(
        self,
        *,
        model: str,
        messages: Iterable[requests.MessageLike],
        **options: Unpack[requests.ChatOptions],
    ) -> Stream[pb.ChatCompletionChunk]:
        """Answer a conversation piece by piece; the last one has the usage."""
        values, call = requests.split(options)
        request = requests.chat(model, messages, values)
        return Stream(self._begin(self._stub.StreamChatCompletion, request, call))

    def complete(
        self, *, model: str, prompt: requests.Texts, **options: Unpack[requests.CompletionOptions]
    ) -> pb.CompletionResponse:
        """Continue texts."""
        values, call = requests.split(options)
        request = requests.completion(model, prompt, values)
        answer: pb.CompletionResponse = self._call(self._stub.Completion, request, call)
        return answer

    def stream_complete(
        self, *, model: str, prompt: requests.Texts, **options: Unpack[requests.CompletionOptions]
    ) -> Stream[pb.CompletionChunk]:
        """Continue texts piece by piece."""
        values, call = requests.split(options)
        request = requests.completion(model, prompt, values)
        return Stream(self._begin(self._stub.StreamCompletion, request, call))

    def embed(
        self, *, model: str, input: requests.Texts, **options: Unpack[requests.EmbedOptions]
    ) -> pb.EmbedResponse:
        """Turn texts into vectors."""
        values, call = requests.split(options)
        request = requests.embed(model, input, values)
        answer: pb.EmbedResponse = self._call(self._stub.Embed, request, call)
        return answer

    def rerank(
        self,
        *,
        model: str,
        query: str,
        documents: Sequence[str],
        **options: Unpack[requests.RerankOptions],
    ) -> pb.RerankResponse:
        """Put documents in order."""
        values, call = requests.split(options)
        request = requests.rerank(model, query, documents, values)
        answer: pb.RerankResponse = self._call(self._stub.Rerank, request, call)
        return answer

    def models(self, **options: Unpack[CallOptions]) -> list[pb.Model]:
        """All models that the key may use."""
        found: list[pb.Model] = []
        token: str | None = None
        while True:
            request = pb.ListModelsRequest(page_token=token)
            page = self._call(self._stub.ListModels, request, options)
            found.extend(page.data)
            if not page.next_page_token:
                return found
            token = page.next_page_token

    def model(self, id: str, **options: Unpack[CallOptions]) -> pb.Model:
        """One model."""
        answer: pb.Model = self._call(self._stub.GetModel, pb.GetModelRequest(id=id), options)
        return answer

    def _begin(self, method: Any, request: Any, options: CallOptions) -> Any:
        place = self._place
        return method(request, timeout=place.limit_s(options), metadata=place.metadata(options))

    def _call(self, method: Any, request: Any, options: CallOptions) -> Any:
        try:
            return self._begin(method, request, options)
        except grpc.RpcError as error:
            raise _error(error) from None


def _metadata(pairs: Any) -> dict[str, str]:
    return {str(key): value for key, value in pairs or () if isinstance(value, str)}


def _error(error: Any) -> Error:
    return to_error(error.code(), error.details(), error.trailing_metadata())

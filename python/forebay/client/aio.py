"""The client for asyncio. To be made where the loop runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, Unpack

import grpc
import grpc.aio

from forebay.client import requests
from forebay.client.connection import TIMEOUT_S, CallOptions, Place, Tls, channel_options
from forebay.client.errors import Cancelled, Error, to_error
from forebay.grpc.v1 import inference_pb2 as pb
from forebay.grpc.v1.inference_pb2_grpc import InferenceServiceStub

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """An answer's messages as they come. Leaving it, or `close`, stops the engine."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """Raises: Error."""
        message = await _told(self._call.read())
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        found: T = message
        return found

    async def __aenter__(self) -> "AsyncStream[T]":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Want no more of it."""
        self._call.cancel()

    async def request_id(self) -> str | None:
        """What the gateway calls the request; waits for the answer's start."""
        return _metadata(await _told(self._call.initial_metadata())).get("x-request-id")


class AsyncClient:
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
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._stub = InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what runs on it is cancelled."""
        await self._channel.close()

    async def chat(
        self,
        *,
        model: str,
        messages: Iterable[requests.MessageLike],
        **options: Unpack[requests.ChatOptions],
    ) -> pb.ChatCompletionResponse:
        """Answer a conversation."""
        values, call = requests.split(options)
        request = requests.chat(model, messages, values)
        answer: pb.ChatCompletionResponse = await self._call(
            self._stub.ChatCompletion, request, call
        )
        return answer

    def stream_chat(
        self,
        *,
        model: str,
        messages: Iterable[requests.MessageLike],
        **options: Unpack[requests.ChatOptions],
    ) -> AsyncStream[pb.ChatCompletionChunk]:
        """Answer a conversation piece by piece; the last one has the usage."""
        values, call = requests.split(options)
        request = requests.chat(model, messages, values)
        return AsyncStream(self._begin(self._stub.StreamChatCompletion, request, call))

    async def complete(
        self, *, model: str, prompt: requests.Texts, **options: Unpack[requests.CompletionOptions]
    ) -> pb.CompletionResponse:
        """Continue texts."""
        values, call = requests.split(options)
        request = requests.completion(model, prompt, values)
        answer: pb.CompletionResponse = await self._call(self._stub.Completion, request, call)
        return answer

    def stream_complete(
        self, *, model: str, prompt: requests.Texts, **options: Unpack[requests.CompletionOptions]
    ) -> AsyncStream[pb.CompletionChunk]:
        """Continue texts piece by piece."""
        values, call = requests.split(options)
        request = requests.completion(model, prompt, values)
        return AsyncStream(self._begin(self._stub.StreamCompletion, request, call))

    async def embed(
        self, *, model: str, input: requests.Texts, **options: Unpack[requests.EmbedOptions]
    ) -> pb.EmbedResponse:
        """Turn texts into vectors."""
        values, call = requests.split(options)
        request = requests.embed(model, input, values)
        answer: pb.EmbedResponse = await self._call(self._stub.Embed, request, call)
        return answer

    async def rerank(
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
        answer: pb.RerankResponse = await self._call(self._stub.Rerank, request, call)
        return answer

    async def models(self, **options: Unpack[CallOptions]) -> list[pb.Model]:
        """All models that the key may use."""
        found: list[pb.Model] = []
        token: str | None = None
        while True:
            request = pb.ListModelsRequest(page_token=token)
            page = await self._call(self._stub.ListModels, request, options)
            found.extend(page.data)
            if not page.next_page_token:
                return found
            token = page.next_page_token

    async def model(self, id: str, **options: Unpack[CallOptions]) -> pb.Model:
        """One model."""
        answer: pb.Model = await self._call(self._stub.GetModel, pb.GetModelRequest(id=id), options)
        return answer

    def _begin(self, method: Any, request: Any, options: CallOptions) -> Any:
        place = self._place
        return method(request, timeout=place.limit_s(options), metadata=place.metadata(options))

    async def _call(self, method: Any, request: Any, options: CallOptions) -> Any:
        return await _told(self._begin(method, request, options))


async def _told(awaited: Awaitable[Any]) -> Any:
    """What comes of a call. Raises: Error."""
    try:
        return await awaited
    except grpc.aio.AioRpcError as error:
        raise _error(error) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # gRPC says so of a call that was closed, though nobody cancelled who waits for it.
        raise Cancelled("The call was closed.", grpc.StatusCode.CANCELLED) from None


def _metadata(pairs: Any) -> dict[str, str]:
    return {str(key): value for key, value in pairs or () if isinstance(value, str)}


def _error(error: Any) -> Error:
    return to_error(error.code(), error.details(), error.trailing_metadata())

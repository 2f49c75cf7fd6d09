"""The models that a key may use: `ListModels` and `GetModel`."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from forebay._core import Core
from forebay.gateway.request_id import own_request_id, request_id
from forebay.grpc.call import Context, Handler, Metadata, fail, read_headers, read_message, unary
from forebay.grpc.v1 import inference_pb2 as pb

CREATED = 1_767_225_600
"""Unix seconds. Models carry no date of their own here; OpenAI's clients need one."""
MOST = 1000

M = TypeVar("M", bound=Message)


async def read_as(kind: Callable[[], M], context: Context, core: Core) -> M:
    """The call's message. Raises: grpc.aio.AbortError where it is none of that kind."""
    message = kind()
    try:
        message.ParseFromString(await read_message(context, core))
    except DecodeError:
        await fail(
            context,
            core.grpc_error(
                "invalid_request",
                f"The request is no {message.DESCRIPTOR.name}.",
                code="invalid_message",
            ),
        )
    return message


class Models:
    """The methods that tell of models."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def handlers(self) -> dict[str, Handler]:
        """Each method's handler by its full name."""
        service = "/forebay.v1.InferenceService"
        return {
            f"{service}/ListModels": unary(self._core, self._list),
            f"{service}/GetModel": unary(self._core, self._get),
        }

    async def _names(self, context: Context) -> tuple[list[str], Metadata]:
        """The models that the caller may use, and the metadata that all answers end with."""
        headers = own_request_id(read_headers(context))
        told: Metadata = (("x-request-id", request_id(headers)),)
        refusal = self._core.grpc_refusal(headers)
        if refusal is not None:
            await fail(context, refusal, told)
        names = self._core.models(headers)
        assert isinstance(names, list)
        context.set_trailing_metadata(told)
        return sorted(names), told

    async def _list(self, _: object, context: Context) -> bytes:
        names, told = await self._names(context)
        request = await read_as(pb.ListModelsRequest, context, self._core)
        size = min(request.page_size if request.HasField("page_size") else MOST, MOST)
        if size < 1:
            status = self._core.grpc_error(
                "invalid_request",
                "Invalid value for 'page_size': page_size is at least 1.",
                param="page_size",
                code="invalid_value",
            )
            await fail(context, status, told)
        after = request.page_token
        left = [name for name in names if name > after]
        answer = pb.ListModelsResponse(data=[_model(name) for name in left[:size]])
        if len(left) > size:
            answer.next_page_token = left[size - 1]
        return answer.SerializeToString()

    async def _get(self, _: object, context: Context) -> bytes:
        names, told = await self._names(context)
        request = await read_as(pb.GetModelRequest, context, self._core)
        if request.id not in names:
            shown = request.id[:200]
            status = self._core.grpc_error(
                "model_not_found",
                f"The model '{shown}' does not exist or you do not have access to it.",
                param="id",
            )
            await fail(context, status, told)
        return _model(request.id).SerializeToString()


def _model(name: str) -> pb.Model:
    return pb.Model(id=name, created=CREATED, owned_by="forebay")

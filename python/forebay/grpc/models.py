"""The models that a key may use: `ListModels` and `GetModel`."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from forebay._core import Core
from forebay.gateway.request_id import Headers, own_request_id
from forebay.grpc.accept import Whole
from forebay.grpc.call import (
    Context,
    Reply,
    fail,
    named,
    read_headers,
    read_message,
    refuse,
    unary,
)
from forebay.grpc.v1 import inference_pb2 as pb

CREATED = 1_767_225_600
"""Unix seconds. Models carry no date of their own here; OpenAI's clients need one."""
MOST = 1000

M = TypeVar("M", bound=Message)


async def read_as(
    kind: Callable[[], M], context: Context, core: Core, headers: Headers | None = None
) -> M:
    """The call's message. headers: as of `refuse`.

    Raises: grpc.aio.AbortError where it is none of that kind.
    """
    message = kind()
    try:
        message.ParseFromString(await read_message(context, core, headers))
    except DecodeError:
        wrong = f"The request is no {message.DESCRIPTOR.name}."
        await refuse(
            context, core, "invalid_request", wrong, headers=headers, code="invalid_message"
        )
    return message


class Models:
    """The methods that tell of models."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def handlers(self) -> dict[str, Whole]:
        """Each method's handler by its full name."""
        service = "/forebay.v1.InferenceService"
        return {
            f"{service}/ListModels": unary(self._core, self._list),
            f"{service}/GetModel": unary(self._core, self._get),
        }

    async def _names(self, context: Context) -> tuple[list[str], Headers]:
        """The models that the caller may use, and its headers with the request's id."""
        headers = own_request_id(read_headers(context))
        refusal = self._core.grpc_refusal(headers)
        if refusal is not None:
            await fail(context, refusal, named(headers))
        names = self._core.models(headers)
        assert isinstance(names, list)
        return sorted(names), headers

    async def _list(self, context: Context) -> Reply:
        names, headers = await self._names(context)
        request = await read_as(pb.ListModelsRequest, context, self._core, headers)
        size = min(request.page_size if request.HasField("page_size") else MOST, MOST)
        if size < 1:
            await refuse(
                context,
                self._core,
                "invalid_request",
                "Invalid value for 'page_size': page_size is at least 1.",
                headers=headers,
                param="page_size",
                code="invalid_value",
            )
        after = request.page_token
        left = [name for name in names if name > after]
        answer = pb.ListModelsResponse(data=[_model(name) for name in left[:size]])
        if len(left) > size:
            answer.next_page_token = left[size - 1]
        return named(headers), answer.SerializeToString(), ()

    async def _get(self, context: Context) -> Reply:
        names, headers = await self._names(context)
        request = await read_as(pb.GetModelRequest, context, self._core, headers)
        if request.id not in names:
            await refuse(
                context,
                self._core,
                "model_not_found",
                f"The model '{request.id[:200]}' does not exist or you do not have access to it.",
                headers=headers,
                param="id",
            )
        return named(headers), _model(request.id).SerializeToString(), ()


def _model(name: str) -> pb.Model:
    return pb.Model(id=name, created=CREATED, owned_by="forebay")

"""`forebay.v1.InferenceService`: messages go to the core and come from it as they are on the wire.

No message of an inference is ever an object of Python's: the core reads and writes them.
"""

import asyncio
from typing import TYPE_CHECKING

from forebay._core import WAYS, Exchange
from forebay.grpc.accept import Many, Whole
from forebay.grpc.call import (
    Context,
    Handler,
    Reply,
    fail,
    failed_with,
    many,
    read_headers,
    read_message,
    unary,
)
from forebay.grpc.running import Answer as Out
from forebay.grpc.v1 import inference_pb2

if TYPE_CHECKING:
    from forebay.gateway import Gateway

DEADLINE_S = 0.25
"""Seconds before a call's deadline in which a cancellation is taken for it, as the client's clock
began earlier; and seconds after it in which the core ends the request by itself.
"""

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_NOTHING = b""
REQUEST_ID = "x-request-id"


class Inference:
    """The methods that ask a model."""

    def __init__(self, gateway: "Gateway") -> None:
        self._core = gateway.core

    def handlers(self) -> dict[str, Handler]:
        """Each method's handler by its full name."""
        found: dict[str, Handler] = {}
        for way, path in enumerate(WAYS):
            service, _, name = path.removeprefix("/").partition("/")
            if service != _SERVICE.full_name:
                continue
            if _SERVICE.methods_by_name[name].server_streaming:
                found[path] = self._streaming(way)
            else:
                found[path] = self._unary(way)
        return found

    def _unary(self, way: int) -> Whole:
        async def serve(context: Context) -> Reply:
            exchange = await self._admit(way, context)
            try:
                answer = exchange.start_call()
                if isinstance(answer, asyncio.Future):
                    answer = await answer
            except asyncio.CancelledError:
                self._gone(exchange, context)
                raise
            if answer is None:
                raise asyncio.CancelledError
            first, last, message, _ = answer
            failure = exchange.failure(dict(first).get(REQUEST_ID, ""))
            if failure is not None:
                await fail(context, failure, (*first, *last))
            return first, message, last

        return unary(self._core, serve)

    def _streaming(self, way: int) -> Many:
        async def serve(context: Context, out: Out) -> None:
            exchange = await self._admit(way, context)
            try:
                answer = exchange.start_call()
                if isinstance(answer, asyncio.Future):
                    answer = await answer
                if answer is None:
                    raise asyncio.CancelledError
                first, last, _, more = answer
                id = dict(first).get(REQUEST_ID, "")
                # What a stream has said before it failed is told first.
                failure = None if more else exchange.failure(id)
                if failure is not None:
                    await fail(context, failure, (*first, *last))
                out.head(first)
                while True:
                    batch = exchange.next_messages()
                    if isinstance(batch, asyncio.Future):
                        await out.begin()
                        batch = await batch
                    if batch is None:
                        break
                    # It waits while the client does not read, and then so does the engine.
                    await out.send(batch)
            except BaseException:
                self._gone(exchange, context)
                raise
            failure = exchange.failure(id)
            if failure is None:
                await out.end(last)
            else:
                code, text, _ = failure
                await out.end(failed_with(failure, last), code, text)

        return many(self._core, serve)

    async def _admit(self, way: int, context: Context) -> Exchange:
        headers = read_headers(context)
        # Whoever may not ask at all does not get to fill memory either.
        allowed = self._core.authenticate(headers) is None
        message = await read_message(context, self._core) if allowed else _NOTHING
        return self._core.admit(
            way, headers, message, front="grpc", deadline_s=context.time_remaining()
        )

    def _gone(self, exchange: Exchange, context: Context) -> None:
        """The call was cancelled: by its client, or by gRPC at its deadline.

        At the deadline the core ends the request too, and books it as what it is.
        """
        left = context.time_remaining()
        if left is not None and left < DEADLINE_S:
            asyncio.get_running_loop().call_later(left + DEADLINE_S, exchange.cancel)
        else:
            exchange.cancel()

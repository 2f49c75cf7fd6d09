"""One call: its metadata, its message, and how it fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import grpc.aio
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from forebay._core import Core
from forebay.gateway.request_id import Headers, own_request_id, request_id
from forebay.grpc.accept import Many, Whole
from forebay.grpc.bounded import Bounded
from forebay.grpc.running import Answer, Pairs

log = structlog.get_logger("forebay.grpc")

READ_S = 30.0
"""Seconds that a request's message may take to arrive."""
PUSHBACK_MS = 30_000
"""Milliseconds; clients that retry by themselves are not told to wait for longer than that."""

_reading = Bounded(READ_S)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata = Pairs
Status = tuple[int, str, bytes]
"""A failure: gRPC's code, the message, and a `google.rpc.Status` in its wire form."""
Handler: TypeAlias = "Whole | Many | grpc.RpcMethodHandler[Any, Any]"

CODES = {code.value[0]: code for code in grpc.StatusCode}
DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
_READ = frozenset(
    {
        "authorization",
        "x-api-key",
        "x-request-id",
        "x-session-id",
        "x-forebay-tags",
        "idempotency-key",
        "traceparent",
        "tracestate",
    }
)


def read_headers(context: Context) -> Headers:
    """The metadata that the gateway reads, as HTTP headers. A key may come as `x-api-key` too."""
    headers = [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in context.invocation_metadata() or ()
        if key in _READ
    ]
    key = None
    for name, value in headers:
        if name == b"authorization":
            return headers
        if name == b"x-api-key" and key is None:
            key = value
    if key is not None:
        headers.append((b"authorization", b"Bearer " + key))
    return headers


async def fail(context: Context, status: Status, metadata: Metadata = ()) -> NoReturn:
    """End the call with a failure; the error's headers and details are trailing metadata.

    Raises: grpc.aio.AbortError, always.
    """
    number, message, _ = status
    await context.abort(CODES[number], message, failed_with(status, metadata))
    raise AssertionError("abort returns never")


def failed_with(status: Status, metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a failure. metadata: the error's headers."""
    number, _, details = status
    return (*metadata, *_pushback(CODES[number], metadata), (DETAILS, details))


def _pushback(code: grpc.StatusCode, metadata: Metadata) -> Metadata:
    """What tells clients that retry by a policy when to, or with -1 that they should not.

    Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
    """
    if code not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
        return ()
    told = dict(metadata)
    wait = told.get("retry-after-ms")
    if told.get("x-should-retry") == "false":
        return ((_PUSHBACK, "-1"),)
    if wait is None:
        # Of what is exhausted only a rate comes back.
        return ((_PUSHBACK, "-1"),) if code is grpc.StatusCode.RESOURCE_EXHAUSTED else ()
    return ((_PUSHBACK, wait if int(wait) <= PUSHBACK_MS else "-1"),)


async def refuse(
    context: Context,
    core: Core,
    kind: str,
    message: str,
    *,
    headers: Headers | None = None,
    param: str | None = None,
    code: str | None = None,
    cause: str | None = None,
) -> NoReturn:
    """End the call with an error of ours. headers: those of `own_request_id`; None: the call's.

    Raises: grpc.aio.AbortError, always.
    """
    headers = own_request_id(read_headers(context)) if headers is None else headers
    status = core.grpc_error(kind, message, headers=headers, param=param, code=code, cause=cause)
    await fail(context, status, named(headers))


def named(headers: Headers) -> Metadata:
    """The metadata that names a request. headers: those of `own_request_id`."""
    return (("x-request-id", request_id(headers)),)


async def read_message(context: Context, core: Core, headers: Headers | None = None) -> bytes:
    """The call's one message. headers: as of `refuse`.

    Raises: grpc.aio.AbortError where there is none in time.
    """
    try:
        message = await _reading.wait(context.read())
    except TimeoutError:
        late = "The request did not arrive in time."
        await refuse(context, core, "invalid_request", late, headers=headers, code="slow_body")
    if message is grpc.aio.EOF:
        # It ended without one, or with a part of one. gRPC's own handlers would never answer.
        none = "The request has no message."
        await refuse(context, core, "invalid_request", none, headers=headers, code="bad_body")
    assert isinstance(message, bytes)
    return message


Reply = tuple[Metadata, bytes, Metadata]
"""Initial metadata, the message, trailing metadata."""
T = TypeVar("T")


def guarded(
    core: Core, serve: Callable[[Context], Awaitable[T]]
) -> Callable[[Context], Awaitable[T]]:
    """`serve`, with faults of ours answered as such instead of with their text."""

    async def call(context: Context) -> T:
        try:
            return await serve(context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except cygrpc.ExecuteBatchError:
            # The client has gone in the middle of a write.
            raise asyncio.CancelledError from None
        except Exception:
            log.exception("request failed")
            await refuse(context, core, "internal", "The gateway failed. Please try again.")

    return call


def unary(core: Core, serve: Callable[[Context], Awaitable[Reply]]) -> Whole:
    """A method with one answer, whose `serve` reads its message itself."""
    return Whole(guarded(core, serve))


def many(core: Core, serve: Callable[[Context, Answer], Awaitable[None]]) -> Many:
    """A method with many answers, whose `serve` reads its message and sends all itself."""

    async def call(context: Context, answer: Answer) -> None:
        try:
            await serve(context, answer)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except cygrpc.ExecuteBatchError:
            raise asyncio.CancelledError from None
        except Exception:
            log.exception("request failed")
            failed = "The gateway failed. Please try again."
            headers = own_request_id(read_headers(context))
            status = core.grpc_error("internal", failed, headers=headers)
            code, text, _ = status
            await answer.end(failed_with(status, named(headers)), code, text)

    return Many(call)


def streaming(
    core: Core,
    serve: Callable[[Context], Awaitable[None]],
    serializer: Callable[[Any], bytes] | None = None,
) -> Handler:
    """A method with many answers, whose `serve` reads its message and writes them itself.

    serializer: makes bytes of what it writes; None: it writes bytes.
    """
    watched = guarded(core, serve)

    async def call(_: object, context: Context) -> None:
        await watched(context)

    handler: Handler = grpc.stream_stream_rpc_method_handler(call, None, serializer)
    return handler

"""Taking calls in: grpc.aio's server with an accepting loop of our own.

grpc.aio (1.85) decodes the path of every call as UTF-8 in the one task that accepts calls, and
ends for good when that fails: a single request of anybody with the path ``/\\xff`` takes the server
down. Here the methods are known to gRPC's core, which matches their paths by bytes, each has a
task that accepts its calls, and every other call, whatever its path, is answered as unknown
without looking at it. That costs less CPU too, as nothing waits for all methods at once; and an
answer of one message leaves in one batch with its metadata and its status, for which grpc.aio
takes two.

It stands on names inside `grpc._cython.cygrpc` that may change with a minor version, which is why
the version of grpcio has an upper bound.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """A method with one answer.

    serve: gets a call's context and gives initial metadata, the message, and trailing metadata.
    """

    serve: Callable[[Any], Awaitable[tuple[Pairs, bytes, Pairs]]]


Handlers = Mapping[str, "Whole | grpc.RpcMethodHandler[Any, Any]"]
"""What answers each method, by its full name: ``/package.Service/Method``."""

_NO_FLAGS = 0
_OK = 0


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]
    """The part of grpc.aio's server that accepts calls."""

    def prepare(self, loop: asyncio.AbstractEventLoop, handlers: Handlers) -> None:
        """Take the methods in, before the start."""
        self._own_loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self.running: Counter[str] = Counter()
        self.fewer = asyncio.Event()
        self._ending = False
        self._over: asyncio.Future[Any] = loop.create_future()
        self._ended_for_good = False
        self._whole = {name: h.serve for name, h in handlers.items() if isinstance(h, Whole)}
        self._known = cygrpc._MethodResolver([], dict(handlers))
        self._unknown = cygrpc._MethodResolver([], {})
        self.add_registered_method_handlers(dict(handlers))

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        """What the loop of grpc.aio waits for: the end. It asks once for each method."""
        self._spawn(self._accept(method))
        return self._over

    def _spawn(self, work: Coroutine[Any, Any, None], method: str = "") -> None:
        task = self._own_loop.create_task(work)
        self._tasks.add(task)
        self.running[method] += 1
        task.add_done_callback(partial(self._ended, method))

    def _ended(self, method: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.running[method] -= 1
        self.fewer.set()

    async def _accept(self, method: bytes | None) -> None:
        """Take the calls of one method, or with None those of no method."""
        name = "" if method is None else method.decode()
        resolver = self._unknown if method is None else self._known
        loop = self._own_loop
        while True:
            try:
                if method is None:
                    state = await self._request_call()
                else:
                    state = await self._request_registered_call(method)
            except cygrpc._RequestCallError as error:
                if not self._ending:
                    continue
                if not self._over.done():
                    self._over.set_exception(error)
                return
            if (serve := self._whole.get(name)) is not None:
                call = self._answer(state, serve)
            else:
                call = cygrpc._handle_rpc(name, resolver, (), state, loop, False)
            self._spawn(cygrpc._schedule_rpc_coro(call, state, loop, name), name)

    async def _answer(self, state: Any, serve: Callable[[Any], Awaitable[Any]]) -> None:
        """Serve a call whose answer is one message."""
        first, message, last = await serve(
            cygrpc._ServicerContext(state, None, None, self._own_loop)
        )
        if self._ended_for_good:
            # gRPC's core is gone, and the call with it.
            raise asyncio.CancelledError
        batch = (
            cygrpc.SendInitialMetadataOperation(first, _NO_FLAGS),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(last, _OK, "", _NO_FLAGS),
        )
        try:
            await cygrpc.execute_batch(state, batch, self._own_loop)
        except cygrpc.ExecuteBatchError:
            # The client has gone.
            raise asyncio.CancelledError from None

    async def shutdown(self, grace: float | None) -> None:
        """As grpc.aio has it; may be called again, with less grace."""
        self._ending = True
        await super().shutdown(grace)
        self._ended_for_good = True


class Server:
    """A server of these methods alone. options: gRPC's channel arguments."""

    def __init__(self, handlers: Handlers, options: list[tuple[str, Any]]) -> None:
        loop = asyncio.get_running_loop()
        self._inner = _AioServer(loop, None, (), None, tuple(options), None)
        self._inner.prepare(loop, handlers)
        self._outer = grpc.aio.server()
        self._outer._server = self._inner  # type: ignore[attr-defined]

    def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen once started; the port. Raises: RuntimeError where that cannot be."""
        if credentials is None:
            return self._outer.add_insecure_port(address)
        return self._outer.add_secure_port(address, credentials)

    async def start(self) -> None:
        """Accept connections and calls."""
        await self._outer.start()

    async def stop(self, grace_s: float) -> None:
        """Accept no more at once; what runs is cancelled after `grace_s`. May be called again."""
        await self._outer.stop(grace_s)

    async def idle(self, service: str, within_s: float) -> None:
        """Wait until no call of a service runs: the last byte of each is with the system.

        Raises: TimeoutError.
        """
        prefix = f"/{service}/"
        inner = self._inner
        async with asyncio.timeout(within_s):
            while any(n for method, n in inner.running.items() if method.startswith(prefix)):
                inner.fewer.clear()
                await inner.fewer.wait()

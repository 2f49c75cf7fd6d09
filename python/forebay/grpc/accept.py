"""Taking calls in: grpc.aio's server with an accepting loop of our own.

grpc.aio (1.85) decodes the path of every call as UTF-8 in the one task that accepts calls, and
ends for good when that fails: a single request of anybody with the path ``/\\xff`` takes the server
down. Here the methods are known to gRPC's core, which matches their paths by bytes, each has a
task that accepts its calls, and every other call, whatever its path, is answered as unknown
without looking at it. That costs less CPU too, as nothing waits for all methods at once; and a call
has one task where grpc.aio has two.

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
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from forebay.grpc import wakeups
from forebay.grpc.running import Answer, Pairs, Running

wakeups.join()


@dataclass(frozen=True, slots=True)
class Whole:
    """A method with one answer.

    serve: gets a call's context and gives initial metadata, the message, and trailing metadata.
    """

    serve: Callable[[Any], Awaitable[tuple[Pairs, bytes, Pairs]]]


@dataclass(frozen=True, slots=True)
class Many:
    """A method with many answers.

    serve: gets a call's context and what sends its answers, the status too.
    """

    serve: Callable[[Any, Answer], Awaitable[None]]


Handlers = Mapping[str, "Whole | Many | grpc.RpcMethodHandler[Any, Any]"]
"""What answers each method, by its full name: ``/package.Service/Method``."""

log = structlog.get_logger("forebay.grpc")


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]
    """The part of grpc.aio's server that accepts calls."""

    def prepare(self, loop: asyncio.AbstractEventLoop, handlers: Handlers) -> None:
        """Take the methods in, before the start."""
        self._own_loop = loop
        self._tasks: set[object] = set()
        self.running: Counter[str] = Counter()
        self.fewer = asyncio.Event()
        self._ending = False
        self._over: asyncio.Future[Any] = loop.create_future()
        self._ended_for_good = False
        self._ours = {n: h for n, h in handlers.items() if isinstance(h, Whole | Many)}
        self._known = cygrpc._MethodResolver([], dict(handlers))
        self._unknown = cygrpc._MethodResolver([], {})
        self.add_registered_method_handlers(dict(handlers))

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        """What the loop of grpc.aio waits for: the end. It asks once for each method."""
        self._spawn(self._accept(method))
        return self._over

    def _spawn(self, work: Coroutine[Any, Any, None], method: str = "") -> None:
        task = self._own_loop.create_task(work)
        self._began(method, task)
        task.add_done_callback(partial(self._ended, method))

    def _began(self, method: str, work: object) -> None:
        self._tasks.add(work)
        self.running[method] += 1

    def _ended(self, method: str, work: object) -> None:
        self._tasks.discard(work)
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
            if (ours := self._ours.get(name)) is not None:
                serve = self._answer(state, ours)
                self._began(name, Running(state, serve, loop, name, self._ended))
            else:
                call = cygrpc._handle_rpc(name, resolver, (), state, loop, False)
                self._spawn(cygrpc._schedule_rpc_coro(call, state, loop, name), name)

    async def _answer(self, state: Any, method: Whole | Many) -> None:
        """Serve a call of a method of ours."""
        context = cygrpc._ServicerContext(state, None, None, self._own_loop)
        answer = Answer(state, self._own_loop, self._is_over)
        try:
            if isinstance(method, Many):
                await method.serve(context, answer)
            else:
                first, message, last = await method.serve(context)
                answer.head(first)
                await answer.whole(message, last)
        except (grpc.aio.AbortError, cygrpc.ExecuteBatchError, asyncio.CancelledError):
            # It has its status, or its client has gone.
            return
        except Exception:
            log.exception("call failed")

    def _is_over(self) -> bool:
        return self._ended_for_good

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

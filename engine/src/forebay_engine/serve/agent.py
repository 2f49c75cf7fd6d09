"""The engine's agent: its state, and the words wake, park and drain, over HTTP.

A gateway asks it instead of guessing from refused connections, and an autoscaler counts by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec

from forebay_engine.serve.metrics import render
from forebay_engine.serve.supervisor import Supervisor

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError:
    raise ValueError("the agent needs more: pip install 'forebay-engine[serve]'") from None

Members = Callable[[], Sequence[Supervisor]]
"""The engines that it tells of, in their order. One, or a pool's."""


def state(supervisor: Supervisor) -> dict[str, Any]:
    """What `GET /state` answers."""
    load = supervisor.load
    told = None
    if load is not None:
        told = {
            "running": load.running,
            "queued": load.queued,
            "kv_used": load.kv_used,
            "age_s": round(supervisor.load_age_s or 0.0, 3),
        }
    return {
        "state": supervisor.state,
        "parked": supervisor.parked,
        "since_s": round(supervisor.since_s, 3),
        "engine": {
            "kind": supervisor.kind.name,
            "model": supervisor.profile.served_name,
            "url": supervisor.profile.url,
            "pid": supervisor.pid,
        },
        "phases": msgspec.to_builtins(supervisor.phases),
        "load": told,
    }


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Agent:
    """The application. Words begin what they say and answer at once; the state tells the rest."""

    def __init__(
        self, members: Members, *, key: str | None = None, routes: Sequence[Route] = ()
    ) -> None:
        """key: asked for by all paths but `/ready`. routes: more of them, asked for it too."""
        self._members = members
        self._key = key
        self._tasks: set[asyncio.Task[None]] = set()
        own = [
            Route("/state", self._state),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/wake", self._wake, methods=["POST"]),
            Route("/park", self._park, methods=["POST"]),
            Route("/drain", self._drain, methods=["POST"]),
        ]
        self._app = Starlette(routes=[*own, *routes], exception_handlers={Refused: _refused})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] != "/ready" and not self._knows(scope):
            answer = JSONResponse({"error": "the agent's key is asked for"}, 401)
            answer.headers["www-authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def close(self) -> None:
        """Forget what was begun; the engines go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _knows(self, scope: Any) -> bool:
        if self._key is None:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self._key}".encode())

    def _member(self, request: Request) -> Supervisor:
        word = request.query_params.get("member", "0")
        members = self._members()
        if not re.fullmatch("[0-9]{1,6}", word) or int(word) >= len(members):
            raise Refused(404, f"member: there are {len(members)}, from 0")
        return members[int(word)]

    async def _state(self, request: Request) -> Response:
        return JSONResponse(state(self._member(request)))

    async def _ready(self, request: Request) -> Response:
        warm = any(member.state == "warm" for member in self._members())
        return JSONResponse({"ready": warm}, 200 if warm else 503)

    async def _metrics(self, request: Request) -> Response:
        body, content_type = render(self._members())
        return Response(body, headers={"content-type": content_type})

    async def _wake(self, request: Request) -> Response:
        member = self._member(request)
        return await self._accept(member, member.wake())

    async def _park(self, request: Request) -> Response:
        member = self._member(request)
        return await self._accept(member, member.park())

    async def _drain(self, request: Request) -> Response:
        member = self._member(request)
        return await self._accept(member, member.drain(member.profile.drain.grace_s))

    async def _accept(self, member: Supervisor, word: Awaitable[None]) -> Response:
        task = asyncio.ensure_future(_run(word))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # it has begun, so that the state in the answer is the new one
        return JSONResponse({"state": member.state}, 202)


async def _run(word: Awaitable[None]) -> None:
    await word


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 500
    return JSONResponse({"error": str(error)}, status)


def address(word: str, key: str | None) -> tuple[str, int]:
    """HOST:PORT. Raises ValueError: it is none, or open to others without a key."""
    host, mark, port = word.rpartition(":")
    host = host.strip("[]")
    if not mark or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--agent {word}: must be HOST:PORT")
    if key is None and not _loopback(host):
        raise ValueError(f"--agent {word}: others can reach it, so --agent-key is needed")
    return host, int(port)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """uvicorn in a loop that is not its own: signals are the caller's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def address(self) -> str:
        """HOST:PORT that it listens on, once started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(app: Any, host: str, port: int) -> tuple[Server, asyncio.Task[None]]:
    """Listen; returns when it does. Raises OSError: the address is taken.

    End it by `server.should_exit = True`, then await the task.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"{host}:{port}: {error.strerror}") from None
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started and not task.done():  # noqa: ASYNC110 (uvicorn tells no other way)
        await asyncio.sleep(0.01)
    if task.done():
        await task
    return server, task

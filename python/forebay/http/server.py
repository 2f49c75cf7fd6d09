"""Who accepts HTTP connections: the core's listener with the application behind it, or Granian."""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any, Protocol

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from starlette.types import ASGIApp

from forebay._core import Core
from forebay.config import Address, Config, parse_address
from forebay.http.address import AddressInUse, bound_to, reserve, resolve
from forebay.http.body import READ_S

HEADER_READ_S = 15.0
"""Seconds that a connection has for a request's head."""
START_S = 10.0
STOP_S = 5.0
BACKLOG = 4096


class HttpServer(Protocol):
    """Something that serves HTTP at `address` from `start` to `stop`."""

    address: Address

    async def start(self) -> None:
        """Listen; returns once connections are taken. Raises: OSError."""

    async def close_door(self, idle_s: float) -> bool:
        """Accept no more; running requests go on until `stop`.

        idle_s: seconds after which idle connections are closed, unless they bring a request.
        Returns whether the server can: Granian goes on accepting.
        """

    async def stop(self) -> None:
        """Close the listener and every connection; running requests get `STOP_S` seconds."""


def create_server(
    app: ASGIApp, core: Core, config: Config, *, shared: Path | None = None
) -> HttpServer:
    """The server that the configuration names.

    shared: others serve the address too and someone has reserved it; a folder where the
        application's Unix socket may be.
    Raises: AddressInUse.
    """
    address = parse_address(config.listen.http)
    if config.listen.server == "granian":
        header_bytes = config.limits.header_bytes
        return GranianServer(app, address, header_bytes=header_bytes, shared=shared is not None)
    return CoreServer(app, core, address, config, shared)


class CoreServer:
    """The Rust listener, and the application on a Unix socket that only this user can reach."""

    def __init__(
        self, app: ASGIApp, core: Core, address: Address, config: Config, shared: Path | None
    ) -> None:
        self._core = core
        self._limits = config.limits
        self._keep_alive_s = config.listen.keep_alive_s
        self._wanted = resolve(address)
        self._shared = shared is not None
        self._folder = tempfile.TemporaryDirectory(prefix="forebay-", dir=shared)
        self._socket = Path(self._folder.name) / "app.sock"
        self._app = _Granian(app, uds=self._socket)
        self.address = self._wanted

    async def start(self) -> None:
        """See `HttpServer`."""
        await self._app.start(lambda: asyncio.open_unix_connection(self._socket))
        limits = self._limits
        try:
            host, port = self._core.listen(
                self._wanted.host,
                self._wanted.port,
                app=self._socket,
                body_bytes=limits.body_bytes,
                upload_bytes=limits.upload_bytes,
                header_bytes=limits.header_bytes,
                header_read_s=HEADER_READ_S,
                keep_alive_s=self._keep_alive_s,
                body_read_s=READ_S,
                websockets=limits.websockets,
                websocket_idle_s=limits.websocket_idle_s,
                reuse_port=self._shared,
            )
        except OSError as error:
            raise AddressInUse(
                f"cannot listen on {self._wanted}: {error.strerror or error}"
            ) from None
        self.address = Address(host, port)

    async def close_door(self, idle_s: float) -> bool:
        """See `HttpServer`."""
        await asyncio.to_thread(self._core.close_door, idle_s)
        return True

    async def stop(self) -> None:
        """See `HttpServer`."""
        await asyncio.to_thread(self._core.stop_listening, STOP_S)
        await self._app.stop()
        self._folder.cleanup()


class GranianServer:
    """Granian on the public address; the application serves everything.

    header_bytes: largest request head, bytes; also the largest piece in which a body arrives.
    shared: others serve the address too, and someone has reserved it.
    """

    def __init__(self, app: ASGIApp, address: Address, *, header_bytes: int, shared: bool) -> None:
        address = resolve(address)
        # Granian shares its port (SO_REUSEPORT) in any case.
        self._reserved = None if shared else reserve(address)
        self.address = address if self._reserved is None else bound_to(self._reserved)
        host, port = self.address
        self._app = _Granian(
            app,
            address=host,
            port=port,
            backlog=BACKLOG,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(HEADER_READ_S * 1000),
                max_buffer_size=max(header_bytes, 8192),
            ),
            http2_settings=HTTP2Settings(
                max_headers_size=header_bytes, max_concurrent_streams=1000
            ),
        )

    async def start(self) -> None:
        """See `HttpServer`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)
        await self._app.start(lambda: asyncio.open_connection(host, self.address.port))
        if self._reserved is not None:
            self._reserved.close()

    async def close_door(self, idle_s: float) -> bool:
        """See `HttpServer`."""
        return False

    async def stop(self) -> None:
        """See `HttpServer`."""
        await self._app.stop()


class _Granian:
    """Granian in this process's event loop."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        self._server = Server(
            app,
            interface=Interfaces.ASGINL,
            task_impl=TaskImpl.asyncio,
            http=HTTPModes.auto,
            websockets=False,
            log_enabled=False,
            **options,
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self, connect: Any) -> None:
        """Serve; returns once `connect()`, a coroutine function, gets a connection."""
        self._serving = asyncio.create_task(self._server.serve(), name="granian")
        async with asyncio.timeout(START_S):
            while True:
                if self._serving.done():
                    await self._serving
                    raise OSError("the HTTP server ended at its start")
                try:
                    _, writer = await connect()
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                return

    async def stop(self) -> None:
        """Stop; connections still in use after `STOP_S` are cut."""
        if self._serving is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]
        # On a timeout wait_for has cancelled it, and the process is about to end.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._serving, STOP_S)

"""Who accepts HTTP connections: the core's listener with the application behind it, or Granian."""

import asyncio
import contextlib
import socket
import tempfile
from pathlib import Path
from typing import Any, Protocol

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from starlette.types import ASGIApp

from forebay._core import Core
from forebay.config import Address, Config, parse_address
from forebay.http.body import READ_S

HEADER_READ_S = 15.0
"""Seconds that a connection has for a request's head."""
START_S = 10.0
STOP_S = 5.0
BACKLOG = 4096


class AddressInUse(OSError):
    """The address cannot be listened on; the message says which and why."""


class HttpServer(Protocol):
    """Something that serves HTTP at `address` from `start` to `stop`."""

    address: Address

    async def start(self) -> None:
        """Listen; returns once connections are taken. Raises: OSError."""

    async def stop(self) -> None:
        """Close the listener and every connection; running requests get `STOP_S` seconds."""


def create_server(app: ASGIApp, core: Core, config: Config) -> HttpServer:
    """The server that the configuration names. Raises: AddressInUse."""
    address = parse_address(config.listen.http)
    if config.listen.server == "granian":
        return GranianServer(app, address, header_bytes=config.limits.header_bytes)
    return CoreServer(app, core, address, config)


def local_url(address: Address) -> str:
    """Where a client on this machine reaches the address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"http://{Address(host, address.port)}"


class CoreServer:
    """The Rust listener, and the application on a Unix socket that only this user can reach."""

    def __init__(self, app: ASGIApp, core: Core, address: Address, config: Config) -> None:
        self._core = core
        self._config = config
        self._wanted = resolve(address)
        self._folder = tempfile.TemporaryDirectory(prefix="forebay-")
        self._socket = Path(self._folder.name) / "app.sock"
        self._app = _Granian(app, uds=self._socket)
        self.address = self._wanted

    async def start(self) -> None:
        """See `HttpServer`."""
        await self._app.start(lambda: asyncio.open_unix_connection(self._socket))
        limits = self._config.limits
        try:
            host, port = self._core.listen(
                self._wanted.host,
                self._wanted.port,
                app=self._socket,
                body_bytes=limits.body_bytes,
                header_bytes=limits.header_bytes,
                header_read_s=HEADER_READ_S,
                body_read_s=READ_S,
            )
        except OSError as error:
            raise AddressInUse(
                f"cannot listen on {self._wanted}: {error.strerror or error}"
            ) from None
        self.address = Address(host, port)

    async def stop(self) -> None:
        """See `HttpServer`."""
        await asyncio.to_thread(self._core.stop_listening, STOP_S)
        await self._app.stop()
        self._folder.cleanup()


class GranianServer:
    """Granian on the public address; the application serves everything.

    header_bytes: largest request head, bytes; also the largest piece in which a body arrives.
    """

    def __init__(self, app: ASGIApp, address: Address, *, header_bytes: int) -> None:
        self._reserved = reserve(resolve(address))
        host, port = self._reserved.getsockname()[:2]
        self.address = Address(host, port)
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
        self._reserved.close()

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


def resolve(address: Address) -> Address:
    """The address with its host as an IP address. Raises: AddressInUse."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: {error.strerror or error}") from None
    host, port = found[0][4][:2]
    return Address(str(host), int(port))


def reserve(address: Address) -> socket.socket:
    """A bound socket that holds the address until Granian listens on it.

    Granian shares ports between workers (SO_REUSEPORT), so that a second gateway would silently
    get half of the connections: the exclusive bind here tells.

    Raises: AddressInUse.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            name = probe.getsockname()
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(name)
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: {error.strerror or error}") from None
    return held


def write_ready_file(path: Path, text: str) -> None:
    """Write the file whole: whoever waits for it never reads half of it. Readable by us alone."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text(text)
    part.replace(path)


def remove_ready_file(path: Path) -> None:
    """The gateway takes no more requests."""
    path.unlink(missing_ok=True)

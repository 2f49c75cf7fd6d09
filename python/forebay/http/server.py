"""Granian in this process's event loop: sockets, limits on framing, readiness, the end."""

import asyncio
import socket
from pathlib import Path

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from starlette.types import ASGIApp

from forebay.config import Address

HEADER_READ_MS = 15_000
"""Milliseconds that a connection has for a request's head."""
START_S = 10.0
STOP_S = 5.0
BACKLOG = 4096


class AddressInUse(OSError):
    """The address cannot be listened on; the message says which and why."""


class HttpServer:
    """The HTTP listener.

    header_bytes: largest request head, bytes; also the largest piece in which a body arrives.
    """

    def __init__(self, app: ASGIApp, address: Address, *, header_bytes: int) -> None:
        self._reserved = reserve(address)
        host, port = self._reserved.getsockname()[:2]
        self.address = Address(host, port)
        self._server = Server(
            app,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            task_impl=TaskImpl.asyncio,
            http=HTTPModes.auto,
            websockets=False,
            backlog=BACKLOG,
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADER_READ_MS, max_buffer_size=max(header_bytes, 8192)
            ),
            http2_settings=HTTP2Settings(
                max_headers_size=header_bytes, max_concurrent_streams=1000
            ),
            log_enabled=False,
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)
        return f"http://{Address(host, self.address.port)}"

    async def start(self) -> None:
        """Listen; returns once connections are taken. Raises: OSError."""
        self._serving = asyncio.create_task(self._server.serve(), name="granian")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)
        async with asyncio.timeout(START_S):
            while True:
                if self._serving.done():
                    await self._serving
                    raise OSError("the HTTP server ended at its start")
                try:
                    _, writer = await asyncio.open_connection(host, self.address.port)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                break
        self._reserved.close()

    async def stop(self) -> None:
        """Close the listener and every connection, those in use after `STOP_S` too."""
        if self._serving is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]
        try:
            await asyncio.wait_for(self._serving, STOP_S)
        except TimeoutError:
            pass  # wait_for has cancelled it; the process is about to end.


def reserve(address: Address) -> socket.socket:
    """A bound socket that holds the address until the server listens on it.

    Granian shares ports between workers (SO_REUSEPORT), so that a second gateway would silently
    get half of the connections: the exclusive bind here tells.

    Raises: AddressInUse.
    """
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: {error.strerror or error}") from None
    family, _, _, _, name = found[0]
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)
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

"""A server's life: load, listen, say that it is ready, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

from forebay_engine.sim.app import App
from forebay_engine.sim.kinds import make_app, refuses_while_cold
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.wire import Connection

BACKLOG = 2048
"""As uvicorn listens."""
GATE_LATE_S = 0.05


class Server:
    """One simulated server on one port.

    `async with Server(options) as server:` serves until the block ends, at `server.url`.
    """

    def __init__(self, options: SimOptions) -> None:
        self._socket = _bind(options.host, options.port)
        self.options = replace(options, port=self._socket.getsockname()[1])
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.url = f"http://{host}:{self.options.port}"
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._app: App | None = None

    @property
    def app(self) -> App:
        """The routes; only after `start`."""
        if self._app is None:
            raise RuntimeError("the server has not been started")
        return self._app

    async def start(self) -> None:
        """Load (the port refuses meanwhile), then listen. Returns once `/ready` says 200."""
        options = self.options
        if options.gate_port is not None:
            await _gate(options.host, options.gate_port)
        if options.cold_s is not None and refuses_while_cold(options.kind):
            await asyncio.sleep(options.cold_s)
        await asyncio.sleep(options.load_delay_s)
        app = self._app = make_app(options)
        app.warm = self.options.load_delay_s <= 0
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(app, self.connections), sock=self._socket, backlog=BACKLOG
        )
        if not app.warm:
            await asyncio.sleep(self.options.warmup_s)
            app.warm = True

    async def drain(self) -> None:
        """Say not ready, go on serving, and return when no request is in progress.

        Answers that a fault holds back are given 1 s: their clients may wait for ever.
        """
        self.app.draining = True
        while not self.app.engine.idle:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled(), 1.0)

    async def _settled(self) -> None:
        while not self.app.engine.idle or any(c.busy for c in self.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: connections are refused, the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


async def _gate(host: str, port: int) -> None:
    """Wait for `POST /gate/activate`, as an SGLang that is held before its weights."""
    opened = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        right = head.startswith(b"POST /gate/activate ")
        status = b"200 OK" if right else b"404 Not Found"
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        if right:
            opened.set()

    print("Gated launch waiting for activation", flush=True)
    # As there, where a thread serves it, which begins while the line is written.
    await asyncio.sleep(GATE_LATE_S)
    server = await asyncio.start_server(answer, host, port)
    try:
        await opened.wait()
    finally:
        server.close()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _until_orphaned() -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110
        await asyncio.sleep(0.5)


async def _serve(options: SimOptions) -> None:
    server = Server(options)
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        asked.set()
        if signals > 1:
            loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if options.cold_s is not None and refuses_while_cold(options.kind):
        _announce(server)  # so that its address is known while it refuses
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(_wait(asked))
    if options.exit_with_parent:
        orphaned = asyncio.ensure_future(_until_orphaned())
        orphaned.add_done_callback(lambda _: asked.set())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        _announce(server)
        await stopping
        await server.drain()
    else:
        starting.cancel()
    await server.stop()


def _announce(server: Server) -> None:
    options = server.options
    names = ", ".join(options.models + options.embedding_models)
    if options.ready_file is not None:
        path = Path(options.ready_file)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(json.dumps({"url": server.url, "pid": os.getpid()}) + "\n")
        draft.replace(path)
    print(f"forebay-engine sim: serving {names} on {server.url}", flush=True)


def run(options: SimOptions) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends it at once. Returns the exit status."""
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    try:
        with contextlib.suppress(KeyboardInterrupt, RuntimeError), runner:
            runner.run(_serve(options))
    except OSError as error:
        print(f"forebay-engine sim: {options.host}:{options.port}: {error}", file=sys.stderr)
        return 1
    return 0

"""A network to the database that a test may cut."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from forebay.store import EmbeddedPostgres


class Network:
    """Listens on 127.0.0.1 and passes all on to the server's socket, while it is not cut.

    What is cut is closed at once, connections that come are closed too. Muted before, nothing the
    database says arrives: a commit that was made looks like one that was not.
    """

    def __init__(self, server: EmbeddedPostgres) -> None:
        # A server that was stopped has no address; it comes back at the same.
        self._socket = Path(parse_qs(urlsplit(server.url).query)["host"][0]) / ".s.PGSQL.5432"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._cut = self._muted = False
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.cuts = 0

    def __enter__(self) -> "Network":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url_of(self, database_url: str) -> str:
        """The address of a database of the server, by way of this network."""
        name = unquote(urlsplit(database_url).path)
        return f"postgresql://postgres@127.0.0.1:{self.port}{name}?sslmode=disable"

    def mute(self) -> None:
        """From now on nothing that the database says arrives."""
        self._call(lambda: setattr(self, "_muted", True))

    def cut(self) -> None:
        """End every connection, and let none come about."""
        self._call(self._cut_all)

    def restore(self) -> None:
        """Let connections come about again."""
        self._call(self._restore)

    def _call(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def _cut_all(self) -> None:
        self.cuts += 1
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    def _restore(self) -> None:
        self._cut = self._muted = False

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._cut:
                return
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._socket))
            self._open.add(far_writer)
            try:
                await asyncio.gather(
                    self._pass(reader, far_writer, answers=False),
                    self._pass(far_reader, writer, answers=True),
                )
            finally:
                self._open.discard(far_writer)
                far_writer.transport.abort()
        except OSError:
            pass  # the server is stopped, or the connection was cut
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(65_536):
            if not (answers and self._muted):
                writer.write(data)
                await writer.drain()
        # The other direction ends with it.
        writer.transport.abort()

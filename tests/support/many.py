"""Many requests at once from one thread: asyncio, one connection a request."""

import asyncio
import contextlib
import json
import struct
from collections.abc import Awaitable, Callable, Coroutine
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, NamedTuple, TypeVar

from tests.support.databases import run_apart

T = TypeVar("T")


class Got(NamedTuple):
    """An answer. status 0: the connection ended without one. at: seconds on the loop's clock."""

    status: int
    headers: dict[str, str]
    body: bytes
    began: float
    at: float

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """A connection that carries one request, and may be left at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """To a port on 127.0.0.1."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def leave(self, *, reset: bool = False) -> None:
        """Close, or end with an RST as a client's machine that dies does."""
        if reset:
            socket = self.writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the other end was first, and it is closed
                socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()


async def ask(port: int, data: bytes) -> Got:
    """Send the bytes of a request with ``connection: close`` and read all that comes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    connection = await Connection.open(port)
    try:
        connection.writer.write(data)
        try:
            answer = await connection.reader.read()
        except ConnectionError:
            answer = b""
    finally:
        connection.leave()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return Got(0, {}, b"", began, loop.time())
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines[1:])
    headers = {name.lower(): value for name, value in pairs}
    return Got(int(lines[0].split(" ", 2)[1]), headers, body, began, loop.time())


def all_of(work: list[Coroutine[Any, Any, T]], at_once: int) -> list[T]:
    """Run them in a loop of their own, `at_once` at a time; what each returned."""

    async def run() -> list[T]:
        places = asyncio.Semaphore(at_once)

        async def one(coroutine: Coroutine[Any, Any, T]) -> T:
            async with places:
                return await coroutine

        return await asyncio.gather(*map(one, work))

    return run_apart(run)


def until_time(seconds: float, clients: list[Callable[[], Awaitable[None]]]) -> None:
    """Each client does its work over and over for `seconds`, all at once."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def one(client: Callable[[], Awaitable[None]]) -> None:
            while loop.time() < end:
                await client()

        await asyncio.gather(*map(one, clients))

    run_apart(run)

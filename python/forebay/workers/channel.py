"""What a supervisor and a worker tell each other, over a socket pair that they alone hold.

Each message is a kind (1 byte), the length of what follows (4 bytes, big-endian), and that.
"""

import asyncio
import enum
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from forebay.config import Config

T = TypeVar("T")
_HEAD = struct.Struct(">BI")
_MAX_BYTES = 256 * 1024 * 1024
NUMBER_BYTES = 4


class Kind(enum.IntEnum):
    """What a message is. Who sends it follows from what it says; `UPSTREAM` goes both ways."""

    SETTINGS = 1
    """`Settings` as JSON; the first message of all."""
    DRAIN = 2
    """Take no new work and end when what runs has ended."""
    HURRY = 3
    """End now."""
    TELL = 4
    """Send your own figures."""
    FIGURES = 5
    """The figures of all: the number of the `ASK`, then text."""
    READY = 6
    """Requests are taken; facts for the ready file, as JSON."""
    FAILED = 7
    """The worker ends; why, as text."""
    OWN = 8
    """The worker's own figures."""
    ASK = 9
    """Send the figures of all; a number."""
    UPSTREAM = 10
    """An upstream is drained or no longer: `Draining` as JSON, for all workers."""
    RELOAD = 11
    """The configuration was read again: `Reload` as JSON, for all workers."""
    REFUSED = 12
    """The worker does not take the configuration of the last `RELOAD`: `Refusal` as JSON."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with.

    limits_fd: the table of limits, inherited. folder: where its Unix socket may be.
    """

    config: Config
    limits_fd: int
    folder: str

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def receive(cls, end: socket.socket) -> "Settings | None":
        """Wait for the first message, before there is an event loop; None without a supervisor."""
        head = end.recv(_HEAD.size, socket.MSG_WAITALL)
        if len(head) < _HEAD.size:
            return None
        size = _HEAD.unpack(head)[1]
        data = end.recv(size, socket.MSG_WAITALL)
        return None if len(data) < size else msgspec.json.decode(data, type=cls)


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """What reading the configuration again came to.

    number: counts what was put in force. config: is in force from now on. state: for `/readyz`.
    """

    number: int
    config: Config
    state: str

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Reload":
        """From JSON."""
        return msgspec.json.decode(data, type=cls)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a worker goes on with what it had. number: of the `Reload`."""

    number: int
    reason: str

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Refusal":
        """From JSON."""
        return msgspec.json.decode(data, type=cls)


class Draining(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an upstream takes no new requests."""

    upstream: str
    draining: bool

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Draining":
        """From JSON."""
        return msgspec.json.decode(data, type=cls)


class Channel:
    """One end. The other end's death is the end of what it receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """Take over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, kind: Kind, data: bytes = b"") -> None:
        """Send without waiting; lost where the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(_HEAD.pack(kind, len(data)) + data)

    async def receive(self) -> tuple[Kind, bytes] | None:
        """The next message; None once the other end is gone."""
        try:
            kind, size = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if size > _MAX_BYTES:
                raise ValueError(f"a message of {size} bytes")
            return Kind(kind), await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Close this end; what was sent still goes out."""
        self._writer.close()


class Rounds(Generic[T]):
    """Work done for all who wait for it at once, one round after another.

    Who comes while a round runs gets the next one's result, so that it is no older than the
    question, and however many ask, one waits to run at most.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def join(self) -> T:
        """The result of the next round, or what it raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._running))
        return await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        return await self._work()

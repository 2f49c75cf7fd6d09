"""How gRPC's core wakes the event loop.

A thread of grpc.aio (1.85) takes each completed operation from gRPC's core and writes a byte for it
to a socket that the loop watches. The loop then does all that is complete, but reads one byte: for
each of the others it is woken again, to find nothing. Here a wake-up takes all bytes there are.

It stands on the module's name `socket` inside `grpc._cython.cygrpc`, which may change with a minor
version: what then happens is what grpc.aio does by itself.
"""

import socket
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

_MANY = 4096
"""Bytes that one reading takes: more completions at once are read by two."""


class _Emptied(socket.socket):
    """A socket of which every reading takes all there is."""

    def recv(self, *_: Any) -> bytes:
        """What is there, whatever is asked for."""
        return super().recv(_MANY)


class _Sockets:
    """What `cygrpc` takes for the module `socket`. It makes one pair of them, and nothing else."""

    @staticmethod
    def socketpair() -> tuple[socket.socket, socket.socket]:
        """As that of the module; the first end is the one that is read."""
        read, write = socket.socketpair()
        return _Emptied(fileno=read.detach()), write


def join() -> None:
    """From now on grpc.aio, where it begins, wakes a loop once for all that is complete."""
    cygrpc.socket = _Sockets

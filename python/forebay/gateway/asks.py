"""How asks of the core and their answers are written: a line of JSON, then bytes as they are."""

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class Unanswerable(Exception):
    """An ask cannot be answered now, for a reason that is none of a fault's, fit for the log."""


def pack(head: Any, body: bytes = b"") -> bytes:
    """One line of JSON, and after it `body`."""
    return msgspec.json.encode(head) + b"\n" + body


def unpack(payload: bytes, head: type[T]) -> tuple[T, bytes]:
    """What `pack` made.

    Raises: msgspec.DecodeError, msgspec.ValidationError.
    """
    line, _, body = payload.partition(b"\n")
    return msgspec.json.decode(line, type=head), body

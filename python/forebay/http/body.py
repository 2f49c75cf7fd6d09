"""Reading a request's body within bounds of size and time."""

import asyncio
from collections.abc import Iterable

from starlette.types import Receive

READ_S = 30.0
"""Seconds that a body may take: a client that sends a byte now and then holds nothing for long."""
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_S = 10.0
"""How much of a refused body is read, so that its sender gets to read the refusal."""


class TooLarge(Exception):
    """The body is over the limit."""


class Incomplete(Exception):
    """The body broke off, or its framing is broken."""


class TooSlow(Exception):
    """The body did not arrive in time."""


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The declared length, bytes; None without one (chunked, or HTTP/2)."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


async def read_rest(receive: Receive, first: bytes, length: int | None, limit: int) -> bytes:
    """The whole body, of which `first` is here already.

    length: declared, or None. limit: bytes.
    Raises: TooLarge (the rest was drained within bounds), Incomplete, TooSlow.
    """
    if length is not None and length > limit:
        await drain(receive, length - len(first))
        raise TooLarge
    parts = [first]
    size = len(first)
    try:
        async with asyncio.timeout(READ_S):
            # A known length ends the body without asking once more.
            while size != length:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Incomplete
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    break
                parts.append(part)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise TooSlow from None
    if size > limit:
        await drain(receive)
        raise TooLarge
    return b"".join(parts)


async def drain(receive: Receive, expected: int = DRAIN_BYTES) -> None:
    """Read and drop what a refused request still sends, within bounds.

    expected: bytes still to come, so far as that is known.
    """
    left = min(expected, DRAIN_BYTES)
    try:
        async with asyncio.timeout(DRAIN_S):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return

"""What goes wrong, before a kind puts it into its own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Why = Literal[
    "auth", "filter", "full", "invalid", "loading", "model", "other", "overflow", "path", "quota",
    "rate", "stream",
]  # fmt: skip
"""auth: no or wrong credentials. full: its queue. overflow: of the context. other: a fault of that
status. path: nothing there. rate: too many requests. stream: an error within an answer."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it goes out. headers: lines, each with its end."""

    status: int
    body: bytes
    headers: bytes = b""
    content_type: bytes | None = b"application/json"


@dataclass(eq=False)
class Problem(Exception):
    """Something is wrong with a request.

    retry_after_s: whole seconds to wait. tokens, limit: of an overflow. param: the field.
    """

    status: int
    why: Why
    message: str
    retry_after_s: int | None = None
    tokens: int = 0
    limit: int = 0
    param: str | None = None


def invalid(message: str, param: str | None = None, status: int = 400) -> Problem:
    """A request that cannot be read."""
    return Problem(status, "invalid", message, param=param)


SIMULATED = "Simulated failure."
"""Message of the fault `status`, and of `error-event`."""


def why_of(status: int) -> Why:
    """What a fault of that status is about."""
    known: dict[int, Why] = {401: "auth", 404: "model", 413: "invalid", 429: "rate"}
    return known.get(status, "other" if status >= 500 else "invalid")

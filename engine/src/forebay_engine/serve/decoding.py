"""What engines say in JSON, read into a form."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decoded(body: bytes | str | msgspec.Raw, form: type[T]) -> T | None:
    """What an engine said; None where it is not of that form. Never raises."""
    try:
        return msgspec.json.decode(body, type=form)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None

"""Waiting for what will happen, without guessing how long it takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], what: str, timeout_s: float = 10.0, every_s: float = 0.005) -> T:
    """The first true value of `probe`. Fails, naming `what`, after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := probe()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(every_s)
    return value

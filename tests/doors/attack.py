"""What a hostile input is, and what has to be true of the answer to any of them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.doors.conftest import Stage

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 5.0
"""Within which every answer comes or the connection ends."""


@dataclass
class Seen:
    """What came back: HTTP statuses (or a door's own codes), and every byte."""

    statuses: list[int] = field(default_factory=list)
    data: bytes = b""


@dataclass(frozen=True)
class Attack:
    """A hostile input. send: does it, with a good key, within `BOUND_S`.

    statuses: what may be answered; nothing at all (a closed connection) is in it as 0.
    """

    name: str
    send: Callable[[Stage, str], Seen]
    statuses: frozenset[int]

    def __str__(self) -> str:
        return self.name


REFUSED = frozenset({400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 431, 501, 505})
"""Statuses that blame the client. 501 and 505: a transfer coding or a version of HTTP."""
ANY = REFUSED | {200, 0}
"""Refused, cut off, or taken, where an engine may make sense of it: never a fault of ours."""


def exchange(stage: Stage, data: bytes, *, parts: int = 1) -> Seen:
    """Send bytes on a connection of their own and read all that comes."""
    seen = Seen()
    deadline = time.monotonic() + BOUND_S
    with socket.create_connection(("127.0.0.1", stage.gateway.port), timeout=2) as client:
        size = max(1, len(data) // parts)
        with contextlib.suppress(OSError):
            for start in range(0, len(data), size):
                client.sendall(data[start : start + size])
        client.settimeout(0.3)
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                # Once an answer is there, a silence of 0.3 s means that it was all.
                try:
                    more = client.recv(262_144)
                except TimeoutError:
                    if seen.data:
                        break
                    client.shutdown(socket.SHUT_WR)  # else nobody would ever move
                    continue
                if not more:
                    break
                seen.data += more
                if b"\r\n0\r\n\r\n" in seen.data or _is_whole(seen.data):
                    break
    seen.statuses = _statuses(seen.data)
    return seen


def _is_whole(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if not found or b"content-length: " not in lower:
        return False
    return len(body) >= int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])


def _statuses(data: bytes) -> list[int]:
    if not data:
        return [0]
    found = []
    for piece in data.split(b"HTTP/1.")[1:]:
        if piece[1:2] == b" " and piece[2:5].isdigit():
            found.append(int(piece[2:5]))
    return [status for status in found if status != 100] or [0]


def leaks(stage: Stage, secret: str, data: bytes) -> list[str]:
    """What of the inside is in an answer."""
    text = data.decode("utf-8", "replace")
    inside = [
        secret,
        stage.admin.key,
        stage.gateway.database_url,
        f"127.0.0.1:{stage.engine.port}",
        *(
            "Traceback",
            "panicked",
            "site-packages",
            "RUST_BACKTRACE",
            f"{ROOT}/",
            "/home/",
            "/tmp/",
        ),
        *(".rs:", 'File "', "asyncpg", "pydantic", "starlette"),
    ]
    return [word for word in inside if word in text]


def well_told(data: bytes) -> bool:
    """An answer with a JSON type has a body that is JSON."""
    head, _, body = data.partition(b"\r\n\r\n")
    if b"application/json" not in head.lower() or b"chunked" in head.lower() or not body:
        return True
    with contextlib.suppress(ValueError):
        json.loads(body)
        return True
    return b"HTTP/1.1" in body  # a second answer follows

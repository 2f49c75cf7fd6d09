"""Prompt logs as the core writes them: sealed, and as a binary COPY. Made from the format alone."""

import base64
import os
import struct
import time
import uuid
from datetime import datetime
from typing import Any

import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from forebay.config.schema import PromptLogs

OLD, NEW = bytes(range(32)), bytes(range(100, 132))
BOTH = PromptLogs(
    keys={"old": base64.b64encode(OLD).decode(), "new": base64.b64encode(NEW).decode()},
    active="new",
)

FIELDS = (
    "event_id", "request_id", "account", "key_id", "model", "at", "level", "status",
    "request_bytes", "answer_bytes", "request_truncated", "answer_truncated", "redactions",
    "enc_key", "request", "answer",
)  # fmt: skip


def event_id(at: float) -> uuid.UUID:
    """A UUIDv7 of a moment, Unix seconds."""
    head = int(at * 1000).to_bytes(6, "big")
    tail = bytearray(os.urandom(10))
    tail[0] = 0x70 | tail[0] & 0x0F
    tail[2] = 0x80 | tail[2] & 0x3F
    return uuid.UUID(bytes=head + bytes(tail))


def seal(key: bytes, event: uuid.UUID, part: int, plain: bytes) -> bytes:
    """Nonce, ciphertext and tag; part: 0 the request, 1 the answer."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, plain, event.bytes + bytes([part]))


def log(
    *,
    request: bytes | None = b'{"messages": [{"content": "hello"}]}',
    answer: bytes | None = b'{"choices": [{"message": {"content": "good day"}}]}',
    key: tuple[str, bytes] = ("new", NEW),
    at: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One log; with contents unless both are None."""
    at = time.time() if at is None else at
    event = changes.pop("event_id", None) or event_id(at)
    bodies = (request, answer)
    sealed = [
        None if body is None else seal(key[1], event, part, body)
        for part, body in enumerate(bodies)
    ]
    full = sealed != [None, None]
    fields: dict[str, Any] = {
        "event_id": event,
        "request_id": "r-1",
        "account": "acme",
        "key_id": "k1",
        "model": "tiny",
        "at": at,
        "level": "full" if full else "metadata",
        "status": 200,
        "request_bytes": None if request is None else len(request),
        "answer_bytes": None if answer is None else len(answer),
        "request_truncated": False,
        "answer_truncated": False,
        "redactions": 0,
        "enc_key": key[0] if full else None,
        "request": sealed[0],
        "answer": sealed[1],
    }
    assert changes.keys() <= fields.keys()
    return {**fields, **changes}


_EPOCH = datetime.fromisoformat("2000-01-01T00:00:00+00:00").timestamp()


def _binary(name: str, value: Any) -> bytes:
    if value is None:
        return struct.pack("!i", -1)
    if name == "event_id":
        data = value.bytes
    elif name == "at":
        data = struct.pack("!q", round((value - _EPOCH) * 1_000_000))
    elif isinstance(value, bool):
        data = struct.pack("!?", value)
    elif isinstance(value, int):
        data = struct.pack("!i", value)
    else:
        data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("!i", len(data)) + data


def copy(logs: list[dict[str, Any]]) -> bytes:
    """A complete binary COPY of the logs."""
    rows = (
        struct.pack("!h", len(FIELDS)) + b"".join(_binary(name, log[name]) for name in FIELDS)
        for log in logs
    )
    return b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0) + b"".join(rows) + struct.pack("!h", -1)


async def insert(url: str, *logs: dict[str, Any]) -> None:
    """Put logs into the table."""

    async def data() -> Any:
        yield copy(list(logs))

    connection = await asyncpg.connect(url)
    try:
        await connection.copy_to_table(
            "prompt_logs", source=data(), columns=FIELDS, format="binary"
        )
    finally:
        await connection.close()

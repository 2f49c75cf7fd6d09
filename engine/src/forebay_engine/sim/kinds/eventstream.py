"""`application/vnd.amazon.eventstream`: length-prefixed frames with two checksums.

Source: the Smithy specification, "Amazon Event Stream"; checked against botocore in tests.
"""

from __future__ import annotations

import struct
import zlib

_STRING = 7


def frame(headers: list[tuple[str, str]], payload: bytes) -> bytes:
    """One frame; all headers are strings."""
    lines = b""
    for name, value in headers:
        key, text = name.encode(), value.encode()
        lines += struct.pack("!B", len(key)) + key + struct.pack("!BH", _STRING, len(text)) + text
    prelude = struct.pack("!II", 16 + len(lines) + len(payload), len(lines))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + lines + payload
    return message + struct.pack("!I", zlib.crc32(message))


def event(kind: str, payload: bytes) -> bytes:
    """An event."""
    headers = [(":event-type", kind), (":content-type", "application/json")]
    return frame([*headers, (":message-type", "event")], payload)


def exception(kind: str, payload: bytes) -> bytes:
    """An exception, which ends the stream."""
    headers = [(":exception-type", kind), (":content-type", "application/json")]
    return frame([*headers, (":message-type", "exception")], payload)

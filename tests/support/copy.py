"""PostgreSQL's binary COPY format, as a spool's batches give it, in plain Python."""

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from forebay.metering.shipper import COLUMNS

# 2000-01-01 in Unix microseconds: where PostgreSQL's time begins.
_EPOCH_US = 946_684_800_000_000
_PACKED = {"smallint": ">h", "integer": ">i", "bigint": ">q", "double precision": ">d"}


def field(kind: str, value: Any) -> bytes:
    """One value with its length before it.

    Times are Unix microseconds, ids 16 bytes; bytes elsewhere go as they are.
    """
    if value is None:
        return struct.pack(">i", -1)
    if isinstance(value, bytes):
        data = value
    elif kind in _PACKED:
        data = struct.pack(_PACKED[kind], value)
    elif kind == "timestamptz":
        data = struct.pack(">q", value - _EPOCH_US)
    elif kind == "boolean":
        data = bytes([value])
    elif kind == "jsonb":
        data = b"\1" + (value if isinstance(value, str) else json.dumps(value)).encode()
    else:
        data = str(value).encode()
    return struct.pack(">i", len(data)) + data


def encode(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """These rows, each with all of `COLUMNS`, as a complete binary COPY."""
    parts = [b"PGCOPY\n\xff\r\n\0", struct.pack(">ii", 0, 0)]
    for row in rows:
        parts.append(struct.pack(">h", len(COLUMNS)))
        parts.extend(field(kind, row[name]) for name, kind in COLUMNS.items())
    parts.append(struct.pack(">h", -1))
    return b"".join(parts)

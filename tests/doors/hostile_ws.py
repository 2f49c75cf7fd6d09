"""Hostile handshakes, frames and messages on WebSockets."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.doors.attack import ANY, BOUND_S, Attack, Seen, exchange
from tests.doors.conftest import Stage
from tests.doors.hostile_http import BODIES
from tests.doors.hostile_json import fields, whole
from tests.support.doors.ws_wire import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Closed,
    Socket,
    upgrade,
    ws_frame,
)

PATHS = ("/v1/chat/completions", "/v1/responses")
CLOSES = frozenset({1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011})
"""Why a server may close (RFC 6455, 7.4.1). None of them is a status of HTTP."""
OPEN = 1
"""Stands for a socket that stays open and has said nothing within a while."""


def _talk(path: str, data: bytes) -> Callable[[Stage, str], Seen]:
    """Sends bytes on an open socket and hears what comes until it is silent or closed."""

    def send(stage: Stage, key: str) -> Seen:
        seen = Seen()
        with Socket(stage.gateway.port, path, key, timeout_s=0.3) as socket:
            assert not socket.refused, socket.opening
            with contextlib.suppress(OSError):
                socket.send(data)
            deadline = time.monotonic() + BOUND_S
            try:
                while time.monotonic() < deadline:
                    said = socket.hear()
                    with contextlib.suppress(ValueError, TypeError, KeyError):
                        seen.statuses.append(json.loads(said)["status"])
            except TimeoutError:
                seen.statuses.append(OPEN)
            except Closed as closed:
                seen.statuses.append(closed.code)
            seen.data = bytes(socket.data)
        return seen

    return send


def _handshake(data: bytes) -> Callable[[Stage, str], Seen]:
    def send(stage: Stage, key: str) -> Seen:
        return exchange(stage, data.replace(b"{key}", key.encode()))

    return send


def _with(line: str, instead: str) -> bytes:
    data = upgrade(PATHS[0], "{key}").decode("latin-1")
    lines = data.split("\r\n")
    kept = [instead if found.startswith(line) else found for found in lines]
    assert kept != lines
    return "\r\n".join(found for found in kept if found != "-").encode("latin-1")


TALK = frozenset(ANY | CLOSES | {OPEN, 429})


def attacks() -> Iterator[Attack]:
    """All of them."""
    yield from _handshakes()
    yield from _frames()
    yield from _messages()


def _handshakes() -> Iterator[Attack]:
    good = upgrade(PATHS[0], "{key}")
    deflate = "sec-websocket-extensions: permessage-deflate; x=" + "y" * 5_000
    protocols = "sec-websocket-protocol: " + ", ".join(f"p{i}" for i in range(900))
    odd = "sec-websocket-protocol: openai-insecure-api-key.fb-\x01"
    length = good.replace(b"host:", b"content-length: 5\r\nhost:")
    for name, data in {
        "no-key": _with("sec-websocket-key", "-"),
        "short-key": _with("sec-websocket-key", "sec-websocket-key: eA=="),
        "odd-key": _with("sec-websocket-key", "sec-websocket-key: \xff\xfe"),
        "version-8": _with("sec-websocket-version", "sec-websocket-version: 8"),
        "no-version": _with("sec-websocket-version", "-"),
        "no-connection": _with("connection", "connection: close"),
        "post": good.replace(b"GET", b"POST"),
        "http-1.0": good.replace(b"HTTP/1.1", b"HTTP/1.0"),
        "extensions": _with("host", f"host: x\r\n{deflate}"),
        "protocols": _with("host", f"host: x\r\n{protocols}"),
        "protocol-key": _with("authorization", odd),
        "other-path": upgrade("/v1/embeddings", "{key}"),
        "admin-path": upgrade("/admin/v1/keys", "{key}"),
        "nowhere": upgrade("/v1/../admin", "{key}"),
        "frames-at-once": good + ws_frame(PING) * 100 + ws_frame(CLOSE),
        "noise-at-once": good + random.Random(1).randbytes(5_000),
        "body": length + b"12345",
    }.items():
        yield Attack(f"ws-open:{name}", _handshake(data), ANY | {101, 426})


def _frames() -> Iterator[Attack]:
    text = json.dumps(BODIES[PATHS[0]]).encode()
    huge = bytes((0x81, 0xFF)) + struct.pack(">Q", (1 << 63) - 1) + bytes(4)
    signed = bytes((0x81, 0xFF)) + struct.pack(">Q", 1 << 63) + bytes(4)
    for name, data in {
        "unmasked": ws_frame(TEXT, text, masked=False),
        "reserved-bits": ws_frame(TEXT, text, first=0xF1),
        "reserved-opcode": ws_frame(0x3, b"x"),
        "control-opcode": ws_frame(0xB, b"x"),
        "binary": ws_frame(BINARY, text),
        "continuation-alone": ws_frame(0, b"x"),
        "text-in-text": ws_frame(TEXT, b"a", first=0x01) + ws_frame(TEXT, b"b"),
        "never-ended": ws_frame(TEXT, b"a", first=0x01) + ws_frame(0, b"b", first=0x00) * 1_000,
        "many-fragments": ws_frame(TEXT, b"", first=0x01) + ws_frame(0, b"", first=0x00) * 5_000,
        "long-ping": ws_frame(PING, b"x" * 126),
        "cut-ping": ws_frame(PING, b"x", first=0x09),
        "pings": ws_frame(PING, b"x" * 125) * 2_000,
        "huge": huge,
        "negative": signed,
        "over-the-limit": ws_frame(TEXT, b"x" * 1_100_000),
        "over-in-fragments": ws_frame(TEXT, b"x" * 500_000, first=0x01)
        + ws_frame(0, b"x" * 500_000, first=0x00) * 2,
        "not-utf-8": ws_frame(TEXT, b"\xff\xfe"),
        "half-utf-8": ws_frame(TEXT, "é".encode()[:1], first=0x01) + ws_frame(0, b"x"),
        "surrogate": ws_frame(TEXT, b'"\xed\xa0\x80"'),
        "close-1-byte": ws_frame(CLOSE, b"x"),
        "close-0": ws_frame(CLOSE, struct.pack(">H", 0)),
        "close-1005": ws_frame(CLOSE, struct.pack(">H", 1005)),
        "close-65535": ws_frame(CLOSE, struct.pack(">H", 65535)),
        "close-not-utf-8": ws_frame(CLOSE, struct.pack(">H", 1000) + b"\xff"),
        "after-close": ws_frame(CLOSE, struct.pack(">H", 1000)) + ws_frame(TEXT, text) * 50,
        "noise": random.Random(2).randbytes(20_000),
        "http": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "zeros": bytes(10_000),
    }.items():
        yield Attack(f"ws-frame:{name}", _talk(PATHS[0], data), TALK)


def _messages() -> Iterator[Attack]:
    for number, path in enumerate(PATHS):
        good: dict[str, Any] = dict(BODIES[path])
        if path == "/v1/responses":
            good = {"type": "response.create", **good}
        short = path.removeprefix("/v1/")
        drawn = random.Random(number).sample(list(whole(good)), 12)
        for name, body in (*drawn, *fields(good, 40 + number, 8)):
            data = ws_frame(TEXT, body)
            yield Attack(f"ws-{short}:{name}", _talk(path, data), TALK)
        flood = ws_frame(TEXT, json.dumps(good).encode()) * 500
        yield Attack(f"ws-{short}:flood", _talk(path, flood), TALK)
    for name, said in {
        "unknown-type": {"type": "session.update"},
        "no-type": {"model": "tiny"},
        "cancel-nothing": {"type": "response.cancel"},
        "previous": {"type": "response.create", "model": "tiny", "previous_response_id": "../x"},
        "warm-up": {"type": "response.create", "model": {}, "generate": False},
    }.items():
        data = ws_frame(TEXT, json.dumps(said).encode())
        yield Attack(f"ws-responses:{name}", _talk(PATHS[1], data), TALK)

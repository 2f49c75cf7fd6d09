"""Hostile requests over HTTP/1.1: bodies for every path, and heads."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from tests.doors.attack import ANY, REFUSED, Attack, Seen, exchange
from tests.doors.conftest import Stage
from tests.doors.hostile_json import fields, whole
from tests.support.wire import chat

_TEXT = [{"type": "text", "text": "hi"}]
_TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
_RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "1"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": _TEXT},
        ],
        "max_tokens": 5,
        "temperature": 0.5,
        "n": 1,
        "stop": ["x"],
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": "auto",
        "logit_bias": {"1": 1},
        "response_format": {"type": "json_object"},
        "stream": False,
        "user": "u",
    },
    "/v1/completions": {
        "model": "tiny",
        "prompt": ["hi"],
        "max_tokens": 5,
        "logprobs": 1,
        "echo": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/embeddings": {
        "model": "tiny",
        "input": ["hi", "there"],
        "dimensions": 3,
        "encoding_format": "float",
    },
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": _TEXT},
            {"role": "assistant", "content": [_USE]},
            {"role": "user", "content": [_RESULT]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "stream": False,
    },
    "/v1/messages/count_tokens": {
        "model": "tiny",
        "messages": [{"role": "user", "content": _TEXT}],
    },
    "/v1/responses": {
        "model": "tiny",
        "store": False,
        "instructions": "s",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "t", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "t", "output": "1"},
        ],
        "tools": [{"type": "function", **_TOOL}],
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 16,
        "previous_response_id": None,
        "stream": False,
    },
}  # fmt: skip
"""A good request of every path that takes JSON."""


def post(path: str, body: bytes, key: str, *lines: str, length: int | None = None) -> bytes:
    """A request's bytes; lines: more of its head."""
    head = [f"POST {path} HTTP/1.1", "host: gateway.test", f"authorization: Bearer {key}"]
    if not any(line.lower().startswith("content-type") for line in lines):
        head.append("content-type: application/json")
    head += [f"content-length: {len(body) if length is None else length}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def bodies(paths: Mapping[str, dict[str, Any]], seed: int, count: int) -> Iterator[Attack]:
    """Hostile bodies for each path."""
    for number, (path, good) in enumerate(paths.items()):
        short = path.removeprefix("/v1/")
        chosen = list(whole(good))
        if number:  # One reader judges what is JSON at all; each path has some of it all the same.
            chosen = random.Random(seed + number).sample(chosen, 8)
        for name, body in (*chosen, *fields(good, seed + number, count)):
            yield Attack(f"{short}:{name}", _sender(path, body), ANY)


def _sender(path: str, body: bytes, *lines: str) -> Any:
    def send(stage: Stage, key: str) -> Seen:
        return exchange(stage, post(path, body, key, *lines))

    return send


def _raw(data: bytes) -> Any:
    def send(stage: Stage, key: str) -> Seen:
        return exchange(stage, data.replace(b"{key}", key.encode()))

    return send


GOOD = chat()
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
PATH = "/v1/chat/completions"


def heads() -> Iterator[Attack]:
    """Hostile heads, framings and paths."""
    good = json.dumps(GOOD).encode()
    for name, line in {
        "plain": "content-type: text/plain",
        "form": "content-type: application/x-www-form-urlencoded",
        "multipart-without-boundary": "content-type: multipart/form-data",
        "utf-16": "content-type: application/json; charset=utf-16",
        "odd": "content-type: application/json;;;==",
        "html": "content-type: text/html, application/json",
    }.items():
        yield Attack(f"type:{name}", _sender(PATH, good, line), ANY)
    bomb = gzip.compress(b"0" * 50_000_000)
    yield Attack("gzip-bomb", _sender(PATH, bomb, "content-encoding: gzip"), REFUSED)
    yield Attack("gzip-noise", _sender(PATH, good, "content-encoding: gzip, br"), ANY)
    for name, line in {
        "long": "x-long: " + "x" * 100_000,
        "many": "\r\n".join(f"x-{i}: {i}" for i in range(2_000)),
        "nul": "x-nul: a\x00b",
        "fold": "x-fold: a\r\n b",
        "no-colon": "nonsense",
        "space": "x-space : 1",
        "request-id": "x-request-id: a b\x7f",
        "tags": "x-forebay-tags: a=b\x0b, =, ==",
        "traceparent": "traceparent: 00-" + "z" * 500,
        "session": "x-session-id: " + "s" * 8_000,
        "peer": "x-forebay-peer: 10.0.0.1",
        "expect": "expect: 200-maybe",
        "te-twice": "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "te-odd": "transfer-encoding: gzip, chunked",
        "length-twice": "content-length: 3",
        "upgrade": "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
        "idempotency": "idempotency-key: " + "k" * 5_000,
        "idempotency-odd": "idempotency-key: \x01\x02",
        "host-twice": "host: other.test",
        "forwarded": "x-forwarded-for: 127.0.0.1\r\nforwarded: for=127.0.0.1",
    }.items():
        yield Attack(f"head:{name}", _sender(PATH, good, line), ANY)
    for name, line in {
        "none": "",
        "basic": "authorization: Basic YWRtaW46YWRtaW4=\r\n",
        "twice": "authorization: Bearer a\r\nauthorization: Bearer {key}\r\n",
        "long": "authorization: Bearer " + "x" * 60_000 + "\r\n",
        "odd": "authorization: Bearer \xff\xfe\r\n",
        "sql": "authorization: Bearer fb-' OR 1=1 --\r\n",
        "x-api-key": "x-api-key: fb-\x01\r\n",
        "both": "x-api-key: wrong\r\nauthorization: Bearer {key}\r\n",
    }.items():
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{line}content-type: application/json\r\n"
        data = head.encode("latin-1") + b"content-length: %d\r\n\r\n" % len(good) + good
        yield Attack(f"key:{name}", _raw(data), ANY)
    for name, path in {
        "dots": "/v1/../admin/v1/keys",
        "encoded-dots": "/v1/%2e%2e/admin/v1/keys",
        "double": "//v1/chat/completions",
        "up": "/v1/chat/completions/../../../../etc/passwd",
        "nul": "/v1/models/%00",
        "encoded-slash": "/v1/models/..%2f..%2fadmin%2fv1%2fkeys",
        "absolute": "http://169.254.169.254/latest/meta-data",
        "long": "/v1/models/" + "a" * 60_000,
        "query": "/v1/chat/completions?model=other&api_key={key}",
        "fragment": "/v1/chat/completions#x",
        "odd": "/v1/models/\xff\xfe",
        "percent": "/v1/models/%zz%",
        "responses": "/v1/responses/../../admin/v1/keys",
        "responses-id": "/v1/responses/resp_%27%20OR%201=1",
        "file": "/v1/files/..%2f..%2fetc%2fpasswd/content",
        "openapi": "/openapi.json?x=" + "y" * 5_000,
    }.items():
        line = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {{key}}\r\n\r\n"
        yield Attack(f"path:{name}", _raw(line.encode("latin-1")), ANY)
    auth = b"host: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    start = f"POST {PATH} HTTP/1.1\r\n".encode() + auth
    for name, data in {
        "negative-length": start + b"content-length: -1\r\n\r\n" + good,
        "huge-length": start + b"content-length: 99999999999999999999\r\n\r\n" + good,
        "plus-length": start + b"content-length: +5\r\n\r\n" + good,
        "short": start + b"content-length: %d\r\n\r\n" % (len(good) + 50) + good,
        "smuggled": start
        + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        "chunk-size": start + CHUNKED + b"fffffffffffffffff\r\n",
        "chunk-noise": start + CHUNKED + b"zz\r\n",
        "lf-only": (start + b"content-length: 2\r\n\r\n{}").replace(b"\r\n", b"\n"),
        "http-0.9": b"GET /v1/models\r\n\r\n",
        "http-9": start.replace(b"HTTP/1.1", b"HTTP/9.9") + b"\r\n",
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "connect": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: x\r\n\r\n",
        "trace": b"TRACE / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n",
        "options": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        "long-method": b"A" * 50_000 + b" / HTTP/1.1\r\nhost: x\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "noise": random.Random(3).randbytes(8_000),
        "nothing": b"",
        "line-ends": b"\r\n" * 1_000,
    }.items():
        yield Attack(f"wire:{name}", _raw(data), ANY)


def multipart() -> Iterator[Attack]:
    """Bodies of forms that are none, for the paths that take files."""
    good = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\ntiny\r\n--b--\r\n'
    for path in ("/v1/audio/transcriptions", "/v1/files"):
        for name, line, body in (
            ("no-boundary", "multipart/form-data", good),
            ("other-boundary", "multipart/form-data; boundary=zzz", good),
            ("truncated", "multipart/form-data; boundary=b", good[:40]),
            ("no-end", "multipart/form-data; boundary=b", good[:-4]),
            ("long-part-head", "multipart/form-data; boundary=b", b"--b\r\nx: " + b"y" * 200_000),
            ("long-boundary", "multipart/form-data; boundary=" + "b" * 8_000, good),
            (
                "path-name",
                "multipart/form-data; boundary=b",
                good.replace(b'name="model"', b'name="file"; filename="../../../etc/passwd"'),
            ),
            ("many-parts", "multipart/form-data; boundary=b", good[:-4] * 5_000),
            ("noise", "multipart/form-data; boundary=b", random.Random(5).randbytes(5_000)),
        ):
            short = path.removeprefix("/v1/")
            yield Attack(f"{short}:{name}", _sender(path, body, f"content-type: {line}"), ANY)

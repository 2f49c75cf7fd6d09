"""Hostile bodies of JSON, for every door that takes one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

DEPTH = 50_000
_NESTED = b"[" * DEPTH + b"]" * DEPTH
_OBJECTS = b'{"a":' * DEPTH + b"1" + b"}" * DEPTH
TYPES: dict[str, bytes] = {
    "null": b"null",
    "bool": b"true",
    "negative": b"-1",
    "fraction": b"0.5",
    "huge": b"1" + b"0" * 400,
    "exponent": b"1e400",
    "nan": b"NaN",
    "text": b'"x"',
    "empty-text": b'""',
    "list": b"[]",
    "lists": b"[[[[]]]]",
    "object": b"{}",
    "mixed": b'[1,"x",null,{},[]]',
    "deep": b"[" * 500 + b"]" * 500,
    "surrogate": rb'"\ud800"',
    "nul": rb'"\u0000"',
    "long": b'"' + b"x" * 100_000 + b'"',
    "injection": rb'"a\r\nx-injected: 1\r\n\r\n"',
    "path": b'"../../../../etc/passwd"',
}
"""Values of the wrong type, or of the right one and no use."""


def fields(body: dict[str, Any], seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """A good body with one value replaced: so many, drawn from all fields and all types."""
    draw = random.Random(seed)
    every = [(path, kind) for path in _paths(body) for kind in TYPES]
    for path, kind in draw.sample(every, min(count, len(every))):
        yield f"{'.'.join(map(str, path))}={kind}", _replaced(body, path, TYPES[kind])


def whole(body: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """What is no good body at all, or one in disguise."""
    good = json.dumps(body).encode()
    model = json.dumps(body["model"]).encode()
    yield "empty", b""
    yield "null", b"null"
    yield "list", b"[" + good + b"]"
    yield "text", b'"x"'
    yield "truncated", good[: len(good) // 2]
    yield "without-end", good[:-1]
    yield "two", good + good
    yield "trailing", good + b"\x00"
    yield "bom", b"\xef\xbb\xbf" + good
    yield "utf-16", json.dumps(body).encode("utf-16")
    yield "latin-1", good.replace(b'"', b'"\xe9', 1)
    yield "overlong", good.replace(model, b'"\xc0\xaf"')
    yield "comment", b"/*x*/" + good
    yield "quotes", good.replace(b'"', b"'")
    yield "deep-list", good[:-1] + b',"x":' + _NESTED + b"}"
    yield "deep-object", good[:-1] + b',"x":' + _OBJECTS + b"}"
    yield "open-brackets", b"[" * 500_000
    yield "long-number", good[:-1] + b',"x":' + b"9" * 200_000 + b"}"
    yield "nan", good[:-1] + b',"temperature":NaN}'
    yield "infinity", good[:-1] + b',"temperature":-Infinity}'
    yield "twice", good[:-1] + b',"model":"tiny","model":{}}'
    yield "long-key", good[:-1] + b',"' + b"k" * 200_000 + b'":1}'
    yield "many-keys", good[:-1] + b"".join(b',"k%d":%d' % (i, i) for i in range(20_000)) + b"}"
    yield "surrogate-key", good[:-1] + rb',"\ud800":1}'
    yield "surrogate-model", good.replace(model, rb'"tiny\udc00"')
    yield "nul-model", good.replace(model, rb'"tiny\u0000"')
    yield "path-model", good.replace(model, b'"../../admin/v1/keys?x=%2e%2e"')
    yield "header-model", good.replace(model, rb'"tiny\r\nx-injected: 1"')
    yield "long-model", good.replace(model, b'"' + b"m" * 300_000 + b'"')
    yield "too-large", good[:-1] + b',"x":"' + b"y" * 1_100_000 + b'"}'
    draw = random.Random(7)
    yield "noise", draw.randbytes(4096)


def _paths(node: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield (*before, key)
        yield from _paths(value, (*before, key))


def _replaced(body: dict[str, Any], path: tuple[Any, ...], value: bytes) -> bytes:
    mark = "\x01here\x01"
    copy = json.loads(json.dumps(body))
    node = copy
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = mark
    return json.dumps(copy).encode().replace(json.dumps(mark).encode(), value)

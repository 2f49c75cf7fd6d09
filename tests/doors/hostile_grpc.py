"""Hostile messages, metadata and framings of gRPC."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

from forebay.grpc.v1 import inference_pb2 as pb
from google.protobuf import struct_pb2

from tests.doors.attack import Attack, Seen
from tests.doors.conftest import Stage
from tests.support.doors.h2_wire import Answered, call, call_headers, message

SERVICE = "/forebay.v1.InferenceService/"
CLIENT = frozenset({0, 1, 3, 5, 7, 8, 12, 16})
"""Codes that blame the client, or none. Not UNKNOWN, not INTERNAL."""
FRAMING = CLIENT | {2, 13, -1}
"""gRPC's own code for a message that is none is INTERNAL; -1: the stream or connection ended."""


def _seen(got: Answered) -> Seen:
    told = str((got.headers, got.trailers)).encode() + got.data
    return Seen([-1 if got.status is None else got.status], told)


def _call(
    method: str, body: bytes, *metadata: tuple[str, str], keyed: bool = True
) -> Callable[[Stage, str], Seen]:
    def send(stage: Stage, key: str) -> Seen:
        own = [("authorization", f"Bearer {key}")] if keyed else []
        headers = call_headers(SERVICE + method, *own, *metadata)
        return _seen(call(stage.grpc_port, headers, body))

    return send


def varint(number: int) -> bytes:
    """A number as protobuf has it."""
    coded = b""
    while number >= 128:
        coded += bytes((number % 128 | 128,))
        number //= 128
    return coded + bytes((number,))


def tagged(field: int, wire: int, data: bytes) -> bytes:
    """A field; of wire type 2 with its length."""
    return varint(field << 3 | wire) + (varint(len(data)) if wire == 2 else b"") + data


def _deep(depth: int) -> bytes:
    """`extra` with a list in a list in a list."""
    value = b""
    for _ in range(depth):
        value = tagged(6, 2, tagged(1, 2, value))
    return tagged(15, 2, tagged(1, 2, tagged(1, 2, b"x") + tagged(2, 2, value)))


GOOD = pb.ChatCompletionRequest(
    model="tiny", messages=[pb.ChatMessage(role=pb.ROLE_USER, content="hi")], max_tokens=5
).SerializeToString()


def attacks() -> Iterator[Attack]:
    """All of them."""
    yield from _messages()
    yield from _framings()


def _messages() -> Iterator[Attack]:
    nan = pb.ChatCompletionRequest.FromString(GOOD)
    nan.temperature = float("nan")
    infinite = pb.ChatCompletionRequest.FromString(GOOD)
    infinite.top_p = float("-inf")
    inside = pb.ChatCompletionRequest.FromString(GOOD)
    inside.extra.update({"nan": float("nan")})
    names = pb.ChatCompletionRequest.FromString(GOOD)
    names.extra.update({"model": "other", "stream": True, "rid": "x", 'a"b\\': 1.0})
    control = pb.ChatCompletionRequest.FromString(GOOD)
    control.extra.update({"lora_path": "/etc/passwd"})
    url = pb.ChatCompletionRequest(model="tiny")
    part = pb.ContentPart(image_url=pb.ImageUrl(url="file:///etc/passwd"))
    url.messages.append(pb.ChatMessage(role=pb.ROLE_USER, parts=[part]))
    both = pb.ChatCompletionRequest.FromString(GOOD)
    both.messages[0].parts.append(pb.ContentPart(text="x"))
    empty = pb.ChatCompletionRequest.FromString(GOOD)
    empty.messages.append(pb.ChatMessage())
    model = pb.ChatCompletionRequest.FromString(GOOD)
    model.model = '../../admin\r\nx-injected: 1"},'
    wide = pb.ChatCompletionRequest.FromString(GOOD)
    wide.extra.CopyFrom(struct_pb2.Struct())
    wide.extra.update({f"k{i}": float(i) for i in range(20_000)})
    draw = random.Random(11)
    flipped = bytearray(GOOD)
    for _ in range(8):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    found = {
        "nothing": b"",
        "noise": draw.randbytes(2_000),
        "flipped": bytes(flipped),
        "cut": GOOD[:-3],
        "tag-0": b"\x00" + GOOD,
        "tag-too-large": b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + GOOD,
        "wire-type-7": b"\x0f" + GOOD,
        "group": b"\x0b" * 10_000,
        "end-group": b"\x0c" + GOOD,
        "length-too-long": GOOD + b"\x0a\xff\xff\xff\xff\x07x",
        "length-over-64": GOOD + b"\x0a" + b"\xff" * 9 + b"\x01",
        "varint-over-64": GOOD + b"\x18" + b"\xff" * 20,
        "model-as-number": tagged(1, 0, varint(5)),
        "model-not-utf-8": tagged(1, 2, b"\xff\xfe") + GOOD[6:],
        "model-surrogate": tagged(1, 2, b"\xed\xa0\x80") + GOOD[6:],
        "model-nul": tagged(1, 2, b"tiny\x00") + GOOD[6:],
        "model-twice": GOOD + tagged(1, 2, b"other"),
        "cap-negative": GOOD + tagged(4, 0, b"\xff" * 9 + b"\x01"),
        "cap-huge": GOOD + tagged(4, 0, varint(1 << 40)),
        "role-unknown": tagged(1, 2, b"tiny") + tagged(2, 2, tagged(1, 0, varint(99))),
        "unknown-fields": GOOD + tagged(536_870_911, 2, b"x" * 1_000) * 50,
        "many-messages": tagged(1, 2, b"tiny") + tagged(2, 2, tagged(1, 0, b"\x03")) * 20_000,
        "deep": GOOD + _deep(5_000),
        "deep-messages": GOOD + b"".join(tagged(2, 2, tagged(15, 2, b"")) for _ in range(1_000)),
        "nan": nan.SerializeToString(),
        "infinite": infinite.SerializeToString(),
        "nan-in-extra": inside.SerializeToString(),
        "names-in-extra": names.SerializeToString(),
        "control-in-extra": control.SerializeToString(),
        "wide-extra": wide.SerializeToString(),
        "file-url": url.SerializeToString(),
        "content-and-parts": both.SerializeToString(),
        "empty-message": empty.SerializeToString(),
        "model-of-another-kind": model.SerializeToString(),
        "too-large": GOOD + tagged(22, 2, b"x" * 1_100_000),
        "json": b'{"model":"tiny","messages":[]}',
    }
    for name, body in found.items():
        if len(body) < 60_000:  # more would need windows that this client does not follow
            method = "StreamChatCompletion" if len(name) % 2 else "ChatCompletion"
            yield Attack(f"grpc:{name}", _call(method, message(body)), CLIENT)
    for method, body in (
        ("Completion", tagged(1, 2, b"tiny") + tagged(4, 2, b"\xff" * 50)),
        ("Completion", tagged(1, 2, b"tiny")),
        ("Embed", tagged(1, 2, b"tiny") + tagged(4, 0, b"\xff" * 9 + b"\x01")),
        ("Embed", draw.randbytes(300)),
        ("Rerank", draw.randbytes(300)),
        ("ListModels", draw.randbytes(300)),
        ("GetModel", tagged(1, 2, b"../../admin")),
        ("GetModel", draw.randbytes(300)),
        ("Nothing", GOOD),
        ("../AdminService/ListKeys", b""),
    ):
        name = f"grpc-{method}:{len(body)}"
        yield Attack(name, _call(method, message(body)), CLIENT)


def _framings() -> Iterator[Attack]:
    for name, body in {
        "no-message": b"",
        "half-prefix": b"\x00\x00",
        "cut": message(GOOD, length=len(GOOD) + 10),
        "huge": message(GOOD, length=0xFFFFFFFF),
        "compressed": message(GOOD, compressed=1),
        "odd-flag": message(GOOD, compressed=9),
        "two": message(GOOD) * 2,
        "trailing": message(GOOD) + b"x",
        "http": b"GET / HTTP/1.1\r\n\r\n",
    }.items():
        yield Attack(f"grpc-frame:{name}", _call("ChatCompletion", body), FRAMING)
    for name, pair in {
        "timeout-odd": ("grpc-timeout", "soon"),
        "timeout-0": ("grpc-timeout", "0m"),
        "timeout-negative": ("grpc-timeout", "-5S"),
        "encoding": ("grpc-encoding", "x-nothing"),
        "bin-odd": ("x-odd-bin", "***"),
        "long": ("x-long", "y" * 7_000),
        "tags": ("x-forebay-tags", "=,=,="),
        "request-id": ("x-request-id", "a b c"),
        "traceparent": ("traceparent", "00-zz"),
        "idempotency": ("idempotency-key", "k" * 4_000),
        "peer": ("x-forebay-peer", "10.0.0.1"),
        "second-key": ("authorization", "Bearer other"),
    }.items():
        allowed = FRAMING | {4}
        yield Attack(f"grpc-metadata:{name}", _call("ChatCompletion", message(GOOD), pair), allowed)
    for name, key in {
        "none": (),
        "basic": (("authorization", "Basic YTpi"),),
        "long": (("authorization", "Bearer " + "x" * 6_000),),
        "empty": (("authorization", ""),),
    }.items():
        allowed = frozenset({16, -1})
        yield Attack(
            f"grpc-key:{name}", _call("ChatCompletion", message(GOOD), *key, keyed=False), allowed
        )
    prefix = struct.pack(">BI", 0, len(GOOD))
    yield Attack("grpc-frame:reset-of-length", _call("Embed", prefix * 3), FRAMING)

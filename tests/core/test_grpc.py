"""Messages of `forebay.v1` and OpenAI's JSON: the core against protobuf's own implementation."""

import json
import math
import struct
from base64 import b64decode, b64encode
from operator import attrgetter
from typing import Any

import pytest
from forebay import _core
from forebay.grpc.v1 import inference_pb2 as pb
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

TABLE: dict[str, Any] = json.loads(_core.grpc_table())
PREFIX = "/forebay.v1.InferenceService/"
NUMBER = attrgetter("number")
METHODS = sorted(TABLE["methods"])

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.text(max_size=4)
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
_SCALARS: dict[int, SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: st.text(max_size=6),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=6),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    FieldDescriptor.TYPE_FLOAT: st.floats(allow_nan=False, allow_infinity=False, width=32),
}


def members(message: str) -> set[str]:
    """All members that the JSON of a message has fields for."""
    told = TABLE["messages"][message]
    fixed = {told["fixed"][0]} if told["fixed"] else set()
    names = {name for f in told["fields"] for name in (f["json"], f["alias"]) if name}
    return names | fixed | {"type", "stream"}


@st.composite
def extras(draw: DrawFn, message: str) -> dict[str, Any]:
    """Members without a field."""
    names = st.text(max_size=5).filter(lambda name: name not in members(message))
    return draw(st.dictionaries(names, _JSON, max_size=3))


@st.composite
def messages(draw: DrawFn, of: Descriptor, depth: int = 0) -> Message:
    """Any message of a type, save for what the core refuses."""
    made: Any = getattr(pb, of.name)()
    told = TABLE["messages"][of.name]
    taken: set[str] = set()
    names = {entry["name"]: entry for entry in told["fields"]}
    # Not all: messages would be very large.
    for field in draw(st.lists(st.sampled_from(tuple(of.fields)), unique_by=NUMBER, max_size=6)):
        if field.name == "extra":
            if of.name != "ToolChoice" and depth < 4:
                made.extra.update(draw(extras(of.name)))
            continue
        entry = names[field.name]
        if entry["json"] in taken or (entry["shape"] == "oneof" and "" in taken):
            continue
        taken |= {entry["json"]} | ({""} if entry["shape"] == "oneof" else set())
        fill(draw, made, field, depth)
    return made  # type: ignore[no-any-return]


def fill(draw: DrawFn, made: Any, field: FieldDescriptor, depth: int) -> None:
    inner = field.message_type
    if field.name == "stream_options" or (inner is not None and depth > 6):
        return
    if inner is not None and inner.GetOptions().map_entry:
        key, value = (_SCALARS[inner.fields_by_name[part].type] for part in ("key", "value"))
        getattr(made, field.name).update(draw(st.dictionaries(key, value, max_size=3)))
    elif inner is not None and inner.full_name == "google.protobuf.Struct":
        objects = st.dictionaries(st.text(max_size=4), _JSON, max_size=3)
        for target in (
            [getattr(made, field.name).add() for _ in range(draw(st.integers(0, 2)))]
            if field.is_repeated
            else [getattr(made, field.name)]
        ):
            target.SetInParent()
            target.update(draw(objects))
    elif inner is not None and field.is_repeated:
        getattr(made, field.name).extend(draw(st.lists(messages(inner, depth + 1), max_size=3)))
    elif inner is not None:
        getattr(made, field.name).CopyFrom(draw(messages(inner, depth + 1)))
    elif field.enum_type is not None:
        setattr(made, field.name, draw(st.integers(1, len(field.enum_type.values) - 1)))
    elif field.is_repeated:
        getattr(made, field.name).extend(draw(st.lists(_SCALARS[field.type], max_size=3)))
    else:
        setattr(made, field.name, draw(_SCALARS[field.type]))


def expected(message: Message) -> Any:
    """The JSON of a message: what protobuf's own says, in OpenAI's shapes."""
    plain = MessageToDict(message, preserving_proto_field_name=True, use_integers_for_enums=True)
    return shaped(message.DESCRIPTOR.name, plain)


def shaped(name: str, plain: dict[str, Any]) -> Any:
    told = TABLE["messages"][name]
    first = told["fields"][0]
    if told["form"] == "First":
        default = [] if first["shape"] == "list" else None
        return value(first, plain[first["name"]]) if first["name"] in plain else default
    if told["form"] == "TaggedOrFirst" and first["name"] in plain:
        return value(first, plain[first["name"]])
    out = dict(plain.get("extra", {}))
    if told["fixed"]:
        out[told["fixed"][0]] = told["fixed"][1]
    for entry in told["fields"]:
        if entry["name"] in plain:
            out[entry["json"]] = value(entry, plain[entry["name"]])
            if entry["shape"] == "oneof" and told["form"].startswith("Tagged"):
                out["type"] = entry["json"]
        elif entry["shape"] == "required":
            out[entry["json"]] = zero(entry)
        elif entry["shape"] in {"list", "vector"}:
            out[entry["json"]] = []
    return out


def zero(entry: dict[str, Any]) -> Any:
    kinds = {"string": "", "base64": "", "int32": 0, "int64": 0, "double": 0, "message": {}}
    return kinds[entry["kind"]]


def value(entry: dict[str, Any], plain: Any) -> Any:
    if entry["shape"] in {"map", "int_map"}:
        return plain
    if isinstance(plain, list):
        return [single(entry, item) for item in plain]
    return single(entry, plain)


def single(entry: dict[str, Any], plain: Any) -> Any:
    match entry["kind"]:
        case "message":
            return shaped(entry["of"], plain)
        case "enum":
            return TABLE["enums"][entry["of"]][plain - 1]
        case "int64":
            return int(plain)
        case "octets":
            return list(b64decode(plain))
        case _:
            return plain


def descriptor(method: str, side: str) -> Descriptor:
    return pb.DESCRIPTOR.message_types_by_name[TABLE["methods"][method][side]]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_requests_become_what_protobuf_says(method: str, data: st.DataObject) -> None:
    message = data.draw(messages(descriptor(method, "request")))
    got = json.loads(_core.grpc_to_json(method, message.SerializeToString()))
    if TABLE["methods"][method]["stream"]:
        assert got.pop("stream") is True
        assert got.pop("stream_options") == {"include_usage": True}
    assert got == expected(message)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_answers_become_what_protobuf_reads(method: str, data: st.DataObject) -> None:
    of = descriptor(method, "answer")
    message = data.draw(messages(of))
    told = json.dumps(expected(message), ensure_ascii=data.draw(st.booleans())).encode()
    # Members that are null are not kept in answers.
    got = getattr(pb, of.name).FromString(_core.json_to_grpc(method, told, answer=True))
    assert without_nulls(expected(got)) == without_nulls(expected(message))
    assert got.ByteSize() == len(_core.json_to_grpc(method, told, answer=True))
    again = json.loads(_core.grpc_to_json(method, got.SerializeToString(), answer=True))
    assert again == expected(got)


def without_nulls(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {k: without_nulls(v) for k, v in plain.items() if v is not None}
    if isinstance(plain, list):
        return [without_nulls(item) for item in plain]
    return plain


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_exact(number: float) -> None:
    method = PREFIX + "ChatCompletion"
    body = json.dumps({"temperature": number, "top_k": number}).encode()
    message = pb.ChatCompletionRequest.FromString(_core.json_to_grpc(method, body))
    assert message.temperature == message.extra["top_k"] == number
    back = json.loads(_core.grpc_to_json(method, message.SerializeToString()))
    assert math.copysign(1, back["top_k"]) == math.copysign(1, number)
    assert back == {"temperature": number, "top_k": number}
    is_whole = number.is_integer() and abs(number) <= 2**53 and str(number) != "-0.0"
    assert isinstance(back["top_k"], int) == is_whole


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=20))
def test_a_vector_is_the_same_in_both_forms(vector: list[float]) -> None:
    method = PREFIX + "Embed"
    packed = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    for form in (vector, packed):
        body = json.dumps({"data": [{"embedding": form}]}).encode()
        answer = pb.EmbedResponse.FromString(_core.json_to_grpc(method, body, answer=True))
        assert list(answer.data[0].values) == vector


@given(st.binary(max_size=200), st.sampled_from(METHODS))
def test_bytes_are_refused_by_both_or_read_alike(data: bytes, method: str) -> None:
    of = getattr(pb, descriptor(method, "request").name)
    try:
        got = json.loads(_core.grpc_to_json(method, data))
    except ValueError as refused:
        message, kind, _ = refused.args
        assert message
        assert kind in {"invalid_request", "payload_too_large"}
        return
    left_out = {"stream", "stream_options"}
    assert got.keys() - left_out == expected(of.FromString(data)).keys() - left_out


def test_names_of_methods_are_checked() -> None:
    with pytest.raises(ValueError, match="no method"):
        _core.grpc_to_json("/forebay.v1.InferenceService/Nope", b"")

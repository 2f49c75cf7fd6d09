"""The core's table of fields and members is that of the protos."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from forebay import _core
from forebay.grpc.v1 import inference_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tests.protos.generator import ROOT

TABLE: dict[str, Any] = json.loads(_core.grpc_table())
FILE = inference_pb2.DESCRIPTOR
SERVICE = FILE.services_by_name["InferenceService"]

KINDS = {
    FieldDescriptor.TYPE_STRING: {"string"},
    FieldDescriptor.TYPE_BYTES: {"base64", "octets"},
    FieldDescriptor.TYPE_BOOL: {"bool"},
    FieldDescriptor.TYPE_INT32: {"int32"},
    FieldDescriptor.TYPE_INT64: {"int64"},
    FieldDescriptor.TYPE_DOUBLE: {"double"},
    FieldDescriptor.TYPE_FLOAT: {"double"},
    FieldDescriptor.TYPE_ENUM: {"enum"},
}

OTHER_NAMES = {
    "ChatMessage.parts": "content",
    "Prediction.parts": "content",
    "CompletionRequest.prompts": "prompt",
    "CompletionRequest.prompt_tokens": "prompt",
    "CompletionRequest.prompt_token_lists": "prompt",
    "EmbedRequest.inputs": "input",
    "EmbedRequest.input_tokens": "input",
    "EmbedRequest.input_token_lists": "input",
    "Embedding.values": "embedding",
}
"""Fields whose member has another name: they are other shapes of it."""


def reached(message: Descriptor) -> Iterator[Descriptor]:
    """The message, and all of ours that it holds."""
    seen = {message.name: message}
    todo = [message]
    while todo:
        for field in todo.pop().fields:
            inner = field.message_type
            if inner is None or inner.file.package != "forebay.v1":
                continue
            if inner.GetOptions().map_entry:
                continue
            if inner.name not in seen:
                seen[inner.name] = inner
                todo.append(inner)
    yield from seen.values()


MESSAGES = {
    message.name: message
    for path in TABLE["methods"]
    for method in [SERVICE.methods_by_name[path.rpartition("/")[2]]]
    for top in (method.input_type, method.output_type)
    for message in reached(top)
}


def test_methods() -> None:
    endpoints = json.loads((ROOT / "protos" / "endpoints.json").read_text())
    told = {method.name for method in SERVICE.methods}
    assert {path.rpartition("/")[2] for path in TABLE["methods"]} == told - {
        "ListModels",
        "GetModel",
    }
    for path, entry in TABLE["methods"].items():
        method = SERVICE.methods_by_name[path.rpartition("/")[2]]
        assert entry["request"] == method.input_type.name
        assert entry["answer"] == method.output_type.name
        assert entry["stream"] == endpoints[path]["stream"]
        assert f"POST {entry['http']}" == endpoints[path]["http"]


def test_messages() -> None:
    assert TABLE["messages"].keys() == MESSAGES.keys()


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_fields(name: str) -> None:
    message, told = MESSAGES[name], TABLE["messages"][name]
    fields = {field.number: field for field in message.fields}
    if told["extra"]:
        extra = fields.pop(15)
        assert (extra.name, extra.message_type.full_name) == ("extra", "google.protobuf.Struct")
    assert "extra" not in {field.name for field in fields.values()}
    assert [entry["number"] for entry in told["fields"] if entry["number"] not in fields] == []
    assert len(told["fields"]) == len(fields) <= 40
    for entry in told["fields"]:
        check(fields[entry["number"]], entry)
    # Fields of one member stand beside each other: so the core finds which exclude which.
    members = [entry["json"] for entry in told["fields"]]
    assert len(set(members)) == len([m for m, after in pairs(members) if m != after])


def pairs(items: list[str]) -> Iterator[tuple[str, str | None]]:
    yield from zip(items, [*items[1:], None], strict=True)


def check(field: FieldDescriptor, entry: dict[str, Any]) -> None:
    name = f"{field.containing_type.name}.{field.name}"
    assert entry["name"] == field.name
    assert entry["json"] == OTHER_NAMES.get(name, field.name)
    value = field
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        key, value = (field.message_type.fields_by_name[part] for part in ("key", "value"))
        int_keys = key.type == FieldDescriptor.TYPE_INT32
        assert entry["shape"] == ("int_map" if int_keys else "map")
    elif field.is_repeated:
        is_float = field.type == FieldDescriptor.TYPE_FLOAT
        assert entry["shape"] in (
            {"vector"} if is_float else {"repeated", "list", "repeated_or_one"}
        )
    elif field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
        assert entry["shape"] == "oneof"
    elif field.message_type is not None:
        assert entry["shape"] in {"optional", "required"}
    elif field.has_presence:
        assert entry["shape"] in {"optional", "default"}
    else:
        assert entry["shape"] in {"required", "filled"}
    inner = value.message_type
    if inner is None:
        assert entry["kind"] in KINDS[value.type]
    elif inner.full_name == "google.protobuf.Struct":
        assert entry["kind"] == "struct"
    else:
        assert (entry["kind"], entry["of"]) == ("message", inner.name)
    if value.enum_type is not None:
        check_enum(value.enum_type, entry)


def check_enum(enum: EnumDescriptor, entry: dict[str, Any]) -> None:
    assert entry["of"] == enum.name
    zero, *others = enum.values
    prefix = zero.name.removesuffix("UNSPECIFIED")
    assert [value.number for value in others] == list(range(1, len(others) + 1))
    names = [value.name.removeprefix(prefix).lower() for value in others]
    assert TABLE["enums"][enum.name] == names

"""The protos: style, what may not change, the code made from them, and where each method goes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from tests.protos.breaking import breaks
from tests.protos.generator import ROOT, load
from tests.protos.style import faults


@pytest.fixture(scope="module")
def now() -> FileDescriptorSet:
    files = load().descriptors()
    assert isinstance(files, FileDescriptorSet)
    return files


def test_style(now: FileDescriptorSet) -> None:
    assert faults(now) == []


def test_nothing_that_was_released_is_broken(now: FileDescriptorSet) -> None:
    assert breaks(load().released(), now) == []


def test_the_code_is_what_the_protos_make(tmp_path: Path) -> None:
    generate = load()
    generate.generate(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    checked_in = {path.name: path.read_text() for path in generate.CODE.glob("*_pb2*")}
    assert made == checked_in, "run `make protos`"


def test_every_method_has_an_endpoint(now: FileDescriptorSet) -> None:
    endpoints = json.loads((ROOT / "protos" / "endpoints.json").read_text())
    methods = {
        f"/{file.package}.{service.name}/{method.name}": method.server_streaming
        for file in now.file
        for service in file.service
        for method in service.method
    }
    assert {path: told["stream"] for path, told in endpoints.items()} == methods


def _file(files: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in files.file if file.name.endswith(name))


def _message(files: FileDescriptorSet, name: str) -> DescriptorProto:
    messages = (m for file in files.file for m in file.message_type)
    return next(message for message in messages if message.name == name)


def _field(files: FileDescriptorSet, message: str, name: str) -> FieldDescriptorProto:
    return next(field for field in _message(files, message).field if field.name == name)


def _drop_field(files: FileDescriptorSet) -> None:
    message = _message(files, "Usage")
    del message.field[0]


def _renumber(files: FileDescriptorSet) -> None:
    _field(files, "Usage", "prompt_tokens").number = 20


def _rename(files: FileDescriptorSet) -> None:
    _field(files, "Usage", "prompt_tokens").name = "input_tokens"


def _retype(files: FileDescriptorSet) -> None:
    _field(files, "Usage", "prompt_tokens").type = FieldDescriptorProto.TYPE_STRING


def _other_message(files: FileDescriptorSet) -> None:
    _field(files, "ChatChoice", "message").type_name = ".forebay.v1.ChatDelta"


def _repeat(files: FileDescriptorSet) -> None:
    _field(files, "ChatChoice", "message").label = FieldDescriptorProto.LABEL_REPEATED


def _presence(files: FileDescriptorSet) -> None:
    field = _field(files, "ChatCompletionRequest", "temperature")
    field.ClearField("proto3_optional")
    field.ClearField("oneof_index")


def _out_of_oneof(files: FileDescriptorSet) -> None:
    _field(files, "ContentPart", "text").ClearField("oneof_index")


def _drop_message(files: FileDescriptorSet) -> None:
    file = _file(files, "inference.proto")
    kept = [message for message in file.message_type if message.name != "TokenIds"]
    del file.message_type[:]
    file.message_type.extend(kept)


def _drop_value(files: FileDescriptorSet) -> None:
    del _file(files, "inference.proto").enum_type[0].value[1]


def _rename_value(files: FileDescriptorSet) -> None:
    _file(files, "inference.proto").enum_type[0].value[1].name = "BOSS"


def _drop_enum(files: FileDescriptorSet) -> None:
    del _file(files, "inference.proto").enum_type[0]


def _drop_method(files: FileDescriptorSet) -> None:
    del _file(files, "inference.proto").service[0].method[0]


def _stream(files: FileDescriptorSet) -> None:
    _file(files, "inference.proto").service[0].method[0].server_streaming = True


def _other_request(files: FileDescriptorSet) -> None:
    _file(files, "inference.proto").service[0].method[0].input_type = ".forebay.v1.EmbedRequest"


def _other_answer(files: FileDescriptorSet) -> None:
    _file(files, "inference.proto").service[0].method[0].output_type = ".forebay.v1.Model"


def _drop_service(files: FileDescriptorSet) -> None:
    del _file(files, "admin.proto").service[0]


def _other_package(files: FileDescriptorSet) -> None:
    _file(files, "admin.proto").package = "forebay.v2"


def _other_go_package(files: FileDescriptorSet) -> None:
    _file(files, "admin.proto").options.go_package = "elsewhere"


def _drop_file(files: FileDescriptorSet) -> None:
    del files.file[0]


BREAKS: list[Callable[[FileDescriptorSet], None]] = [
    _drop_field,
    _renumber,
    _rename,
    _retype,
    _other_message,
    _repeat,
    _presence,
    _out_of_oneof,
    _drop_message,
    _drop_value,
    _rename_value,
    _drop_enum,
    _drop_method,
    _stream,
    _other_request,
    _other_answer,
    _drop_service,
    _other_package,
    _other_go_package,
    _drop_file,
]


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__.strip("_"))
def test_a_break_is_found(
    now: FileDescriptorSet, change: Callable[[FileDescriptorSet], None]
) -> None:
    changed = copy.deepcopy(now)
    change(changed)
    assert breaks(now, changed)


def test_what_is_added_breaks_nothing(now: FileDescriptorSet) -> None:
    changed = copy.deepcopy(now)
    file = _file(changed, "inference.proto")
    file.message_type.add(name="New").field.add(name="a", number=1)
    _message(changed, "Usage").field.add(
        name="new", number=30, type=FieldDescriptorProto.TYPE_STRING
    )
    file.enum_type[0].value.add(name="ROLE_NEW", number=30)
    file.service[0].method.add(name="New", input_type=".forebay.v1.New")
    assert breaks(now, changed) == []


def test_a_number_that_was_reserved_is_not_used_again(now: FileDescriptorSet) -> None:
    old, new = copy.deepcopy(now), copy.deepcopy(now)
    _message(old, "Usage").reserved_range.add(start=40, end=42)
    _message(new, "Usage").field.add(name="back", number=41)
    assert breaks(old, new) == ["message forebay.v1.Usage: number 41 was reserved"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda files: setattr(_message(files, "Usage"), "name", "usage"), "PascalCase"),
        (lambda files: setattr(_field(files, "Usage", "extra"), "number", 14), "another number"),
        (lambda files: setattr(_field(files, "Usage", "extra"), "name", "Extra"), "snake_case"),
        (lambda files: _presence(files), "absence is not told from zero"),
        (
            lambda files: _file(files, "inference.proto").ClearField("source_code_info"),
            "no comment",
        ),
        (_rename_value, "does not begin with"),
        (_stream, "begin with Stream"),
        (_other_request, "does not take"),
        (_other_package, "not in the package"),
        (
            lambda files: _field(files, "ListKeysRequest", "page_token").MergeFrom(
                FieldDescriptorProto(name="cursor")
            ),
            "no pages",
        ),
    ],
)
def test_a_fault_of_style_is_found(
    now: FileDescriptorSet, change: Callable[[FileDescriptorSet], None], fault: str
) -> None:
    changed = copy.deepcopy(now)
    change(changed)
    found = faults(changed)
    assert any(fault in line for line in found), found

"""The style of the protos: Google's API Improvement Proposals, as far as we follow them.

AIP-140 (field names), AIP-126 (enums), AIP-131 to 136 (methods), AIP-158 (pagination), AIP-192
(comments), AIP-203 (Required and Optional).
"""

import re
from collections.abc import Iterator, Sequence

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

PACKAGE = "forebay.v1"
EXTRA = 15
"""The number of every field `extra`."""

_PASCAL = re.compile(r"([A-Z][a-z0-9]+)+")
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def faults(files: FileDescriptorSet) -> list[str]:
    """A line for each fault. The files have to have their comments (source info)."""
    return [f"{file.name}: {line}" for file in files.file for line in _File(file).faults()]


class _File:
    """One file, with its comments by the path of what they are about."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): place.leading_comments.strip()
            for place in file.source_code_info.location
        }

    def faults(self) -> Iterator[str]:
        file = self._file
        if file.syntax != "proto3":
            yield "is not proto3"
        if file.package != PACKAGE:
            yield f"is not in the package {PACKAGE}"
        if not _SNAKE.fullmatch(file.name.removesuffix(".proto").replace("/", "_")):
            yield "has a name that is not lower_snake_case"
        # The numbers of the fields of FileDescriptorProto, of which paths are made.
        for index, message in enumerate(file.message_type):
            yield from self._message((4, index), message)
        for index, enum in enumerate(file.enum_type):
            yield from self._enum((5, index), enum)
        for index, service in enumerate(file.service):
            yield from self._service((6, index), service)

    def _commented(self, path: Sequence[int], name: str) -> Iterator[str]:
        comment = self._comments.get(tuple(path), "")
        if not comment:
            yield f"{name} has no comment"
        elif not comment.endswith((".", ":")):
            yield f"the comment of {name} does not end with a full stop"

    def _message(self, path: tuple[int, ...], message: DescriptorProto) -> Iterator[str]:
        if message.options.map_entry:
            return
        yield from self._commented(path, message.name)
        if not _PASCAL.fullmatch(message.name):
            yield f"{message.name} is not PascalCase"
        for index, field in enumerate(message.field):
            yield from self._field((*path, 2, index), message, field)
        if message.nested_type and not all(n.options.map_entry for n in message.nested_type):
            yield f"{message.name} has messages within it"
        if message.enum_type:
            yield f"{message.name} has enums within it"

    def _field(
        self, path: tuple[int, ...], message: DescriptorProto, field: FieldDescriptorProto
    ) -> Iterator[str]:
        name = f"{message.name}.{field.name}"
        yield from self._commented(path, name)
        comment = self._comments.get(path, "")
        if not comment.startswith(("Required. ", "Optional. ")):
            yield f"the comment of {name} says neither Required. nor Optional."
        if field.proto3_optional and not comment.startswith("Optional. "):
            yield f"{name} is optional, but its comment says otherwise"
        if not _SNAKE.fullmatch(field.name):
            yield f"{name} is not lower_snake_case"
        if field.name == "extra" and field.number != EXTRA:
            yield f"{name} has another number than {EXTRA}"
        is_scalar = field.type not in (
            FieldDescriptorProto.TYPE_MESSAGE,
            FieldDescriptorProto.TYPE_ENUM,
        )
        is_single = field.label != FieldDescriptorProto.LABEL_REPEATED
        has_presence = field.HasField("oneof_index")
        if is_scalar and is_single and comment.startswith("Optional. ") and not has_presence:
            yield f"{name} is optional, but absence is not told from zero"

    def _enum(self, path: tuple[int, ...], enum: EnumDescriptorProto) -> Iterator[str]:
        yield from self._commented(path, enum.name)
        if not _PASCAL.fullmatch(enum.name):
            yield f"{enum.name} is not PascalCase"
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        for index, value in enumerate(enum.value):
            yield from self._commented((*path, 2, index), value.name)
            if not value.name.startswith(prefix):
                yield f"{value.name} does not begin with {prefix}"
        if (enum.value[0].name, enum.value[0].number) != (f"{prefix}UNSPECIFIED", 0):
            yield f"{enum.name} does not begin with {prefix}UNSPECIFIED = 0"

    def _service(self, path: tuple[int, ...], service: ServiceDescriptorProto) -> Iterator[str]:
        yield from self._commented(path, service.name)
        if not service.name.endswith("Service"):
            yield f"{service.name} does not end with Service"
        messages = {message.name: message for message in self._file.message_type}
        for index, method in enumerate(service.method):
            yield from self._commented((*path, 2, index), method.name)
            if not _PASCAL.fullmatch(method.name):
                yield f"{method.name} is not PascalCase"
            verb = method.name.removeprefix("Stream")
            if method.input_type != f".{PACKAGE}.{verb}Request":
                yield f"{method.name} does not take {verb}Request"
            if method.server_streaming != method.name.startswith("Stream"):
                yield f"{method.name} has to begin with Stream if it streams, and only then"
            if method.name.startswith("List"):
                request = {field.name for field in messages[f"{verb}Request"].field}
                answer = {field.name for field in messages[f"{verb}Response"].field}
                if not {"page_size", "page_token"} <= request or "next_page_token" not in answer:
                    yield f"{method.name} has no pages"

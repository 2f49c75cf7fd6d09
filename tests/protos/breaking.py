"""What of a released contract a newer one breaks.

On the wire: what old clients and new servers would read differently. In source: what the code of
old clients would no longer find. Nothing that was released goes away: that takes a `forebay.v2`.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

Named = TypeVar("Named", DescriptorProto, EnumDescriptorProto, ServiceDescriptorProto)


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """A line for each break; none: the newer contract takes all that the older one took."""
    return [
        *_files(old, new),
        *_pairs("message", _messages(old), _messages(new), _message),
        *_pairs("enum", _enums(old), _enums(new), _enum),
        *_pairs("service", _services(old), _services(new), _service),
    ]


def _files(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    """Generated code is found by the name of its file and by its options."""
    found = {file.name: file for file in new.file}
    for file in old.file:
        newer = found.get(file.name)
        if newer is None:
            yield f"file {file.name} is gone"
        elif newer.package != file.package:
            yield f"file {file.name} has another package"
        elif newer.options.go_package != file.options.go_package:
            yield f"file {file.name} has another go_package"
        elif newer.options.java_package != file.options.java_package:
            yield f"file {file.name} has another java_package"


def _messages(files: FileDescriptorSet) -> dict[str, DescriptorProto]:
    def below(name: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        yield name, message
        for inner in message.nested_type:
            yield from below(f"{name}.{inner.name}", inner)

    return {
        name: message
        for file in files.file
        for top in file.message_type
        for name, message in below(f"{file.package}.{top.name}", top)
    }


def _enums(files: FileDescriptorSet) -> dict[str, EnumDescriptorProto]:
    tops = {f"{file.package}.{enum.name}": enum for file in files.file for enum in file.enum_type}
    inner = {
        f"{name}.{enum.name}": enum
        for name, message in _messages(files).items()
        for enum in message.enum_type
    }
    return tops | inner


def _services(files: FileDescriptorSet) -> dict[str, ServiceDescriptorProto]:
    return {f"{file.package}.{s.name}": s for file in files.file for s in file.service}


def _pairs(
    what: str,
    old: dict[str, Named],
    new: dict[str, Named],
    compare: Callable[[Named, Named], Iterator[str]],
) -> Iterator[str]:
    """What is gone, and what those that are left differ in."""
    for name, before in old.items():
        after = new.get(name)
        if after is None:
            yield f"{what} {name} is gone"
        else:
            yield from (f"{what} {name}: {line}" for line in compare(before, after))


def _oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str | None:
    """The oneof that a field is in; those that `optional` makes are none."""
    if not field.HasField("oneof_index") or field.proto3_optional:
        return None
    return message.oneof_decl[field.oneof_index].name


def _message(old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    found = {field.number: field for field in new.field}
    for field in old.field:
        newer = found.get(field.number)
        label = f"field {field.name} = {field.number}"
        if newer is None:
            yield f"{label} is gone"
            continue
        if newer.name != field.name:
            yield f"{label} is called {newer.name}"
        if (newer.type, newer.type_name) != (field.type, field.type_name):
            yield f"{label} has another type"
        if newer.label != field.label:
            yield f"{label} has another cardinality"
        if newer.proto3_optional != field.proto3_optional:
            yield f"{label} tells its presence otherwise"
        if _oneof(new, newer) != _oneof(old, field):
            yield f"{label} is in another oneof"
        if newer.json_name != field.json_name:
            yield f"{label} has another name in JSON"
    taken = {number for span in old.reserved_range for number in range(span.start, span.end)}
    yield from (f"number {number} was reserved" for number in sorted(taken & found.keys()))


def _enum(old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    found = {value.number: value.name for value in new.value}
    for value in old.value:
        newer = found.get(value.number)
        if newer is None:
            yield f"value {value.name} = {value.number} is gone"
        elif newer != value.name:
            yield f"value {value.name} = {value.number} is called {newer}"


def _service(old: ServiceDescriptorProto, new: ServiceDescriptorProto) -> Iterator[str]:
    found = {method.name: method for method in new.method}
    for method in old.method:
        newer = found.get(method.name)
        if newer is None:
            yield f"method {method.name} is gone"
            continue
        if newer.input_type != method.input_type:
            yield f"method {method.name} takes another message"
        if newer.output_type != method.output_type:
            yield f"method {method.name} answers with another message"
        streams = (method.client_streaming, method.server_streaming)
        if (newer.client_streaming, newer.server_streaming) != streams:
            yield f"method {method.name} streams otherwise"

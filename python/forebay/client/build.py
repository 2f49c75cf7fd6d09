"""Messages made of plain values in OpenAI's shape."""

import base64
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from forebay.grpc.v1 import inference_pb2 as pb

M = TypeVar("M", bound=Message)


def build(kind: Callable[[], M], values: Mapping[str, Any]) -> M:
    """A message with these values; None is a value that is not given.

    A name that the message has no field for goes into its `extra`.
    Raises: TypeError or ValueError, that names the field.
    """
    message = kind()
    fill(message, values, "")
    return message


def fill(message: Any, values: Mapping[str, Any] | Message, path: str) -> None:
    """Set a message's fields. path: where it is in the request, for errors."""
    if isinstance(values, Message):
        message.CopyFrom(values)
        return
    if not isinstance(values, Mapping):
        raise TypeError(f"{path or 'the request'}: expected a mapping, got {type(values).__name__}")
    shapes = _SHAPES.get(message.DESCRIPTOR.name, {})
    fields = message.DESCRIPTOR.fields_by_name
    tagged = bool(message.DESCRIPTOR.oneofs_by_name) and "type" not in fields
    for name, value in values.items():
        if value is None:
            continue
        where = f"{path}.{name}" if path else name
        shape = shapes.get(name)
        target = name if shape is None else shape(value)
        if target in fields:
            _set(message, fields[target], value, where)
        elif name == "type" and tagged and any(known in values for known in fields):
            continue  # which member there is says it
        else:
            message.extra.update({name: value})


def _set(message: Any, field: FieldDescriptor, value: Any, path: str) -> None:
    try:
        if field.is_repeated:
            _set_many(message, field, value, path)
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            _set_part(part, value, path)
        else:
            setattr(message, field.name, _scalar(field, value))
    except (TypeError, ValueError) as error:
        if str(error).startswith(path):
            raise
        raise type(error)(f"{path}: {error}") from None


def _set_many(message: Any, field: FieldDescriptor, value: Any, path: str) -> None:
    target = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        number = kind.fields_by_name["key"].type != FieldDescriptor.TYPE_STRING
        for key, item in dict(value).items():
            target[int(key) if number else str(key)] = item
        return
    if isinstance(value, (str, bytes)):
        value = [value]
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if kind is None:
            target.append(_scalar(field, item))
        elif kind is pb.TokenIds.DESCRIPTOR:
            target.add().ids.extend(item)
        else:
            _set_part(target.add(), item, where)


def _set_part(part: Any, value: Any, path: str) -> None:
    if isinstance(part, Struct) and not isinstance(value, Message):
        part.update(value)
    elif isinstance(part, pb.ToolChoice) and isinstance(value, str):
        fill(part, {"mode": value}, path)
    else:
        fill(part, value, path)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        return _enum(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    return value


def _enum(kind: EnumDescriptor, text: str) -> int:
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = kind.values_by_name.get(prefix + text.upper())
    if value is None:
        known = (name.removeprefix(prefix).lower() for name in kind.values_by_name)
        raise ValueError(f"{text!r} is none of {', '.join(k for k in known if k != 'unspecified')}")
    return value.number


def _text_or_parts(value: Any) -> str:
    return "content" if isinstance(value, str) else "parts"


def _texts(one: str, many: str, tokens: str, lists: str) -> Callable[[Any], str]:
    """Which field takes one text, several, one as token ids, or several as token ids."""

    def choose(value: Any) -> str:
        if isinstance(value, str):
            return one
        if not isinstance(value, list | tuple):
            raise TypeError(f"{one}: expected text or a list, got {type(value).__name__}")
        if value and isinstance(value[0], int):
            return tokens
        return lists if value and not isinstance(value[0], str) else many

    return choose


Shape = Callable[[Any], str]
_SHAPES: dict[str, dict[str, Shape]] = {
    "ChatMessage": {"content": _text_or_parts},
    "Prediction": {"content": _text_or_parts},
    "CompletionRequest": {
        "prompt": _texts("prompt", "prompts", "prompt_tokens", "prompt_token_lists")
    },
    "EmbedRequest": {"input": _texts("input", "inputs", "input_tokens", "input_token_lists")},
}
"""Members whose field depends on their value's shape, by message."""


def text_of(answer: pb.ChatCompletionResponse | pb.CompletionResponse) -> str:
    """The text of an answer's first choice; empty where there is none."""
    if not answer.choices:
        return ""
    if isinstance(answer, pb.CompletionResponse):
        return answer.choices[0].text
    return answer.choices[0].message.content

"""Whether a text stands in a logged request or answer."""

from collections.abc import Iterator
from typing import Any

import msgspec

_MAX_DEPTH = 32


class Needle:
    """A text to look for, whatever the case of its letters.

    It is found in the bytes as they are, and in the strings of their JSON. Of a stream the strings
    at one place of all events are joined: a word may have come in pieces.
    """

    def __init__(self, text: str):
        self._text = text.casefold()
        self._escaped = msgspec.json.encode(text)[1:-1].decode().casefold()

    def is_in(self, body: bytes) -> bool:
        """Whether the body has the text."""
        raw = body.decode("utf-8", "replace").casefold()
        if self._text in raw or self._escaped in raw:
            return True
        joined: dict[str, list[str]] = {}
        for document in _documents(body):
            for place, text in _strings(document, "", 0):
                joined.setdefault(place, []).append(text)
        return any(self._text in "".join(texts).casefold() for texts in joined.values())


def _documents(body: bytes) -> Iterator[Any]:
    """The body's JSON, or that of the events of its stream; what is cut off is left out."""
    stripped = body.lstrip()
    lines = [body] if stripped[:1] in (b"{", b"[") else _event_data(body)
    for line in lines:
        try:
            yield msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue


def _event_data(body: bytes) -> Iterator[bytes]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield line[5:]


def _strings(value: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif depth < _MAX_DEPTH:
        if isinstance(value, dict):
            # An event of a stream has one of several answers, and says which.
            index = value.get("index", "") if depth else ""
            for name, item in value.items():
                yield from _strings(item, f"{place}{index}.{name}", depth + 1)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from _strings(item, f"{place}[{index}]", depth + 1)

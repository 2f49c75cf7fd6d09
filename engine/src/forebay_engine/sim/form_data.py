"""Forms (`multipart/form-data`), read whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(rb'\bname="([^"]*)"')


@dataclass(frozen=True)
class Field:
    """One field of a form."""

    name: str
    content: bytes
    is_file: bool
    filename: str = ""

    @property
    def text(self) -> str:
        """Its content as text."""
        return self.content.decode("utf-8", "replace")


def read(content_type: bytes, body: bytes) -> list[Field] | None:
    """The fields in order; None: it is no form."""
    found = re.search(rb'boundary="?([^";]+)"?', content_type)
    if not content_type.startswith(b"multipart/form-data") or found is None:
        return None
    mark = b"--" + found.group(1)
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or pieces[0] or not pieces[-1].startswith(b"--"):
        return None
    fields = []
    for piece in pieces[1:-1]:
        head, apart, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not apart or name is None:
            return None
        filename = re.search(rb'filename="([^"]*)"', head)
        fields.append(
            Field(
                name.group(1).decode("utf-8", "replace"),
                content,
                filename is not None,
                "" if filename is None else filename.group(1).decode("utf-8", "replace"),
            )
        )
    return fields

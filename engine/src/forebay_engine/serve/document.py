"""YAML to typed values, with errors that name the file and the field."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

T = TypeVar("T")

MAX_DEPTH = 64
MAX_VALUES = 100_000
"""Of a document: aliases can make a short text endless."""

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")


def read(path: str | Path) -> str:
    """A file's text. Raises ValueError."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def mapping(text: str, file: str) -> dict[str, Any]:
    """The mapping that a YAML text is. Raises ValueError."""
    values = _parse(text, file)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{file}: must be a mapping of names")
    return values


def put(values: dict[str, Any], word: str, source: str) -> None:
    """Set one value by `key=value`; dots lead into sections and the value is YAML.

    Raises ValueError.
    """
    path, mark, text = word.partition("=")
    names = path.split(".")
    if not mark or not all(names):
        raise ValueError(f"{source} {word}: must be key=value")
    value = _parse(text, f"{source} {path}")
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ValueError(f"{source} {path}: {name} is no section")
    values[names[-1]] = value


def _parse(text: str, what: str) -> Any:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{what}{line}: {getattr(error, 'problem', None) or 'no YAML'}") from None
    except ValueError as error:  # a date that is none
        raise ValueError(f"{what}: {error}") from None
    except RecursionError:
        raise ValueError(f"{what}: it is nested too deep") from None
    waiting, seen = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise ValueError(f"{what}: it is nested too deep, or too large")
        items: Any = ()
        if isinstance(value, dict):
            items = value.values()
        elif isinstance(value, (list, tuple, set)):
            items = value
        waiting += [(item, depth + 1) for item in items]
    return values


def expand(value: Any, file: str, at: str = "") -> Any:
    """Set environment variables in: `${NAME}`, `${NAME:-default}`. Raises ValueError: not set."""
    if isinstance(value, dict):
        return {name: expand(item, file, f"{at}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [expand(item, file, f"{at}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def resolve(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise ValueError(f"{file}: {at[1:]}: ${{{match[1]}}} is not set")
        return found

    return _REFERENCE.sub(resolve, value)


def convert(values: dict[str, Any], kind: type[T], file: str) -> T:
    """Typed. Raises ValueError, which names the field."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: {_explain(str(error))}") from None


def _explain(message: str) -> str:
    found = _AT.match(message)
    what, path = (found["what"], (found["path"] or "")[1:]) if found else (message, "")
    for pattern, text in ((_UNKNOWN, "unknown field"), (_MISSING, "is missing")):
        if field := pattern.match(what):
            return f"{path}.{field['field']}".strip(".") + f": {text}"
    return f"{path}: {what}" if path else what

"""From other dialects to OpenAI's form: every kind has the same text for the same prompt."""

from __future__ import annotations

import json
from typing import Any

from forebay_engine.sim.kinds.failure import invalid
from forebay_engine.sim.requests import Body

Message = dict[str, Any]


def message(role: str, content: str) -> Message:
    """A message of text."""
    return {"role": role, "content": content}


def tool(name: object, description: object, parameters: object) -> dict[str, Any]:
    """A tool."""
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def schema_format(schema: object) -> dict[str, Any]:
    """`response_format` of a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": lowered(schema)}}


def lowered(schema: object) -> object:
    """A schema whose types are in lower case, as JSON Schema has them."""
    if isinstance(schema, dict):
        return {
            key: value.lower() if key == "type" and isinstance(value, str) else lowered(value)
            for key, value in schema.items()
        }
    return [lowered(item) for item in schema] if isinstance(schema, list) else schema


def items(value: object, name: str, *, empty: bool = False) -> list[dict[str, Any]]:
    """A list of objects. Raises Problem, which names the field."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise invalid(f"{name}: Input should be a valid list", name)
    if not value and not empty:
        raise invalid(f"{name}: at least one item is required", name)
    return value


def known(body: Body, names: frozenset[str], what: str) -> None:
    """Refuse unknown fields; `what` has a `{}` for the name."""
    for name in body:
        if name not in names:
            raise invalid(what.format(name), name)


def arguments(text: str) -> Any:
    """A tool call's arguments as an object."""
    return json.loads(text) if text else {}

"""The names in a list of models, in the shapes that providers answer with."""

from typing import Any

import msgspec

from forebay.upstreams.unreadable import UNREADABLE


def model_names(body: bytes) -> list[str]:
    """The models that `body` lists, sorted, each once.

    Shapes: ``{"data": [{"id": …}]}`` (OpenAI, Anthropic, engines), a bare list of the same
    (Together), ``{"models": [{"name": "models/…"}]}`` (Gemini).
    Raises: ValueError if it is none of these.
    """
    try:
        document: Any = msgspec.json.decode(body)
    except UNREADABLE as error:
        raise ValueError(f"no JSON: {error}") from None
    entries = document
    if isinstance(document, dict):
        entries = document.get("data", document.get("models"))
    if not isinstance(entries, list):
        raise ValueError("no list of models")
    names: set[str] = set()
    for entry in entries:
        name = entry.get("id", entry.get("name")) if isinstance(entry, dict) else None
        own = name.removeprefix("models/") if isinstance(name, str) else ""
        if not own:
            raise ValueError("a model without a name")
        names.add(own)
    return sorted(names)

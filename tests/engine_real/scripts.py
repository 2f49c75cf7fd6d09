"""What the tiny model answers: chains of texts, each of which is one token.

A text is the model's whole state: the next token is a function of the last one alone. So a text
stands in one place of one chain only, and an answer that is broken off anywhere goes on exactly
there when its beginning is given back. Imported by the tests and by `make_model.py`, which runs in
the engine's environment: the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNT = 120
"""Words of the longest answer."""


@dataclass(frozen=True)
class Script:
    """One answer. name: asked for by ``/name`` in the last message; texts: its tokens; ends: with
    an end token, or begins anew."""

    name: str
    texts: tuple[str, ...]
    ends: bool = True

    @property
    def text(self) -> str:
        """All of it, once."""
        return "".join(self.texts)

    @property
    def tokens(self) -> int:
        """With the end token, as engines count."""
        return len(self.texts) + self.ends


HELLO = Script(
    "hello", (" Hello", " there", ",", " this", " is", " a", " scripted", " answer", ".")
)
"""The answer to a message without any ``/``."""
THINK = Script(
    "think", ("<think>", " First I", " reason.", "</think>", " Then I", " conclude", "!")
)
TOOL = Script(
    "tool",
    (
        "<tool_call>\n",
        '{"name": "get_weather", ',
        '"arguments": {"city": ',
        '"Paris"}}',
        "\n</tool_call>",
    ),
)
TWO_TOOLS = Script(
    "two",
    (
        '<tool_call>\n{"name": "get_weather", ',
        '"arguments": {"city": "Rome"}}\n',
        "</tool_call>\n<tool_call>\n",
        '{"name": "get_time", "arguments": {"tz": "CET"}}',
        "\n</tool_call> ",
    ),
)
UNICODE = Script("uni", (" café", " 日本", " \U0001f680", " end"))
NUMBERS = Script("count", tuple(f" n{number:03}" for number in range(1, COUNT + 1)))
"""Long enough to be broken off; no two places look alike."""
LOOP = Script("loop", (" tick", " tock"), ends=False)

SCRIPTS = (HELLO, THINK, TOOL, TWO_TOOLS, UNICODE, NUMBERS, LOOP)

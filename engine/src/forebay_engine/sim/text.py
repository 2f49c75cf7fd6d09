"""Token counts and the answers. Everything here is a function of its arguments: no state, no clock.

The answers are those of the scripted model that the recorded traces come from, plus `/words N`.
The last message (or the prompt) picks one:
  plain text -> " Hello there, this is a scripted answer."
  /think     -> reasoning, then a short conclusion
  /tool /two -> one or two tool calls
  /uni       -> text outside ASCII
  /loop      -> " tick tock" until a limit ends it
  /words N   -> N words chosen by (seed, prompt)
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

EOS_ID = 259
"""The end token's id, as `matched_stop` shows it in the traces."""
VOCAB_SIZE = 128_256
"""Token ids at or above this are beyond the vocabulary."""

_HELLO = (" Hello", " there", ",", " this", " is", " a", " scripted", " answer", ".")
_THINK = ("<think>", " First I", " reason.", "</think>", " Then I", " conclude", "!")
_TOOL = (
    "<tool_call>\n",
    '{"name": "get_weather", ',
    '"arguments": {"city": ',
    '"Paris"}}',
    "\n</tool_call>",
)
_TWO = (
    '<tool_call>\n{"name": "get_weather", ',
    '"arguments": {"city": "Rome"}}\n',
    "</tool_call>\n<tool_call>\n",
    '{"name": "get_time", "arguments": {"tz": "CET"}}',
    "\n</tool_call> ",
)
_UNI = (" café", " 日本", " 🚀", " end")
_LOOP = (" tick", " tock")
_LEXICON = (
    "river", "gate", "stone", "water", "light", "field", "north", "quiet",
    "paper", "copper", "signal", "orchard", "window", "harbor", "marble", "thunder",
    "velvet", "canyon", "lantern", "meadow", "pepper", "ribbon", "saddle", "timber",
    "anchor", "basket", "candle", "dragon", "ember", "falcon", "garden", "hollow",
    "island", "jasper", "kettle", "ladder", "magnet", "needle", "onyx", "pillar",
    "quartz", "raven", "silver", "tunnel", "umber", "valley", "walnut", "yellow",
    "zephyr", "acorn", "bridge", "cedar", "delta", "echo", "flint", "grove",
    "heron", "ivory", "juniper", "keel", "linen",
)  # fmt: skip
_WORDS = re.compile(r"/words (\d{1,7})")

Kind = Literal["content", "reasoning", "tool_name", "tool_args"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one token adds to a parsed answer. `call` is the tool call's index."""

    kind: Kind
    text: str
    call: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One answer, known before it is generated.

    piece: text of token i, `0 <= i < total`; empty for the end token and past a stop string.
    total: tokens that will be generated, the end token included.
    deltas: per token, when the answer is parsed into reasoning or tool calls; else None.
    reasoning: how many of the first tokens are reasoning.
    """

    piece: Callable[[int], str]
    total: int
    finish: str
    matched_stop: int | str | None
    deltas: tuple[tuple[Delta, ...], ...] | None = None
    reasoning: int = 0

    def text(self, count: int) -> str:
        """The text of the first `count` tokens."""
        piece = self.piece
        return "".join([piece(i) for i in range(min(count, self.total))])


@dataclass(frozen=True, slots=True)
class Ask:
    """What decides an answer's text.

    prompt: the whole prompt; with `seed` it picks the words of `/words`.
    select: the text that picks the script.
    prefix: text already generated, to be continued.
    tools: names offered, when tool calls are to be parsed; `force_tool` asks for a call anyway.
    schema: a JSON schema that the answer shall fit.
    """

    prompt: str
    select: str
    seed: int
    max_tokens: int
    prefix: str = ""
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    tools: tuple[str, ...] = ()
    force_tool: str | None = None
    reasoning: bool = False
    schema: object = None
    chars_per_token: int = 4


def count_bytes(text: str, bytes_per_token: int) -> int:
    """Tokens of a text: pieces of at most `bytes_per_token` UTF-8 bytes."""
    size = len(text) if text.isascii() else len(text.encode())
    return -(-size // bytes_per_token)


def token_ids(text: str, bytes_per_token: int) -> list[int]:
    """Ids of the pieces that `count_bytes` counts; equal pieces have equal ids."""
    data = text.encode()
    step = bytes_per_token
    return [zlib.crc32(data[i : i + step]) % VOCAB_SIZE for i in range(0, len(data), step)]


def render_chat(messages: list[dict[str, Any]], tools: object) -> tuple[str, int]:
    """A chat prompt as the scripted model's template writes it.

    Returns the text and the number of special tokens in it, whose bytes are not in the text.
    """
    parts: list[str] = []
    specials = 0
    if tools:
        parts.append(f"system\nTools: {json.dumps(tools, ensure_ascii=False)}\n")
        specials += 2
    for message in messages:
        parts.append(f"{message.get('role')}\n{content_text(message.get('content'))}\n")
        specials += 2
    parts.append("assistant\n")
    return "".join(parts), specials + 2


def content_text(content: object) -> str:
    """A message's text: the string itself, or its text parts joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def plan(ask: Ask) -> Plan:
    """Decide the whole answer."""
    piece, length, parsed, reasoning = _script(ask)
    if ask.prefix:
        piece, length = _resume(piece, length, ask.prefix)
        parsed, reasoning = None, 0
    if ask.ignore_eos and length is not None:
        piece, length, parsed = _repeat(piece, length), None, None
    if length is None or ask.max_tokens < length + 1:
        total, finish, matched = ask.max_tokens, "length", None
    else:
        total, finish, matched = length + 1, "stop", EOS_ID
    if ask.stops and parsed is None:
        stopped = _stop(piece, total if length is None else min(total, length), ask.stops)
        if stopped is not None:
            return stopped
    if length is not None:
        piece = _bounded(piece, length)
    return Plan(piece, total, finish, matched, parsed, min(reasoning, total))


Piece = Callable[[int], str]
Script = tuple[Piece, int | None, tuple[tuple[Delta, ...], ...] | None, int]


def _script(ask: Ask) -> Script:
    select = ask.select
    if ask.schema is not None:
        text = json.dumps(instance(ask.schema), ensure_ascii=False, separators=(",", ":"))
        step = ask.chars_per_token
        return _fixed(tuple(text[i : i + step] for i in range(0, len(text), step)))
    if words := _WORDS.search(select):
        return _words(ask, int(words.group(1)))
    if "/two" in select:
        if ask.tools:
            return _fixed(_TWO, _two_deltas(ask.tools))
        return _fixed(_TWO)
    if "/tool" in select or ask.force_tool:
        if ask.tools:
            return _fixed(_TOOL, _tool_deltas(ask.tools, ask.force_tool))
        return _fixed(_TOOL)
    if "/loop" in select:
        return (lambda i: _LOOP[i & 1]), None, None, 0
    if "/uni" in select:
        return _fixed(_UNI)
    if "/think" in select:
        if ask.reasoning:
            deltas = tuple(_think_delta(i, text) for i, text in enumerate(_THINK))
            piece, length, parsed, _ = _fixed(_THINK, deltas)
            return piece, length, parsed, 4
        return _fixed(_THINK)
    return _fixed(_HELLO)


def _fixed(texts: tuple[str, ...], deltas: tuple[tuple[Delta, ...], ...] | None = None) -> Script:
    return texts.__getitem__, len(texts), deltas, 0


def _think_delta(index: int, text: str) -> tuple[Delta, ...]:
    if text in ("<think>", "</think>"):
        return ()
    return (Delta("reasoning" if index < 4 else "content", text),)


def _name(wanted: str, offered: tuple[str, ...]) -> str:
    return wanted if wanted in offered else offered[0]


def _tool_deltas(offered: tuple[str, ...], forced: str | None) -> tuple[tuple[Delta, ...], ...]:
    name = forced if forced in offered else _name("get_weather", offered)
    return (
        (),
        (Delta("tool_name", name or ""),),
        (),
        (Delta("tool_args", '{"city": "Paris"}'),),
        (),
    )


def _two_deltas(offered: tuple[str, ...]) -> tuple[tuple[Delta, ...], ...]:
    return (
        (Delta("tool_name", _name("get_weather", offered)),),
        (Delta("tool_args", '{"city": "Rome"}'),),
        (),
        (
            Delta("tool_name", _name("get_time", offered), 1),
            Delta("tool_args", '{"tz": "CET"}', 1),
        ),
        (),
    )


def _words(ask: Ask, count: int) -> Script:
    key = zlib.crc32(ask.prompt.encode(), ask.seed & 0xFFFFFFFF)

    def piece(i: int) -> str:
        mixed = ((key + i) * 0x9E3779B1) & 0xFFFFFFFF
        return f" {_LEXICON[(mixed ^ (mixed >> 15)) % len(_LEXICON)]}"

    return piece, count, None, 0


def _resume(piece: Piece, length: int | None, prefix: str) -> tuple[Piece, int | None]:
    """Go on after `prefix` when the script begins with it; else begin the script anew."""
    done, index = "", 0
    while len(done) < len(prefix) and (length is None or index < length):
        done += piece(index)
        index += 1
    if not done.startswith(prefix):
        return piece, length
    rest = done[len(prefix) :]
    skip = index - 1 if rest else index

    def later(i: int) -> str:
        return rest if rest and i == 0 else piece(i + skip)

    return later, None if length is None else max(0, length - skip)


def _repeat(piece: Piece, length: int) -> Piece:
    """Past an ignored end token (which has no text) the script begins again."""

    def again(i: int) -> str:
        at = i % (length + 1)
        return piece(at) if at < length else ""

    return again


def _bounded(piece: Piece, length: int) -> Piece:
    return lambda i: piece(i) if i < length else ""


def _stop(piece: Piece, total: int, stops: tuple[str, ...]) -> Plan | None:
    """End the answer where the first stop string is complete, and cut its text there."""
    longest = max(len(stop) for stop in stops)
    starts: list[int] = []
    text = ""
    for i in range(total):
        starts.append(len(text))
        text += piece(i)
        tail = max(0, starts[-1] - longest + 1)
        hits = [(at, stop) for stop in stops if (at := text.find(stop, tail)) >= 0]
        if hits:
            cut, matched = min(hits)
            ends = [*starts[1:], len(text)]
            pieces = [text[s : min(e, cut)] for s, e in zip(starts, ends, strict=True)]
            return Plan(pieces.__getitem__, i + 1, "stop", matched)
    return None


def instance(schema: object, depth: int = 0) -> object:
    """A small value that fits the common part of JSON Schema; the last of an enum."""
    if not isinstance(schema, dict) or depth > 16:
        return {}
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return enum[-1]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object")
    if kind == "object":
        fields = schema.get("properties")
        fields = fields if isinstance(fields, dict) else {}
        return {name: instance(value, depth + 1) for name, value in fields.items()}
    simple: dict[object, object] = {"string": "scripted", "integer": 1, "number": 1.5}
    simple |= {"boolean": True, "array": [], "null": None}
    return simple.get(kind if isinstance(kind, str) else "null")

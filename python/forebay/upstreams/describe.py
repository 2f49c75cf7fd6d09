"""What an engine says of the model that it serves, for the core to guard it by. Pure.

SGLang tells by ``/model_info`` whether it makes text or embeddings. How many tokens its vocabulary
has no path of it tells; its refusal of a bias for a token that cannot exist does, before anything
is computed (``logit_bias must has keys in [0, 128255], got 2147483647.``).
"""

import re
from collections.abc import Iterable

import msgspec
import orjson

from forebay.upstreams.unreadable import UNREADABLE

CHECKED = (0, 5, 23)
"""The first SGLang that is known to check `logit_bias`: an older one might die of the question."""

_LAST = re.compile(rb"logit_bias must has keys in \[0, (\d{1,9})\]")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class _Info(msgspec.Struct):
    is_generation: bool | None = None


class _Server(msgspec.Struct):
    version: str = ""


def embeds(info: bytes) -> bool | None:
    """Whether an engine makes embeddings only, by its ``/model_info``; None if it does not say."""
    try:
        generates = msgspec.json.decode(info, type=_Info).is_generation
    except UNREADABLE:
        return None
    return None if generates is None else not generates


def checks_bias(server: bytes) -> bool:
    """Whether an engine may be asked `question`, by its ``/server_info``."""
    try:
        version = msgspec.json.decode(server, type=_Server).version
    except UNREADABLE:
        return False
    found = _VERSION.match(version)
    return found is not None and tuple(map(int, found.groups())) >= CHECKED


def question(model: str) -> bytes:
    """A completion that is refused with the size of the vocabulary, and would be one token."""
    bias = {"2147483647": 0}
    return orjson.dumps({"model": model, "prompt": "a", "max_tokens": 1, "logit_bias": bias})


def vocabulary(refusal: bytes) -> int | None:
    """How many tokens the vocabulary has, by the answer to `question`; None if it does not say."""
    found = _LAST.search(refusal)
    return None if found is None else int(found.group(1)) + 1


def description(names: Iterable[str], *, embedding: bool | None, vocab_size: int | None) -> bytes:
    """What `Core.describe_upstream` takes of an engine with one model, under all of its names."""
    facts = {"embedding": embedding, "vocab_size": vocab_size}
    return orjson.dumps({"models": dict.fromkeys(names, facts)})

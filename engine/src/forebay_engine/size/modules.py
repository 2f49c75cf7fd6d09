"""Which matrices a checkpoint means by the modules that it names as left alone.

Names are matched as engines do it: a plain name is a path of modules (`mlp.gate` is not
`mlp.gate_proj`), one with `*` is a whole path or its beginning, and one with `re:` is a regular
expression from the beginning. Of those the forms in use are understood and turned into `*`; they
are never run, so that a strange one can take no time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from forebay_engine.size.layers import Part
from forebay_engine.size.model import Model

Key = tuple[Part, str]

_ROOTS = ("model.layers.0.", "model.language_model.layers.0.", "language_model.model.layers.0.")
_PARENTS: dict[Part, tuple[str, ...]] = {
    Part.ATTENTION: ("self_attn.", "attention.", "attn."),
    Part.INDEXER: ("self_attn.indexer.",),
    Part.DENSE: ("mlp.", "feed_forward."),
    Part.SHARED: (
        *("mlp.shared_expert.", "mlp.shared_experts."),
        *("feed_forward.shared_expert.", "block_sparse_moe.shared_experts."),
    ),
    Part.EXPERT: (
        *("mlp.experts.0.", "mlp.experts.", "block_sparse_moe.experts.0."),
        *("feed_forward.experts.0.", "feed_forward.experts."),
    ),
}
_ALSO: dict[str, tuple[str, ...]] = {
    "q_proj": ("qkv_proj",),
    "k_proj": ("qkv_proj",),
    "v_proj": ("qkv_proj",),
    "o_proj": ("dense",),
    "q_a_proj": ("fused_qkv_a_proj_with_mqa",),
    "kv_a_proj_with_mqa": ("fused_qkv_a_proj_with_mqa",),
    "gate_proj": ("gate_up_proj", "w1"),
    "up_proj": ("gate_up_proj", "w3", "fc1"),
    "down_proj": ("w2", "fc2"),
}
"""What families and engines call the same projection."""

LONGEST = 1000  # characters of one pattern
ALTERNATIVES = 256  # that one pattern may stand for
FORMS = 10_000  # different patterns, numbers of layers and experts aside
STEPS = 5_000_000  # entries made by all patterns; Qwen3-235B with each expert named has 36,096
_WILD = re.compile(r"(?:\.|\\d|\[0-9\]|\[\^\.\]|\[\^\\\.\])[*+]\??")
_GROUP = re.compile(r"\((?:\?:)?([^()]*)\)")


def _names(key: Key) -> tuple[str, ...]:
    part, module = key
    called = (module, *_ALSO.get(module, ()))
    return tuple(a + b + c for a, b, c in product(_ROOTS, _PARENTS[part], called))


def globs(pattern: str) -> list[str]:
    """The paths, with `*` for anything, that a pattern stands for.

    Raises ValueError: not understood.
    """
    if len(pattern) > LONGEST:
        raise ValueError("too long")
    if not pattern.startswith("re:"):
        plain = pattern.replace("\\.", ".").strip(".")
        if "*" in plain:
            return [plain, plain + ".*"]
        return [plain, plain + ".*", "*." + plain, "*." + plain + ".*"]
    text = _WILD.sub("*", pattern.removeprefix("re:").removeprefix("^"))
    pieces = _GROUP.split(text)
    choices = [piece.split("|") if n % 2 else [piece] for n, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > ALTERNATIVES:
        raise ValueError("too many alternatives")
    found = []
    for words in product(*choices):
        whole = "".join(words)
        path = whole.removesuffix("$").replace("\\.", ".").replace("\\", "/")
        if re.search(r"[^\w.*-]", path):
            raise ValueError("not understood")
        found.append(path if whole.endswith("$") else path + "*")
    return found


def _fits(glob: str, name: str) -> bool:
    """Whether a name matches; each piece is found once from the left, without going back."""
    first, *rest = glob.split("*")
    if not rest:
        return name == first
    if not name.startswith(first):
        return False
    at = len(first)
    *middle, last = rest
    for piece in middle:
        at = name.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return name.endswith(last) and len(name) - len(last) >= at


def _layers(number: re.Match[str] | None, layers: int) -> Iterable[int]:
    if number is None:
        return range(layers)
    if number[2]:  # 1* is 1 and 10 to 19
        return (n for n in range(layers) if str(n).startswith(number[1]))
    return (int(number[1]),) if len(number[1]) < 6 and int(number[1]) < layers else ()


class Spared:
    """Which share of each projection stays as it was."""

    def __init__(self, model: Model) -> None:
        self.layers = len(model.layers)
        self.experts = max((moe.experts for moe in model.expert_layers), default=1)
        self.of_layer: list[frozenset[Key]] = []
        kinds = {
            layer: frozenset(
                (matrix.part, matrix.module)
                for matrix in layer.matrices(model.hidden)
                if matrix.module
            )
            for layer, _ in model.blocks
        }
        self.of_layer = [kinds[layer] for layer in model.layers]
        self.names = {key: _names(key) for key in frozenset().union(*kinds.values())}
        self.known: dict[str, frozenset[Key]] = {}
        self.whole: dict[Key, set[int]] = defaultdict(set)
        self.some: dict[tuple[Key, int], set[str]] = defaultdict(set)
        self.steps = 0

    def _keys(self, glob: str) -> frozenset[Key]:
        if glob not in self.known:
            if len(self.known) >= FORMS:
                raise ValueError("too many modules")
            self.known[glob] = frozenset(
                key for key, names in self.names.items() if any(_fits(glob, n) for n in names)
            )
        return self.known[glob]

    def add(self, pattern: str) -> None:
        """One pattern more. Raises ValueError: not understood."""
        for glob in globs(pattern):
            number = re.search(r"\blayers\.(\d+)(\*?)", glob)
            expert = re.search(r"\bexperts\.(\d+)(?!\d)", glob)
            form = re.sub(r"\b(layers|experts)\.\d+", r"\1.0", glob)
            keys = self._keys(form)
            if not keys:
                continue
            for layer in _layers(number, self.layers):
                self.steps += len(keys)
                if self.steps > STEPS:
                    raise ValueError("too many modules")
                for key in keys & self.of_layer[layer]:
                    if expert is None or key[0] is not Part.EXPERT:
                        self.whole[key].add(layer)
                    elif int(expert[1][:9]) < self.experts:
                        self.some[key, layer].add(expert[1])

    def shares(self) -> Iterator[tuple[Key, float]]:
        """Each projection that the model has, and which share of it stays, 0 to 1."""
        for key in sorted(self.names):
            there = [n for n, keys in enumerate(self.of_layer) if key in keys]
            whole = self.whole[key]
            part = sum(
                len(experts) / self.experts
                for (other, layer), experts in self.some.items()
                if other == key and layer not in whole
            )
            yield key, (len(whole) + part) / len(there)


def spared(model: Model, patterns: Sequence[tuple[str, str]]) -> dict[Key, float]:
    """Which share of each projection a checkpoint leaves as it was; those of none are left out.

    patterns: each with where it stands. Raises ValueError: one that is not understood.
    """
    found = Spared(model)
    for where, pattern in patterns:
        try:
            found.add(pattern)
        except ValueError as error:
            raise ValueError(f"{where}: {pattern[:200]}: {error}; say --weights") from None
    return {key: share for key, share in found.shares() if share}

"""How weights are kept: what a scheme does to which parts of a model.

Schemes are those that SGLang and vLLM load. What a checkpoint says is in `quantization_config` of
its `config.json`, in the words of whatever tool made it; what is not understood is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from forebay_engine.size.fields import Fields
from forebay_engine.size.layers import Matrix, Part

PLAIN_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
LINEAR = frozenset({Part.ATTENTION, Part.INDEXER, Part.DENSE, Part.SHARED, Part.EXPERT})
"""What a tool quantises unless told otherwise: never embeddings, head, router, norms."""

Grain = Literal["tensor", "channel", "group", "block"]


@dataclass(frozen=True)
class Scheme:
    """A way to keep weights.

    bits: of one weight; scale_bytes: of one scale; zero_bits: of one zero point.
    grain: what a scale is for: a matrix, an output, `group` inputs of an output, or a block of
    `group` by `group`.
    column_bytes: kept for each input beside (GPTQ's order of columns).
    arithmetic: what the matrix units multiply in; None: weights are unpacked to 16 bits.
    parts: what is quantised; kept: which share of a part is not (named layers).
    """

    name: str
    bits: int
    grain: Grain = "tensor"
    group: int = 0
    scale_bytes: int = 0
    zero_bits: int = 0
    column_bytes: int = 0
    arithmetic: Literal["fp8", "int8", "fp4"] | None = None
    parts: frozenset[Part] = LINEAR
    kept: tuple[tuple[Part, float], ...] = field(default=())

    def _scales(self, matrix: Matrix) -> int:
        if self.grain == "channel":
            return matrix.outputs
        if self.grain == "group":
            return matrix.outputs * math.ceil(matrix.inputs / self.group)
        if self.grain == "block":
            return math.ceil(matrix.outputs / self.group) * math.ceil(matrix.inputs / self.group)
        return 1

    def bytes_of(self, matrix: Matrix, plain: int) -> float:
        """Bytes of all the copies of a matrix; plain: of a number that is not quantised."""
        whole = float(matrix.parameters * plain)
        if matrix.part not in self.parts:
            return whole
        scale_bits = 8 * self.scale_bytes + self.zero_bits
        one = matrix.outputs * matrix.inputs * self.bits / 8 + self._scales(matrix) * scale_bits / 8
        one += matrix.inputs * self.column_bytes + matrix.outputs * matrix.bias * plain
        kept = dict(self.kept).get(matrix.part, 0.0)
        return kept * whole + (1 - kept) * matrix.count * one


PLAIN = {name: Scheme(name, 8 * size, parts=frozenset()) for name, size in PLAIN_BYTES.items()}
SCHEMES: dict[str, Scheme] = {
    **PLAIN,
    "fp8": Scheme("fp8", 8, "channel", scale_bytes=4, arithmetic="fp8"),
    "fp8-block": Scheme("fp8-block", 8, "block", 128, 4, arithmetic="fp8"),
    "int8": Scheme("int8", 8, "channel", scale_bytes=4, arithmetic="int8"),
    "awq": Scheme("awq", 4, "group", 128, 2, zero_bits=4),
    "gptq": Scheme("gptq", 4, "group", 128, 2, zero_bits=4, column_bytes=4),
    "int4": Scheme("int4", 4, "group", 128, 2),
    "mxfp4": Scheme("mxfp4", 4, "group", 32, 1, parts=frozenset({Part.EXPERT})),
    "nvfp4": Scheme("nvfp4", 4, "group", 16, 1, arithmetic="fp4"),
}
"""What `--weights` takes. mxfp4: experts only, as gpt-oss has it."""

_WORDS: tuple[tuple[str, Part], ...] = (
    ("indexer", Part.INDEXER),
    ("attn", Part.ATTENTION),
    ("attention", Part.ATTENTION),
    ("shared_expert", Part.SHARED),
    ("experts", Part.EXPERT),
    ("lm_head", Part.HEAD),
    ("router", Part.ROUTER),
    ("gate", Part.ROUTER),
    ("mlp", Part.DENSE),
    ("feed_forward", Part.DENSE),
)


def _part(pattern: str) -> Part | None:
    if any(word in pattern for word in ("visual", "vision", "mtp", "projector", "norm", "embed")):
        return None
    if re.search(r"(mlp|block_sparse_moe)\.(shared_expert_)?gate\b", pattern):
        return Part.ROUTER
    if re.search(r"(q|k|v|o|qkv)_(a_|b_)?proj", pattern):
        return Part.ATTENTION
    if re.search(r"(gate|up|down|gate_up)_proj", pattern) and "expert" not in pattern:
        return Part.DENSE
    return next((part for word, part in _WORDS if word in pattern), None)


def _without(scheme: Scheme, patterns: tuple[str, ...], layers: int) -> Scheme:
    """The scheme less the modules that a checkpoint names as left alone.

    Patterns that name a layer by its number count as one layer's share of that part.
    """
    named: dict[Part, set[int]] = {}
    whole: set[Part] = set()
    for pattern in (pattern.replace("\\.", ".") for pattern in patterns):
        number = re.search(r"layers\.(\d+)", pattern)
        if number is None:
            part = _part(pattern)
            whole |= set() if part is None else {part}
        elif int(number[1]) < layers:
            for part in _within(pattern[number.end() :]):
                named.setdefault(part, set()).add(int(number[1]))
    whole |= {part for part, numbers in named.items() if len(numbers) >= layers}
    kept = tuple(
        (part, len(numbers) / layers)
        for part, numbers in sorted(named.items())
        if part not in whole and part in scheme.parts
    )
    return replace(scheme, parts=scheme.parts - whole, kept=kept)


def _within(rest: str) -> frozenset[Part]:
    """What a pattern means after the number of its layer: nothing more is all of the layer."""
    if not rest.strip(".*"):
        return LINEAR
    part = _part(rest)
    return frozenset() if part is None else frozenset({part})


def _fp8(f: Fields) -> Scheme:
    block = f.get("weight_block_size")
    if block is None:
        return SCHEMES["fp8"]
    if not isinstance(block, list) or len(block) != 2 or block[0] != block[1]:
        raise ValueError(f"{f.where}: weight_block_size: two equal numbers are needed")
    return replace(SCHEMES["fp8-block"], group=int(block[0]))


def _grouped(f: Fields, base: Scheme) -> Scheme:
    """AWQ and GPTQ: bits and the inputs that share a scale, -1 for all of them."""
    bits = f.count("bits", "w_bit")
    group = f.count("group_size", "q_group_size", default=128, least=-1)
    zero = bits if base.zero_bits else 0
    if group == -1:
        return replace(base, bits=bits, grain="channel", zero_bits=zero)
    if group == 0:
        raise ValueError(f"{f.where}: group_size: at least 1, or -1 for whole rows")
    return replace(base, bits=bits, group=group, zero_bits=zero)


def _compressed(f: Fields) -> Scheme:
    """compressed-tensors, where all groups of modules keep their weights alike."""
    groups = f.inner("config_groups")
    named = [groups.inner(name) for name in groups.values] if groups else []
    found = {_compressed_group(group) for group in named if group is not None}
    if not found:
        raise ValueError(f"{f.where}: config_groups: missing")
    if len(found) > 1:
        raise ValueError(f"{f.where}: config_groups: weights that differ are not computed")
    return found.pop()


def _compressed_group(group: Fields) -> Scheme:
    weights = group.inner("weights")
    if weights is None:
        raise ValueError(f"{group.where}: weights: missing")
    bits, strategy = weights.count("num_bits"), weights.text("strategy") or "tensor"
    real = (weights.text("type") or "int") == "float"
    only = not group.has("input_activations")
    if strategy == "block":
        return SCHEMES["fp8-block"]
    if strategy in ("group", "tensor_group"):
        size = weights.count("group_size")
        if real and bits == 4:
            return replace(SCHEMES["nvfp4"], group=size, arithmetic=None if only else "fp4")
        return replace(SCHEMES["int4"], name=f"int{bits}", bits=bits, group=size)
    if bits == 8:
        base = SCHEMES["fp8" if real else "int8"]
        return replace(base, scale_bytes=2, arithmetic=None if only else base.arithmetic)
    return Scheme(f"int{bits}", bits, "channel", scale_bytes=2)


def _modelopt(f: Fields) -> Scheme:
    algorithm = (f.text("quant_algo") or "").upper()
    if algorithm == "FP8":
        return replace(SCHEMES["fp8"], grain="tensor")
    if algorithm == "NVFP4":
        return SCHEMES["nvfp4"]
    raise ValueError(f"{f.where}: quant_algo: {algorithm or 'missing'}: FP8 or NVFP4 is known")


def _bitsandbytes(f: Fields) -> Scheme:
    if f.flag("load_in_4bit", False):
        return Scheme("bnb-4bit", 4, "group", 64, 1)
    return replace(SCHEMES["int8"], name="bnb-8bit", arithmetic=None)


METHODS: dict[str, Callable[[Fields], Scheme]] = {
    "awq": lambda f: _grouped(f, SCHEMES["awq"]),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": lambda f: SCHEMES["fp8"],
    "fp8": _fp8,
    "gptq": lambda f: _grouped(f, SCHEMES["gptq"]),
    "modelopt": _modelopt,
    "mxfp4": lambda f: SCHEMES["mxfp4"],
}
"""What is understood of `quant_method`."""


def of_checkpoint(config: Fields, layers: int, dtype: str) -> Scheme:
    """What a `config.json` says that its weights are; without a word, its dtype.

    Raises ValueError: a method, or modules left alone, that are not understood.
    """
    f = config.inner("quantization_config")
    if f is None:
        text = config.inner("text_config")
        f = text.inner("quantization_config") if text else None
    if f is None:
        return PLAIN[dtype]
    method = f.text("quant_method") or ("modelopt" if f.has("quant_algo") else "missing")
    read = METHODS.get(method)
    if read is None:
        raise ValueError(
            f"{f.where}: quant_method: {method}: known are {', '.join(METHODS)}; say --weights"
        )
    spared: tuple[str, ...] = ()
    for name in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers"):
        for pattern in f.texts(name) or ():
            if re.search(r"layers\\?\.\(", pattern):
                raise ValueError(f"{f.where}: {name}: {pattern}: not understood; say --weights")
            spared += (pattern,)
    return _without(read(f), spared, layers)


def named(name: str) -> Scheme:
    """The scheme that `--weights NAME` means. Raises ValueError: unknown."""
    if name not in SCHEMES:
        raise ValueError(f"--weights {name}: not one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def describe(scheme: Scheme) -> Mapping[str, object]:
    """The scheme in words that a reader can check."""
    return {
        "name": scheme.name,
        "bits": scheme.bits,
        "scales": scheme.grain if scheme.scale_bytes else None,
        "group": scheme.group or None,
        "quantised": sorted(scheme.parts),
        "kept": {part: round(share, 4) for part, share in scheme.kept},
        "arithmetic": scheme.arithmetic or "bf16",
    }

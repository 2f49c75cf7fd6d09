"""How weights are kept: what a scheme does to which parts of a model.

Schemes are those that SGLang and vLLM load. What a checkpoint says is in `quantization_config` of
its `config.json`, in the words of whatever tool made it; what is not understood is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from forebay_engine.size.fields import Fields
from forebay_engine.size.layers import Matrix, Part
from forebay_engine.size.model import Model
from forebay_engine.size.modules import spared

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
    parts: what is quantised; kept: which share of a part's projection is not (named modules).
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
    kept: tuple[tuple[Part, str, float], ...] = field(default=())

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
        here = matrix.part, matrix.module
        scale_bits = 8 * self.scale_bytes + self.zero_bits
        one = matrix.outputs * matrix.inputs * self.bits / 8 + self._scales(matrix) * scale_bits / 8
        one += matrix.inputs * self.column_bytes + matrix.outputs * matrix.bias * plain
        kept = next((share for *key, share in self.kept if tuple(key) == here), 0.0)
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


def _without(scheme: Scheme, model: Model, patterns: Sequence[tuple[str, str]]) -> Scheme:
    """The scheme less the modules that a checkpoint names as left alone."""
    shares = spared(model, patterns)
    held = {(m.part, m.module) for m in model.matrices() if m.module}
    whole = {
        part
        for part in scheme.parts
        if (keys := [key for key in held if key[0] is part])
        and all(shares.get(key, 0.0) == 1 for key in keys)
    }
    kept = tuple(
        (part, module, share)
        for (part, module), share in sorted(shares.items())
        if part in scheme.parts - whole
    )
    return replace(scheme, parts=scheme.parts - whole, kept=kept)


def _fp8(f: Fields) -> Scheme:
    block = f.get("weight_block_size")
    if block is None:
        return SCHEMES["fp8"]
    sizes = block if isinstance(block, list) else []
    if len(sizes) != 2 or sizes[0] != sizes[1] or type(sizes[0]) is not int:
        raise ValueError(f"{f.where}: weight_block_size: two equal whole numbers are needed")
    if not 1 <= sizes[0] <= 65536:
        raise ValueError(f"{f.where}: weight_block_size: at least 1, at most 65536")
    return replace(SCHEMES["fp8-block"], group=sizes[0])


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


def _said(config: Fields) -> Fields | None:
    f = config.inner("quantization_config")
    if f is None:
        text = config.inner("text_config")
        f = text.inner("quantization_config") if text else None
    return f


def _method(f: Fields) -> str:
    return f.text("quant_method") or ("modelopt" if f.has("quant_algo") else "missing")


def of_checkpoint(config: Fields, model: Model) -> Scheme:
    """What a `config.json` says that its weights are; without a word, its dtype.

    Raises ValueError: a method, or modules left alone, that are not understood.
    """
    f = _said(config)
    if f is None:
        return PLAIN[model.dtype]
    method = _method(f)
    read = METHODS.get(method)
    if read is None:
        raise ValueError(
            f"{f.where}: quant_method: {method}: known are {', '.join(METHODS)}; say --weights"
        )
    lists = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
    patterns = [(f"{f.where}: {name}", one) for name in lists for one in f.texts(name) or ()]
    return _without(read(f), model, patterns) if patterns else read(f)


def cache_of_checkpoint(config: Fields) -> Literal["fp8"] | None:
    """How a checkpoint wants its cache kept: fp8 where it brings scales for that, else None.

    SGLang takes it with `--kv-cache-dtype auto` (`srt/mem_cache/kv_cache_dtype.py`).
    """
    f = _said(config)
    method = _method(f) if f is not None else None
    if f is None or method not in ("modelopt", "compressed-tensors", "fp8"):
        return None
    scheme = f.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and method != "fp8":
        found = scheme.get("type") == "float" and scheme.get("num_bits") == 8
        if method == "compressed-tensors":
            still = scheme.get("symmetric", True) and not scheme.get("dynamic", False)
            found = found and scheme.get("strategy") == "tensor" and bool(still)
        return "fp8" if found else None
    if method == "compressed-tensors":
        return None
    return "fp8" if (f.text("kv_cache_quant_algo") or "").upper() == "FP8" else None


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
        "kept": {f"{part}.{module}": round(share, 4) for part, module, share in scheme.kept},
        "arithmetic": scheme.arithmetic or "bf16",
    }

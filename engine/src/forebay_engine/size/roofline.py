"""The fastest that a GPU could go: bytes over bandwidth or operations over rate, the larger time.

These are upper bounds. Kernels reach a share of them, and the exchange between the GPUs of a
tensor-parallel group is not in them; `efficiency` scales both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay_engine.size.gpus import Gpu
from forebay_engine.size.kv import Kv
from forebay_engine.size.model import Model
from forebay_engine.size.weights import Weights


@dataclass(frozen=True)
class Step:
    """One step on each GPU of a group.

    tokens: made (decode) or taken in (prefill) by it. bytes, flops: on one GPU.
    """

    tokens: int
    weight_bytes: float
    kv_bytes: float
    flops: float
    memory_s: float
    compute_s: float
    arithmetic: str

    @property
    def seconds(self) -> float:
        """How long it takes at least."""
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> Literal["memory", "compute"]:
        """What it waits for."""
        return "memory" if self.memory_s >= self.compute_s else "compute"

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def attention_flops(model: Model, seen: float, *, prompt: bool = False) -> float:
    """Operations for one token that looks at `seen` tokens (windows taken into account).

    prompt: while a prompt is read, where latent attention works on unpacked keys and values.
    """
    found = 0.0
    for layer, times in model.blocks:
        attention = layer.attention
        width = attention.prefill_width if prompt else attention.score_width
        found += 2.0 * times * width * min(seen, layer.window or seen)
    return found


def decode(
    weights: Weights, kv: Kv, gpu: Gpu, tp: int, batch: int, context: int, efficiency: float = 1.0
) -> Step:
    """A step that makes one token for each of `batch` sequences of `context` tokens."""
    weight_bytes = weights.read_bytes(tp, batch)
    kv_bytes = batch * kv.read_bytes(tp, context)
    model = weights.model
    flops = batch * (2.0 * model.active_parameters + attention_flops(model, context)) / tp
    peak, arithmetic = gpu.flops(weights.scheme.arithmetic)
    return Step(
        batch,
        weight_bytes,
        kv_bytes,
        flops,
        (weight_bytes + kv_bytes) / (gpu.bandwidth_gbs * 1e9 * efficiency),
        flops / (peak * efficiency),
        arithmetic,
    )


def prefill(
    weights: Weights, kv: Kv, gpu: Gpu, tp: int, context: int, chunk: int, efficiency: float = 1.0
) -> Step:
    """A chunk of `chunk` tokens: of one prompt of `context` tokens, or of several shorter ones.

    Each token looks at half of its prompt on average; the head works on the last token of a prompt.
    """
    model = weights.model
    head = 2.0 * model.vocab * model.hidden
    each = (
        2.0 * model.active_parameters
        - head
        + attention_flops(model, (context + 1) / 2, prompt=True)
    )
    flops = (chunk * each + max(1.0, chunk / context) * head) / tp
    weight_bytes = weights.read_bytes(tp, chunk)
    before = kv.read_bytes(tp, context) / 2 if context > chunk else 0.0
    kv_bytes = before + chunk * kv.token_bytes(tp)
    peak, arithmetic = gpu.flops(weights.scheme.arithmetic)
    return Step(
        chunk,
        weight_bytes,
        kv_bytes,
        flops,
        (weight_bytes + kv_bytes) / (gpu.bandwidth_gbs * 1e9 * efficiency),
        flops / (peak * efficiency),
        arithmetic,
    )

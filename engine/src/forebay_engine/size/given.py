"""A model from numbers given by hand, for what has no `config.json` that is known."""

from __future__ import annotations

from dataclasses import dataclass

from forebay_engine.size.layers import Attention, LatentAttention, Layer, Mlp, Moe, Part
from forebay_engine.size.model import Model


@dataclass(frozen=True)
class Numbers:
    """What flags say. 0 or None: not given.

    intermediate: of a dense feed-forward part, or of one expert where there are experts.
    params: in all; the difference to what the layers hold is counted as `other`.
    """

    layers: int
    hidden: int
    heads: int
    vocab: int
    intermediate: int
    kv_heads: int = 0
    head_dim: int = 0
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    dense_intermediate: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    window: int = 0
    window_every: int = 0
    params: int = 0
    context: int = 131072
    tied: bool = False


def _attention(n: Numbers) -> Attention | LatentAttention:
    dim = n.head_dim or n.hidden // n.heads
    if n.kv_rank:
        return LatentAttention(n.heads, None, n.kv_rank, dim, n.rope_dim, dim)
    if not n.head_dim and n.hidden % n.heads:
        raise ValueError("--head-dim: needed, --hidden is no multiple of --heads")
    kv = n.kv_heads or n.heads
    if n.heads % kv:
        raise ValueError("--kv-heads: does not divide --heads")
    return Attention(n.heads, kv, dim, dim)


def model(n: Numbers) -> Model:
    """The model of these numbers. Raises ValueError: they contradict each other."""
    attention = _attention(n)
    feed: Mlp | Moe = Mlp(n.intermediate)
    if n.experts:
        if not 0 < n.experts_per_token <= n.experts:
            raise ValueError("--experts-per-token: needed, and at most --experts")
        shared = Mlp(n.intermediate * n.shared_experts, part=Part.SHARED)
        feed = Moe(
            n.experts,
            n.experts_per_token,
            Mlp(n.intermediate, part=Part.EXPERT),
            shared if n.shared_experts else None,
        )
    elif n.experts_per_token or n.shared_experts or n.dense_layers:
        raise ValueError(
            "--experts: needed with --experts-per-token, --shared-experts, --dense-layers"
        )
    if n.dense_layers and not n.dense_intermediate:
        raise ValueError("--dense-intermediate: needed with --dense-layers")
    built = []
    for number in range(n.layers):
        dense = number < n.dense_layers
        wide = bool(n.window_every) and (number + 1) % n.window_every == 0
        window = n.window if n.window and not wide else None
        built.append(Layer(attention, Mlp(n.dense_intermediate) if dense else feed, window))
    plain = Model("given", "given", n.hidden, n.vocab, tuple(built), n.context, tied=n.tied)
    if not n.params:
        return plain
    other = n.params - plain.parameters
    if other < 0:
        raise ValueError(f"--params {n.params}: the layers given already have {plain.parameters}")
    return Model(
        "given", "given", n.hidden, n.vocab, tuple(built), n.context, tied=n.tied, other=other
    )

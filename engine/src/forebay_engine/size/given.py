"""A model from numbers given by hand, for what has no `config.json` that is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    q_rank: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    value_dim: int = 0
    window: int = 0
    window_every: int = 0
    params: int = 0
    tied: bool = False


def _attention(n: Numbers) -> Attention | LatentAttention:
    if n.kv_rank:
        return _latent(n)
    for name in ("q_rank", "nope_dim", "rope_dim", "value_dim"):
        if getattr(n, name):
            raise ValueError(f"--{name.replace('_', '-')}: with --kv-rank (MLA)")
    if not n.head_dim and n.hidden % n.heads:
        raise ValueError("--head-dim: needed, --hidden is no multiple of --heads")
    dim = n.head_dim or n.hidden // n.heads
    kv = n.kv_heads or n.heads
    if n.heads % kv:
        raise ValueError("--kv-heads: does not divide --heads")
    return Attention(n.heads, kv, dim, dim)


def _latent(n: Numbers) -> LatentAttention:
    if n.kv_heads and n.kv_heads != n.heads:
        raise ValueError("--kv-heads: not with --kv-rank (MLA), whose heads share one latent")
    if not n.rope_dim:
        raise ValueError("--rope-dim: needed with --kv-rank (MLA)")
    if n.nope_dim and n.head_dim and n.nope_dim != n.head_dim:
        raise ValueError("--head-dim: the same as --nope-dim, which is enough")
    nope = n.nope_dim or n.head_dim
    if not nope:
        raise ValueError("--nope-dim: needed with --kv-rank (MLA)")
    return LatentAttention(
        n.heads, n.q_rank or None, n.kv_rank, nope, n.rope_dim, n.value_dim or nope
    )


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
    if n.dense_intermediate and not n.dense_layers:
        raise ValueError("--dense-intermediate: with --dense-layers")
    if n.dense_layers >= n.layers:
        raise ValueError("--dense-layers: less than --layers, the others have experts")
    if n.window_every and not n.window:
        raise ValueError("--window-every: with --window")
    built = []
    for number in range(n.layers):
        dense = number < n.dense_layers
        wide = bool(n.window_every) and (number + 1) % n.window_every == 0
        window = n.window if n.window and not wide else None
        built.append(Layer(attention, Mlp(n.dense_intermediate) if dense else feed, window))
    plain = Model("given", "given", n.hidden, n.vocab, tuple(built), None, tied=n.tied)
    if not n.params:
        return plain
    other = n.params - plain.parameters
    if other < 0:
        raise ValueError(f"--params {n.params}: the layers given already have {plain.parameters}")
    return replace(plain, other=other)

"""Bytes of the key-value cache.

An engine keeps keys and values of each layer for each token: `2 x heads x dimension x bytes`, where
a GPU has its share of the heads, but at least one. Latent attention (MLA) keeps one compressed
vector and the rotary part, the same on every GPU. Layers that look through a window may have a pool
of their own, which is smaller (SGLang: `--swa-full-tokens-ratio`, 0.8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from forebay_engine.size.layers import LatentAttention, Layer
from forebay_engine.size.model import Model

KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
INDEX_BLOCK = 128  # entries of the sparse indexer's keys that share one 4-byte scale


def kv_dtype(asked: str, model: Model, stored: str | None = None) -> str:
    """What `--kv-dtype` means for a model. Raises ValueError: unknown.

    stored: what the checkpoint has scales for, which SGLang's `auto` then takes.
    """
    if asked == "auto":
        if stored is not None:
            return stored
        return "bf16" if model.dtype == "fp32" else model.dtype
    if asked not in KV_BYTES:
        raise ValueError(f"--kv-dtype {asked}: not one of auto, {', '.join(KV_BYTES)}")
    return asked


def layer_bytes(layer: Layer, dtype: str, tp: int) -> float:
    """What one GPU of `tp` keeps of one token in one layer."""
    size, attention = KV_BYTES[dtype], layer.attention
    if not isinstance(attention, LatentAttention):
        heads = max(1, attention.kv_heads // tp)
        return heads * (attention.head_dim + attention.value_dim) * size
    if not attention.index_heads:
        return (attention.kv_rank + attention.rope_dim) * size
    # DeepSeek-V3.2 in 8 bits keeps scales of the latent and leaves the rotary part as it was.
    index = attention.index_dim + 4 * attention.index_dim // INDEX_BLOCK
    if dtype == "fp8":
        scales = 4 * (attention.kv_rank // 128)
        return attention.kv_rank + scales + 2 * attention.rope_dim + index
    return (attention.kv_rank + attention.rope_dim) * size + index


@dataclass(frozen=True)
class Kv:
    """The cache of a model.

    window_ratio: tokens of the pool for layers with a window, per token of the full pool.
    """

    model: Model
    dtype: str
    window_ratio: float = 0.8

    @property
    def split(self) -> bool:
        """Whether layers with a window have a pool of their own."""
        return self.model.split_windows and any(layer.window for layer in self.model.layers)

    def token_bytes(self, tp: int) -> float:
        """What one more token of capacity costs one GPU of `tp`."""
        found = 0.0
        for layer, times in self.model.blocks:
            ratio = self.window_ratio if self.split and layer.window else 1.0
            found += times * ratio * layer_bytes(layer, self.dtype, tp)
        return found

    def read_bytes(self, tp: int, context: int) -> float:
        """What one GPU reads to make one token of a sequence of `context` tokens."""
        return sum(
            times * min(context, layer.window or context) * layer_bytes(layer, self.dtype, tp)
            for layer, times in self.model.blocks
        )

    def capacity(self, pool_bytes: float, tp: int, page: int = 1) -> int:
        """Tokens that a pool of `pool_bytes` on each GPU holds, in whole pages."""
        tokens = math.floor(max(0.0, pool_bytes) / self.token_bytes(tp))
        return tokens // page * page

    def sequences(self, tokens: int, context: int) -> int:
        """How many sequences of `context` tokens fit into a capacity of `tokens`."""
        whole = tokens // context
        if not self.split:
            return whole
        window = max(layer.window or 0 for layer in self.model.layers)
        return min(whole, int(tokens * self.window_ratio) // min(context, window))

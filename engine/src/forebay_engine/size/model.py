"""The shape of a model: its layers, and the matrices that these are made of.

Nothing here knows of files or of GPUs. A model is a list of layers; a layer is an attention and a
feed-forward part; both say which matrices they hold, how many times, and how tensor parallelism
splits them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property


class Part(StrEnum):
    """What a matrix is for. Quantised checkpoints leave some parts as they were."""

    EMBEDDING = "embedding"
    HEAD = "lm_head"
    ATTENTION = "attention"
    INDEXER = "indexer"
    DENSE = "mlp"
    SHARED = "shared_expert"
    EXPERT = "experts"
    ROUTER = "router"
    NORM = "norms"
    OTHER = "other"


class Split(StrEnum):
    """What each of the GPUs of a tensor-parallel group holds of a matrix."""

    EVEN = "even"  # one share of t
    KV_HEADS = "kv_heads"  # whole heads: copies, once there are more GPUs than heads
    COPY = "copy"  # all of it


@dataclass(frozen=True)
class Matrix:
    """`count` equal matrices of `outputs` by `inputs`.

    outputs, inputs: entries; a vector has one input.
    bias: each output has one more entry, never quantised.
    heads: with `Split.KV_HEADS`, how many heads the outputs are.
    """

    part: Part
    outputs: int
    inputs: int
    count: int = 1
    bias: bool = False
    split: Split = Split.EVEN
    heads: int = 0

    @property
    def entries(self) -> int:
        """Weights without biases, all `count` of them."""
        return self.count * self.outputs * self.inputs

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.entries + self.count * self.outputs * self.bias

    def share(self, tp: int) -> float:
        """Which part of it one GPU of `tp` holds, > 0 and <= 1."""
        if self.split is Split.COPY:
            return 1.0
        if self.split is Split.KV_HEADS:
            return max(1, self.heads // tp) / self.heads
        return 1.0 / tp


@dataclass(frozen=True)
class Attention:
    """Heads with keys and values of their own or in groups (MHA, GQA, MQA)."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: int = 0  # entries of the norms of q and k together
    sinks: bool = False
    gate: bool = False  # a gate per output, beside the queries

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """Those of one layer."""
        q = self.heads * self.head_dim
        found = [
            Matrix(Part.ATTENTION, q * (2 if self.gate else 1), hidden, bias=self.qkv_bias),
            *(
                Matrix(
                    Part.ATTENTION,
                    self.kv_heads * width,
                    hidden,
                    bias=self.qkv_bias,
                    split=Split.KV_HEADS,
                    heads=self.kv_heads,
                )
                for width in (self.head_dim, self.value_dim)
            ),
            Matrix(Part.ATTENTION, hidden, self.heads * self.value_dim, bias=self.out_bias),
        ]
        if self.qk_norm:
            found.append(Matrix(Part.NORM, self.qk_norm, 1, split=Split.COPY))
        if self.sinks:
            found.append(Matrix(Part.NORM, self.heads, 1, split=Split.EVEN))
        return tuple(found)

    @property
    def score_width(self) -> int:
        """Multiply-adds of all heads for one token that looks at one token."""
        return self.heads * (self.head_dim + self.value_dim)

    @property
    def prefill_width(self) -> int:
        """The same while a prompt is read."""
        return self.score_width


@dataclass(frozen=True)
class LatentAttention:
    """Keys and values kept as one compressed vector (MLA of DeepSeek).

    query_rank: None where queries are not compressed.
    index_heads, index_dim: of the sparse-attention indexer (DeepSeek-V3.2); 0: none.
    """

    heads: int
    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    index_heads: int = 0
    index_dim: int = 0
    qkv_bias: bool = False

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """Those of one layer."""
        q = self.heads * (self.nope_dim + self.rope_dim)
        found = []
        if self.query_rank is None:
            found.append(Matrix(Part.ATTENTION, q, hidden))
        else:
            found += [
                Matrix(
                    Part.ATTENTION, self.query_rank, hidden, bias=self.qkv_bias, split=Split.COPY
                ),
                Matrix(Part.NORM, self.query_rank, 1, split=Split.COPY),
                Matrix(Part.ATTENTION, q, self.query_rank),
            ]
        found += [
            Matrix(
                Part.ATTENTION,
                self.kv_rank + self.rope_dim,
                hidden,
                bias=self.qkv_bias,
                split=Split.COPY,
            ),
            Matrix(Part.NORM, self.kv_rank, 1, split=Split.COPY),
            Matrix(Part.ATTENTION, self.heads * (self.nope_dim + self.value_dim), self.kv_rank),
            Matrix(Part.ATTENTION, hidden, self.heads * self.value_dim, bias=self.qkv_bias),
        ]
        if self.index_heads:
            found += [
                Matrix(
                    Part.INDEXER,
                    self.index_heads * self.index_dim,
                    self.query_rank or hidden,
                    split=Split.COPY,
                ),
                Matrix(Part.INDEXER, self.index_dim, hidden, split=Split.COPY),
                Matrix(Part.NORM, 2 * self.index_dim, 1, split=Split.COPY),
                Matrix(Part.ROUTER, self.index_heads, hidden, split=Split.COPY),
            ]
        return tuple(found)

    @property
    def score_width(self) -> int:
        """Multiply-adds of all heads for one token that looks at one token, in the latent form."""
        return self.heads * (2 * self.kv_rank + self.rope_dim)

    @property
    def prefill_width(self) -> int:
        """The same while a prompt is read: keys and values are unpacked then."""
        return self.heads * (self.nope_dim + self.rope_dim + self.value_dim)


@dataclass(frozen=True)
class Mlp:
    """A feed-forward part: gate, up and down, or (gated false) up and down."""

    width: int
    gated: bool = True
    bias: bool = False
    part: Part = Part.DENSE

    def matrices(self, hidden: int, count: int = 1) -> tuple[Matrix, ...]:
        """Those of `count` of them."""
        return (
            Matrix(self.part, self.width * (2 if self.gated else 1), hidden, count, self.bias),
            Matrix(self.part, hidden, self.width, count, self.bias),
        )


@dataclass(frozen=True)
class Moe:
    """Experts of which a router picks some for each token, beside some that all tokens use."""

    experts: int
    per_token: int
    expert: Mlp
    shared: Mlp | None = None
    shared_gate: bool = False
    router_bias: bool = False

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """Those of one layer."""
        found = [
            Matrix(Part.ROUTER, self.experts, hidden, bias=self.router_bias, split=Split.COPY),
            *self.expert.matrices(hidden, self.experts),
        ]
        if self.shared is not None:
            found += self.shared.matrices(hidden)
            if self.shared_gate:
                found.append(Matrix(Part.ROUTER, 1, hidden, split=Split.COPY))
        return tuple(found)


@dataclass(frozen=True)
class Layer:
    """One block.

    window: a token sees at most so many before it; None: all.
    norms: vectors as long as the hidden state; norm_bias: each with a bias.
    """

    attention: Attention | LatentAttention
    feed: Mlp | Moe
    window: int | None = None
    norms: int = 2
    norm_bias: bool = False

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """All matrices of the block."""
        norm = Matrix(Part.NORM, hidden, 1, self.norms, self.norm_bias, Split.COPY)
        return (*self.attention.matrices(hidden), *self.feed.matrices(hidden), norm)


@dataclass(frozen=True)
class Model:
    """A whole model.

    tied: the head is the embedding. positions: learned position embeddings, 0 for none.
    other: parameters that `layers` do not tell (a vision tower), by the caller's word.
    mtp: layers for speculative decoding that a checkpoint holds and an engine does not load
    unless asked (DeepSeek-V3's).
    split_windows: the engine keeps layers with a window in a pool of their own.
    notes: what was not taken into account, for the reader.
    """

    name: str
    architecture: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    context: int
    dtype: str = "bf16"
    tied: bool = False
    head_bias: bool = False
    norm_bias: bool = False
    positions: int = 0
    other: int = 0
    mtp: tuple[Matrix, ...] = ()
    split_windows: bool = False
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def blocks(self) -> tuple[tuple[Layer, int], ...]:
        """The different layers, and how many there are of each."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def loaded(self) -> tuple[Matrix, ...]:
        """What an engine loads, equal matrices joined by their count."""
        return self._joined(())

    def matrices(self, *, mtp: bool = False) -> tuple[Matrix, ...]:
        """What is loaded; `mtp`: and what engines leave out."""
        return self._joined(self.mtp) if mtp and self.mtp else self.loaded

    def _joined(self, beside: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        found: Counter[Matrix] = Counter()

        def add(matrix: Matrix, times: int = 1) -> None:
            one = Matrix(
                matrix.part,
                matrix.outputs,
                matrix.inputs,
                1,
                matrix.bias,
                matrix.split,
                matrix.heads,
            )
            found[one] += matrix.count * times

        add(Matrix(Part.EMBEDDING, self.vocab, self.hidden))
        if not self.tied:
            add(Matrix(Part.HEAD, self.vocab, self.hidden, bias=self.head_bias))
        if self.positions:
            add(Matrix(Part.EMBEDDING, self.positions, self.hidden, split=Split.COPY))
        if self.other:
            add(Matrix(Part.OTHER, self.other, 1, split=Split.COPY))
        add(Matrix(Part.NORM, self.hidden, 1, 1, self.norm_bias, Split.COPY))
        for layer, times in self.blocks:
            for matrix in layer.matrices(self.hidden):
                add(matrix, times)
        for matrix in beside:
            add(matrix)
        return tuple(
            Matrix(m.part, m.outputs, m.inputs, count, m.bias, m.split, m.heads)
            for m, count in found.items()
        )

    @property
    def parameters(self) -> int:
        """All parameters that an engine loads."""
        return sum(matrix.parameters for matrix in self.loaded)

    @property
    def active_parameters(self) -> int:
        """What one token is multiplied with: of the experts those that it is sent to, and of the
        input embedding nothing but a row.
        """
        total = self.parameters
        if not self.tied:
            total -= self.vocab * self.hidden
        for layer, times in self.blocks:
            if isinstance(layer.feed, Moe):
                one = sum(m.parameters for m in layer.feed.expert.matrices(self.hidden))
                total -= times * one * (layer.feed.experts - layer.feed.per_token)
        return total - self.positions * self.hidden

    @property
    def expert_layers(self) -> tuple[Moe, ...]:
        """The feed-forward parts with experts, one per layer that has them."""
        return tuple(layer.feed for layer in self.layers if isinstance(layer.feed, Moe))

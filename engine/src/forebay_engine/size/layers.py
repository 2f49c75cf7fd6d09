"""The layers of a model, and the matrices that these are made of.

Nothing here knows of files or of GPUs. A layer is an attention and a feed-forward part; both say
which matrices they hold, how many times, and how tensor parallelism splits them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    module: its name in a layer of a checkpoint (`down_proj`), empty where nobody quantises it.
    """

    part: Part
    outputs: int
    inputs: int
    count: int = 1
    bias: bool = False
    split: Split = Split.EVEN
    heads: int = 0
    module: str = ""

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

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """Those of one layer."""
        q = self.heads * self.head_dim
        found = [
            Matrix(Part.ATTENTION, q, hidden, bias=self.qkv_bias, module="q_proj"),
            *(
                Matrix(
                    Part.ATTENTION,
                    self.kv_heads * width,
                    hidden,
                    bias=self.qkv_bias,
                    split=Split.KV_HEADS,
                    heads=self.kv_heads,
                    module=module,
                )
                for module, width in (("k_proj", self.head_dim), ("v_proj", self.value_dim))
            ),
            Matrix(
                Part.ATTENTION,
                hidden,
                self.heads * self.value_dim,
                bias=self.out_bias,
                module="o_proj",
            ),
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
            found.append(Matrix(Part.ATTENTION, q, hidden, module="q_proj"))
        else:
            found += [
                Matrix(
                    Part.ATTENTION,
                    self.query_rank,
                    hidden,
                    bias=self.qkv_bias,
                    split=Split.COPY,
                    module="q_a_proj",
                ),
                Matrix(Part.NORM, self.query_rank, 1, split=Split.COPY),
                Matrix(Part.ATTENTION, q, self.query_rank, module="q_b_proj"),
            ]
        found += [
            Matrix(
                Part.ATTENTION,
                self.kv_rank + self.rope_dim,
                hidden,
                bias=self.qkv_bias,
                split=Split.COPY,
                module="kv_a_proj_with_mqa",
            ),
            Matrix(Part.NORM, self.kv_rank, 1, split=Split.COPY),
            Matrix(
                Part.ATTENTION,
                self.heads * (self.nope_dim + self.value_dim),
                self.kv_rank,
                module="kv_b_proj",
            ),
            Matrix(
                Part.ATTENTION,
                hidden,
                self.heads * self.value_dim,
                bias=self.qkv_bias,
                module="o_proj",
            ),
        ]
        if self.index_heads:
            found += [
                Matrix(
                    Part.INDEXER,
                    self.index_heads * self.index_dim,
                    self.query_rank or hidden,
                    split=Split.COPY,
                    module="wq_b",
                ),
                Matrix(Part.INDEXER, self.index_dim, hidden, split=Split.COPY, module="wk"),
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
        into = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        return (
            *(
                Matrix(self.part, self.width, hidden, count, self.bias, module=module)
                for module in into
            ),
            Matrix(self.part, hidden, self.width, count, self.bias, module="down_proj"),
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

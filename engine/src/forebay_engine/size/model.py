"""A model: a list of layers between an embedding and a head."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

from forebay_engine.size.layers import Layer, Matrix, Moe, Part, Split


@dataclass(frozen=True)
class Model:
    """A whole model.

    context: tokens that it was made for; None: not known.
    tied: the head is the embedding. positions: learned position embeddings, 0 for none.
    other: parameters that `layers` do not tell (a vision tower), by the caller's word.
    mtp: layers for speculative decoding that a checkpoint holds and an engine does not load
    unless asked (DeepSeek-V3's).
    split_windows: the engine keeps layers with a window in a pool of their own.
    vision: layers and hidden width of a vision tower; None where there is none.
    notes: what was not taken into account, for the reader.
    """

    name: str
    architecture: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    context: int | None
    dtype: str = "bf16"
    tied: bool = False
    head_bias: bool = False
    norm_bias: bool = False
    positions: int = 0
    other: int = 0
    mtp: tuple[Matrix, ...] = ()
    split_windows: bool = False
    vision: tuple[int, int] | None = None
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
            one = replace(matrix, count=1)
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
        return tuple(replace(matrix, count=count) for matrix, count in found.items())

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

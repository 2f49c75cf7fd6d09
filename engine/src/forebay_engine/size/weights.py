"""Bytes of a model's weights: in all, on one GPU of a group, and read for a step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from forebay_engine.size.layers import Part
from forebay_engine.size.model import Model
from forebay_engine.size.quantization import PLAIN_BYTES, Scheme


def plain_bytes(scheme: Scheme, dtype: str) -> int:
    """Of a number that is not quantised. Quantised models have 16 bits for these."""
    return min(2, PLAIN_BYTES[dtype]) if scheme.parts else scheme.bits // 8


@dataclass(frozen=True)
class Weights:
    """A model as an engine loads it.

    checkpoint_bytes: what the files hold, kept by the scheme `stored`, where that is known.
    Computed sizes are scaled by it, so that the total is exact and only its distribution computed.
    """

    model: Model
    scheme: Scheme
    checkpoint_bytes: int | None = None
    stored: Scheme | None = None

    def computed_bytes(self, scheme: Scheme | None = None, *, mtp: bool = False) -> float:
        """By the shape alone; `mtp`: with the layers that engines leave out."""
        chosen = scheme or self.scheme
        plain = plain_bytes(chosen, self.model.dtype)
        return sum(chosen.bytes_of(m, plain) for m in self.model.matrices(mtp=mtp))

    @property
    def correction(self) -> float:
        """Checkpoint over what its shape says; 1 where no checkpoint is known."""
        if self.checkpoint_bytes is None:
            return 1.0
        return self.checkpoint_bytes / self.computed_bytes(self.stored, mtp=True)

    @property
    def total_bytes(self) -> float:
        """What an engine loads, over all GPUs, without copies."""
        return self.computed_bytes() * self.correction

    def by_part(self) -> dict[Part, float]:
        """The total, by what it is for."""
        found: dict[Part, float] = defaultdict(float)
        plain = plain_bytes(self.scheme, self.model.dtype)
        for matrix in self.model.matrices():
            found[matrix.part] += self.scheme.bytes_of(matrix, plain) * self.correction
        return dict(found)

    def rank_bytes(self, tp: int) -> float:
        """What one GPU of `tp` holds, copies of what is not split included."""
        plain = plain_bytes(self.scheme, self.model.dtype)
        computed = sum(self.scheme.bytes_of(m, plain) * m.share(tp) for m in self.model.matrices())
        return computed * self.correction

    def read_bytes(self, tp: int, batch: int) -> float:
        """What one GPU of `tp` reads of it for one step of `batch` tokens.

        Of the input embedding a row a token; of the experts those that at least one token is sent
        to: with E experts of which each token takes k, evenly and independently,
        E (1 - (1 - k/E)^batch) of them.
        """
        model, plain = self.model, plain_bytes(self.scheme, self.model.dtype)
        touched = touched_share(model, batch)
        found = 0.0
        for matrix in model.matrices():
            size = self.scheme.bytes_of(matrix, plain) * matrix.share(tp)
            if matrix.part is Part.EXPERT:
                found += size * touched
            elif matrix.part is Part.EMBEDDING and not model.tied:
                found += min(size, batch * matrix.inputs * plain)
            elif matrix.part is not Part.OTHER:
                found += size
        return found * self.correction


def touched_share(model: Model, batch: int) -> float:
    """Which share of the experts a step of `batch` tokens reads, 1 without experts."""
    layers = model.expert_layers
    if not layers:
        return 1.0
    moe = layers[0]
    return 1.0 - (1.0 - moe.per_token / moe.experts) ** batch

"""Reading fields of a `config.json` with errors that name the file and the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

BOUNDS: dict[str, int] = {
    "num_hidden_layers": 10_000,
    "num_nextn_predict_layers": 1_000,
    "num_attention_heads": 100_000,
    "num_key_value_heads": 100_000,
    "head_dim": 100_000,
    "n_routed_experts": 100_000,
    "num_experts": 100_000,
    "num_local_experts": 100_000,
    "n_shared_experts": 1_000,
    "bits": 32,
    "w_bit": 32,
    "num_bits": 32,
    "total_size": 10**16,
}
"""The largest numbers that are taken for a model's; above is a mistake, and would take long."""

LARGEST = 10**9  # of any other field


class Fields:
    """One JSON object. All getters raise ValueError with the field's full name."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values, self.where = values, where

    def _wrong(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.where}: {name}: {what}")

    def has(self, *names: str) -> bool:
        """Whether one of the fields is there and not null."""
        return any(self.values.get(name) is not None for name in names)

    def get(self, name: str) -> object:
        """The raw value, None where it is missing."""
        return self.values.get(name)

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of `names` that is there: a whole number of `least` to its bound."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self._wrong(name, f"a whole number of at least {least} is needed")
            if value > (most := BOUNDS.get(name, LARGEST)):
                raise self._wrong(name, f"at most {most:,}")
            return value
        if default is None:
            raise self._wrong(" or ".join(names), "missing")
        return default

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false is needed")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a string is needed")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, or one of them alone; None where it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings is needed")
        return tuple(cast("Sequence[str]", value))

    def inner(self, name: str) -> Fields | None:
        """An object in it; None where it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(name, "an object is needed")
        return Fields(value, f"{self.where}: {name}")


def pattern(fields: Fields, layers: int, *, every: int | None, window: int | None) -> list[bool]:
    """Which layers look through the window: by `layer_types`, or all but each `every`-th.

    Raises ValueError: a kind of layer that keeps something else than keys and values.
    """
    kinds = fields.texts("layer_types")
    if kinds is not None:
        if len(kinds) < layers:
            raise ValueError(f"{fields.where}: layer_types: {layers} entries are needed")
        known = {"full_attention": False, "sliding_attention": True, "chunked_attention": True}
        strange = sorted(set(kinds[:layers]) - set(known))
        if strange:
            raise ValueError(
                f"{fields.where}: layer_types: {', '.join(strange)}: not computed here "
                "(its state is no key-value cache)"
            )
        return [known[kind] for kind in kinds[:layers]]
    if window is None or every is None:
        return [False] * layers
    return [(number + 1) % every != 0 for number in range(layers)]

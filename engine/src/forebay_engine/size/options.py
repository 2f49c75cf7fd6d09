"""What the options of `forebay-engine size` may be: bounds, prices, and text that is safe to print.

Bounds are far above any machine or model. Beyond them is a mistake, which would overflow or take
hours, so that it is refused with the option's name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

COUNTS: Mapping[str, int] = {
    "context": 10**9,
    "batch": 10**9,
    "tp": 1024,
    "chunk": 10**7,
    "graph-batch": 10**6,
    "page": 10**6,
}
"""Whole numbers of at least 1, each with its largest."""

SHARES: Mapping[str, tuple[float, float]] = {
    "mem-fraction": (0.001, 1),
    "efficiency": (0.001, 1),
    "window-ratio": (0.001, 1),
    "free-gib": (0.001, 10**6),
}
"""Numbers, each with its smallest and largest."""

NUMBERS: Mapping[str, int] = {
    "params": 10**15,
    "layers": 10_000,
    "hidden": 10**7,
    "intermediate": 10**7,
    "heads": 100_000,
    "kv-heads": 100_000,
    "head-dim": 100_000,
    "vocab": 10**8,
    "experts": 100_000,
    "experts-per-token": 100_000,
    "shared-experts": 1_000,
    "dense-layers": 10_000,
    "dense-intermediate": 10**7,
    "q-rank": 10**6,
    "kv-rank": 10**6,
    "nope-dim": 100_000,
    "rope-dim": 100_000,
    "value-dim": 100_000,
    "window": 10**9,
    "window-every": 10_000,
}
"""The numbers of a model without a `config.json`, each with its largest."""

OTHER_PARAMS = 10**15
LOWEST, HIGHEST = Decimal("0.000001"), Decimal(1_000_000)  # of a GPU an hour


def value(args: argparse.Namespace, name: str) -> Any:
    """The number given for `--name`; None or 0 where none was."""
    return getattr(args, name.replace("-", "_"))


def check(args: argparse.Namespace) -> None:
    """Raises ValueError, which names the option: out of its bounds, or no number."""
    for name, most in COUNTS.items():
        given = value(args, name)
        if given is not None and given < 1:
            raise ValueError(f"--{name}: at least 1")
        _at_most(name, given, most)
    for name, (least, largest) in SHARES.items():
        given = value(args, name)
        if given is not None and not least <= given <= largest:  # nan is in no range
            raise ValueError(f"--{name}: above 0 (at least {least:g}), at most {largest:g}")
    for name, most in NUMBERS.items():
        given = value(args, name)
        if given is not None and given < 0:
            raise ValueError(f"--{name}: a number of a model must not be negative")
        _at_most(name, given, most)
    if args.other_params < 0:
        raise ValueError("--other-params: at least 0")
    _at_most("other-params", args.other_params, OTHER_PARAMS)


def _at_most(name: str, given: float | None, most: int) -> None:
    if given is not None and given > most:
        raise ValueError(f"--{name}: at most {most:,}")


def prices(words: Iterable[str], names: Iterable[str]) -> dict[str, Decimal]:
    """Prices of a GPU an hour by the GPU's name. names: those that are written as they like.

    Raises ValueError: no price, out of bounds, or twice for one GPU.
    """
    known = {name.lower(): name for name in names}
    found: dict[str, Decimal] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) or not Decimal(text):
            raise ValueError(f"--hourly {word}: GPU=PRICE with a price above 0 is needed")
        price = Decimal(text)
        if not LOWEST <= price <= HIGHEST:
            raise ValueError(f"--hourly {word}: at least {LOWEST}, at most {HIGHEST:,}")
        name = known.get(name.lower(), name)
        if name in found:
            raise ValueError(f"--hourly {word}: {name} has a price already")
        found[name] = price
    return found


def printable(text: str) -> str:
    """The text with control characters, and what no encoding has, in escapes (`\\x1b`)."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )

"""What the kinds share: reading metrics, choosing sizes, saying no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forebay_engine.serve.gpu import Gpu

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile


def parallel(profile: Profile, gpus: Sequence[Gpu]) -> int:
    """GPUs to use. Raises ValueError: more asked for than there are (on a CPU machine, one)."""
    wanted = profile.tensor_parallel or max(1, len(gpus))
    if wanted > max(1, len(gpus)):
        raise ValueError(f"tensor_parallel: {wanted} are asked for, {len(gpus)} GPUs are seen")
    return wanted


def fp8_cache(profile: Profile, gpus: Sequence[Gpu]) -> bool:
    """Whether the KV cache is to be FP8. Raises ValueError: asked for where it is not possible."""
    able = bool(gpus) and all(gpu.fp8 for gpu in gpus)
    if profile.kv_cache == "fp8" and not able:
        names = ", ".join(sorted({gpu.name for gpu in gpus})) or "no GPU"
        raise ValueError(f"kv_cache: fp8 needs compute capability 8.9; here is {names}")
    return able and profile.kv_cache in ("fp8", "fp8_where_supported")


def refuse(profile: Profile, file: str, kind: str, **fields: str) -> None:
    """Raise ValueError for the first field that is set though the kind has nothing like it."""
    defaults = {"park": "stop"}
    for name, why in fields.items():
        value: object = profile
        for part in name.split("__"):
            value = getattr(value, part)
        if value not in (None, (), defaults.get(name)):
            raise ValueError(f"{file}: {name.replace('__', '.')}: {kind} {why}")


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)


_EXACT = 2.0**53
"""Up to here a float tells each integer; no engine counts further, and infinity is no load."""


def samples(body: bytes, *names: str) -> dict[str, list[float]]:
    """The values of some metrics in Prometheus' text format, over all labels."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for name, text in _SAMPLE.findall(body.decode("utf-8", "replace")):
        if name in found:
            try:
                value = float(text)
            except ValueError:
                continue
            if abs(value) <= _EXACT:
                found[name].append(value)
    return found


def option(argv: list[str], flag: str, value: object | None) -> None:
    """Add a flag with its value; nothing where it is None."""
    if value is not None:
        argv += [flag, str(value)]

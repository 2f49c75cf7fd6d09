"""GPUs: memory, bandwidth and rates. The figures and their sources are in `data/gpus.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec

MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    memory_mib: as `nvidia-smi` reports it; SGLang's rules are in terms of it.
    usable_mib: what a process can have of it, by the CUDA runtime.
    group_mib: what communicators take of it once there are several GPUs.
    bandwidth_gbs: of its memory, 10^9 bytes/s. tflops: dense, 10^12/s, by arithmetic.
    """

    name: str
    memory_mib: int
    usable_mib: int
    bandwidth_gbs: float
    tflops: Mapping[str, float]
    group_mib: int = 0
    source: str = ""

    def flops(self, arithmetic: str | None) -> tuple[float, str]:
        """Operations a second and the arithmetic they are in: what is asked for, else bf16."""
        if arithmetic and arithmetic in self.tflops:
            return self.tflops[arithmetic] * 1e12, arithmetic
        return self.tflops["bf16"] * 1e12, "bf16"


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    memory_mib: int
    usable_mib: int
    group_mib: int
    bandwidth_gbs: float
    tflops: dict[str, float]
    source: str


class _File(msgspec.Struct):
    gpus: list[_Row]


def known() -> dict[str, Gpu]:
    """All that are listed, by name, smallest first."""
    text = resources.files("forebay_engine.size").joinpath("data/gpus.json").read_bytes()
    rows = msgspec.json.decode(text, type=_File).gpus
    return {row.name: Gpu(**msgspec.structs.asdict(row)) for row in rows}


def chosen(names: Sequence[str], own: Sequence[str] = ()) -> list[Gpu]:
    """Those asked for, else all; and those that the caller describes.

    own: `name=…,memory-mib=…,bandwidth-gbs=…,bf16-tflops=…`.
    Raises ValueError: unknown name, wrong description.
    """
    listed = known()
    found: list[Gpu] = []
    for name in names:
        match = next((gpu for gpu in listed.values() if gpu.name.lower() == name.lower()), None)
        if match is None:
            raise ValueError(f"--gpu {name}: not one of {', '.join(listed)}; see --device")
        if match not in found:
            found.append(match)
    for gpu in map(describe, own):
        if gpu.name in (other.name for other in found):
            raise ValueError(f"--device: name: {gpu.name} is there already")
        found.append(gpu)
    return found or list(listed.values())


KINDS = ("bf16", "fp8", "int8", "fp4")  # of arithmetic
FIGURES: Mapping[str, tuple[float, float]] = {
    "memory-mib": (1, 10**8),
    "usable-mib": (1, 10**8),
    "group-mib": (0, 10**8),
    "bandwidth-gbs": (0.001, 10**6),
    **{f"{kind}-tflops": (0.001, 10**6) for kind in KINDS},
}
"""What `--device` takes beside the name, each with its smallest and largest."""


def describe(text: str) -> Gpu:
    """A device in the words of `--device`. Raises ValueError: field missing or wrong."""
    name = ""
    values: dict[str, float] = {}
    for item in text.split(","):
        key, sign, value = (part.strip() for part in item.partition("="))
        if not sign:
            raise ValueError(f"--device: {item!r}: NAME=VALUE is needed")
        if key in values or (key == "name" and name):
            raise ValueError(f"--device: {key}: given twice")
        if key == "name":
            name = value
            if not 0 < len(name) <= 64 or not name.isprintable():
                raise ValueError("--device: name: 1 to 64 printable characters are needed")
        else:
            values[key] = _figure(key, value)
    if not name:
        raise ValueError("--device: name is missing")
    for key in ("memory-mib", "bandwidth-gbs", "bf16-tflops"):
        if key not in values:
            raise ValueError(f"--device: {key} is missing")
    memory = int(values["memory-mib"])
    usable, group = int(values.get("usable-mib", memory)), int(values.get("group-mib", 0))
    if usable > memory:
        raise ValueError("--device: usable-mib: at most memory-mib")
    rates = {kind: values[f"{kind}-tflops"] for kind in KINDS if f"{kind}-tflops" in values}
    return Gpu(name, memory, usable, values["bandwidth-gbs"], rates, group, "given by --device")


def _figure(key: str, value: str) -> float:
    if key not in FIGURES:
        raise ValueError(f"--device: {key}: unknown; known: name, {', '.join(FIGURES)}")
    least, most = FIGURES[key]
    try:
        number = int(value) if key.endswith("-mib") else float(value)
    except ValueError:
        raise ValueError(f"--device: {key}: {value!r} is no number") from None
    if not least <= number <= most:  # nan is in no range
        raise ValueError(f"--device: {key}: at least {least:g}, at most {most:g}")
    return number

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
    found = []
    for name in names:
        match = next((gpu for gpu in listed.values() if gpu.name.lower() == name.lower()), None)
        if match is None:
            raise ValueError(f"--gpu {name}: not one of {', '.join(listed)}; see --device")
        found.append(match)
    described = [describe(text) for text in own]
    return [*found, *described] or list(listed.values())


def describe(text: str) -> Gpu:
    """A device in the words of `--device`. Raises ValueError: field missing or wrong."""
    values: dict[str, str] = {}
    for item in text.split(","):
        key, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f"--device: {item!r}: NAME=VALUE is needed")
        values[key.strip()] = value.strip()
    try:
        name, memory = values.pop("name"), int(values.pop("memory-mib"))
        bandwidth = float(values.pop("bandwidth-gbs"))
        usable, group = int(values.pop("usable-mib", memory)), int(values.pop("group-mib", 0))
        rates = {
            key.removesuffix("-tflops"): float(values.pop(key))
            for key in list(values)
            if key.endswith("-tflops")
        }
    except KeyError as error:
        raise ValueError(f"--device: {error.args[0]} is missing") from None
    except ValueError as error:
        raise ValueError(f"--device: {error}") from None
    if values:
        raise ValueError(f"--device: unknown: {', '.join(values)}")
    if "bf16" not in rates:
        raise ValueError("--device: bf16-tflops is missing")
    if min(memory, usable, bandwidth, *rates.values()) <= 0 or group < 0:
        raise ValueError("--device: all figures must be positive")
    return Gpu(name, memory, usable, bandwidth, rates, group, "given by --device")

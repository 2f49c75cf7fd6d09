"""How much of a GPU an engine gives to weights and cache, and how much it keeps back.

SGLang 0.5.23 (`srt/arg_groups/memory_hook.py`, `srt/mem_cache/kv_cache_configurator.py`):
`cache = free before loading x mem_fraction_static - weights`; the fraction is given, or what is
left after a reserve in MiB: `512 + 1.5 x tokens of a prefill chunk + 1024 x tp / 8`, and for graphs
`2 x largest decode batch` and 8 for each prefill size (MLA: 1536 in all); at least 10 GiB on GPUs
above 60 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from forebay_engine.size.gpus import MIB, Gpu
from forebay_engine.size.layers import LatentAttention
from forebay_engine.size.model import Model

CONTEXT_MIB = 550  # a CUDA context and its libraries: 79.2 GiB less the 78.4 to 78.8 of logs


@dataclass(frozen=True)
class Settings:
    """What was given, None for SGLang's own rule.

    fraction: `--mem-fraction-static`.
    free_gib: memory before weights are loaded, the log's "Load weight begin. avail mem".
    chunk: tokens of a prefill chunk; graphs: largest decode batch with a graph.
    """

    fraction: float | None = None
    free_gib: float | None = None
    chunk: int | None = None
    graphs: int | None = None


@dataclass(frozen=True)
class Budget:
    """What one GPU has, bytes.

    free: before weights are loaded. static: for weights and cache together. kept: the rest.
    """

    free: float
    static: float
    fraction: float
    chunk: int
    graphs: int

    @property
    def kept(self) -> float:
        """For activations, graphs and temporary buffers."""
        return self.free - self.static


def capacity_defaults(memory_mib: int, tp: int) -> tuple[int, int]:
    """SGLang's prefill chunk and largest decode graph for a GPU of so much memory."""
    small = tp < 4
    if memory_mib < 20 * 1024:
        return 2048, 8
    if memory_mib < 35 * 1024:
        return 4096, 48 if small else 160
    if memory_mib < 60 * 1024:
        return 4096, 32 if small else 160
    if memory_mib < 160 * 1024:
        return 8192, 256 if small else 512
    return 16384, 512


def prefill_sizes(largest: int) -> int:
    """How many prefill sizes SGLang captures a graph for."""
    steps = (
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, largest + 1, 512),
    )
    return sum(size <= largest for size in steps)


def sglang_reserve_mib(memory_mib: int, tp: int, chunk: int, graphs: int, *, latent: bool) -> float:
    """SGLang's reserve, MiB, on one GPU."""
    reserve = 512 + max(chunk, 2048) * 1.5 + tp / 8 * 1024
    reserve += graphs * 2
    reserve += 1536 if latent else 8 * prefill_sizes(chunk)
    return max(reserve, 10 * 1024) if memory_mib > 60 * 1024 else reserve


def free_bytes(gpu: Gpu, tp: int, settings: Settings) -> float:
    """Memory of a GPU before weights are loaded."""
    if settings.free_gib is not None:
        return settings.free_gib * 1024 * MIB
    group = gpu.group_mib if tp > 1 else 0
    return (gpu.usable_mib - CONTEXT_MIB - group) * MIB


def vision_factor(vision: tuple[int, int] | None) -> float:
    """What SGLang multiplies its fraction with, for the encoder of images: 0.76 to 1."""
    if vision is None:
        return 1.0
    layers, hidden = vision
    size = layers * hidden**2 / (24 * 1024**2)  # against a ViT-L/14
    return 0.95 * max(0.8, min(1.05, 1.0 - 0.1 * (size - 1.0)))


def budget(gpu: Gpu, tp: int, model: Model, settings: Settings) -> Budget:
    """What a GPU gives to weights and cache under SGLang's rule."""
    free = free_bytes(gpu, tp, settings)
    chunk, graphs = capacity_defaults(gpu.memory_mib, tp)
    chunk, graphs = settings.chunk or chunk, settings.graphs or graphs
    fraction = settings.fraction
    if fraction is None:
        latent = any(isinstance(layer.attention, LatentAttention) for layer in model.layers)
        reserve = sglang_reserve_mib(gpu.memory_mib, tp, chunk, graphs, latent=latent)
        fraction = max(0.0, round((gpu.memory_mib - reserve) / gpu.memory_mib, 3))
        fraction *= vision_factor(model.vision)
    return Budget(free, free * fraction, fraction, chunk, graphs)

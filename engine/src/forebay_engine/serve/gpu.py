"""The GPUs of this machine, and what their size suggests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

QUERY = (
    "nvidia-smi",
    "--query-gpu=index,name,memory.total,compute_cap",
    "--format=csv,noheader,nounits",
)
"""`memory.total` is in MiB."""

Runner = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints. Raises OSError: not there, or it failed."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. memory_mib as the driver tells it; compute: capability, (9, 0) for Hopper."""

    index: int
    name: str
    memory_mib: int
    compute: tuple[int, int]

    @property
    def fp8(self) -> bool:
        """Its tensor cores know FP8: Ada (8.9), Hopper, Blackwell."""
        return self.compute >= (8, 9)


@dataclass(frozen=True)
class Sizes:
    """What a GPU of some memory takes well: tokens of prefill a step, batch of captured graphs."""

    chunked_prefill: int
    graph_batch: int


def run(command: Sequence[str]) -> str:
    """The runner for real. Raises OSError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from None
    return done.stdout


def detect(runner: Runner = run) -> tuple[Gpu, ...]:
    """The GPUs that the driver shows; none where there is no driver."""
    try:
        text = runner(QUERY)
    except OSError:
        return ()
    return parse(text)


def parse(text: str) -> tuple[Gpu, ...]:
    """Read `nvidia-smi`'s CSV. Lines that are none are left out (a GPU that is lost says so)."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            index, name, memory, compute = parts
            major, minor = compute.split(".")
            found.append(Gpu(int(index), name, int(memory), (int(major), int(minor))))
        except ValueError:
            continue
    return tuple(found)


def visible(gpus: Sequence[Gpu], devices: str | None) -> tuple[Gpu, ...]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves, in its order. None: all of them.

    Names of another form (UUIDs, MIG) are taken for as many of the first.
    """
    if devices is None:
        return tuple(gpus)
    words = [word.strip() for word in devices.split(",") if word.strip()]
    if any(word == "-1" for word in words):
        words = words[: words.index("-1")]
    by_index = {str(gpu.index): gpu for gpu in gpus}
    if all(word in by_index for word in words):
        return tuple(by_index[word] for word in words)
    return tuple(gpus[: len(words)])


def sizes(gpus: Sequence[Gpu], parallel: int) -> Sizes:
    """By the smallest GPU's memory, with SGLang 0.5.23's own bounds (arg_groups/memory_hook.py).

    They hold for the other engines, too: what a step of prefill and captured graphs take
    depends on the GPU.
    """
    memory = min(gpu.memory_mib for gpu in gpus)
    few = parallel < 4
    if memory < 20 * 1024:  # T4
        return Sizes(2048, 8)
    if memory < 35 * 1024:  # L4, A10, RTX 5090
        return Sizes(4096, 48 if few else 160)
    if memory < 60 * 1024:  # A100 40 GB, L40S
        return Sizes(4096, 32 if few else 160)
    if memory < 160 * 1024:  # A100 80 GB, H100, H200
        return Sizes(8192, 256 if few else 512)
    return Sizes(16384, 512)  # B200

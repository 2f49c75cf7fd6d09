"""Start SGLang, as its package index has it, on a machine without a GPU.

    python launch_cpu.py --model-path FOLDER --device cpu …

SGLang's kernels (`sgl_kernel`) are published for GPUs, and for CPUs only as source for AMX. The
path of plain text calls one of them on a CPU; that one is written in torch below, any other raises
when it is called. HTTP, tokenizer, scheduler, model, detokenizer and gRPC are SGLang's own.

What stands at the top has to be there before SGLang is imported, in its child processes too: these
are spawned, and run this file again up to `__main__`.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import torch

if torch.version.cuda is None:
    # torchvision is published for CUDA. Beside a torch for CPUs its library is not loaded, and its
    # import then fails for these two operators, which nothing here calls.
    _OPERATORS = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def assign_req_to_token_pool_cpu(
    pool_indices: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    places: torch.Tensor,
    *_: Any,
) -> None:
    """Write each request's new cache places, which come one request after another, into its row."""
    taken = 0
    for row, start, end in zip(pool_indices.tolist(), starts.tolist(), ends.tolist(), strict=True):
        count = end - start
        table[row, start:end] = places[taken : taken + count].to(table.dtype)
        taken += count


class Kernels(ModuleType):
    """The module `sgl_kernel`: what it lacks can be imported, but not called."""

    __version__ = "0.0.0"

    def __init__(self) -> None:
        super().__init__("sgl_kernel")
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec("sgl_kernel", None, is_package=True)
        self.assign_req_to_token_pool_cpu = assign_req_to_token_pool_cpu

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f"sgl_kernel.{name}: there is none for this CPU")

        missing.__name__ = name
        return missing


sys.modules["sgl_kernel"] = Kernels()

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")

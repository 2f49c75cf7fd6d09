"""TensorRT-LLM 1.3: `trtllm-serve`, its PyTorch backend.

Flags: tensorrt_llm/commands/serve.py. `--kv_cache_free_gpu_memory_fraction` is the share of what
the weights leave, 0.9 where nothing is said.

What has no flag (graph batches, the cache's type) is in the file that `--config` names; one
is written below `cache_dir` where it is needed. The server asks for no key.

`/health` is 200 once it serves. `/metrics` tells of iterations since the last call, and only with
`enable_iter_perf_stats`, which that file sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from forebay_engine.serve.decoding import decoded
from forebay_engine.serve.engines import Call, Load, Mark, ParkCalls
from forebay_engine.serve.engines.common import fp8_cache, option, parallel, refuse
from forebay_engine.serve.gpu import Gpu, sizes

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile


class _Cache(msgspec.Struct):
    used: float | None = msgspec.field(name="usedNumBlocks", default=None)
    most: float | None = msgspec.field(name="maxNumBlocks", default=None)

    @property
    def share(self) -> float | None:
        """Of the blocks that are used; None where it is not told."""
        return None if self.used is None or not self.most else self.used / self.most


class _Iteration(msgspec.Struct):
    """One of those that `/metrics` tells of, as far as it is read."""

    active: int = msgspec.field(name="numActiveRequests")
    queued: int | None = msgspec.field(name="numQueuedRequests", default=None)
    cache: _Cache | None = msgspec.field(name="kvCacheStats", default=None)


class TRTLLM:
    """See the module."""

    name = "trtllm"
    version = "1.3"
    ready_path = "/health"
    load_path = "/metrics"
    chat = True
    drains_on_sigterm = False
    marks = (
        Mark("imported", re.compile(r"TensorRT-LLM version: ")),
        Mark("weights", re.compile(r"GB for model weights")),
        Mark("weights_end", re.compile(r"Model init total -- ")),
        Mark("graphs", re.compile(r"CUDA graph (?:warmup|instances)", re.IGNORECASE)),
        Mark("graphs_end", re.compile(r"Application startup complete")),
    )

    def check(self, profile: Profile, file: str) -> None:
        if profile.park != "stop":
            raise ValueError(f"{file}: park: trtllm-serve has no call for it; only stop")
        if profile.weights.transfer == "stream":
            raise ValueError(f"{file}: weights.transfer: trtllm does not read object stores")
        refuse(
            profile,
            file,
            "trtllm",
            api_key="asks for no key; keep its port to the gateway",
            dtype="takes it from the checkpoint",
            quantization="takes it from the checkpoint",
            max_queued="has no bound for its queue",
            weights__load_format="takes it from the checkpoint",
        )

    def argv(self, profile: Profile, gpus: Sequence[Gpu]) -> list[str]:
        size = parallel(profile, gpus)
        if not gpus and not profile.launcher:
            raise ValueError("kind: trtllm needs a GPU, and none is seen")
        argv = [*(profile.launcher or ("trtllm-serve",)), profile.model]
        argv += ["--host", profile.host, "--port", str(profile.port)]
        argv += ["--served_model_name", profile.served_name, "--backend", "pytorch"]
        argv += ["--tp_size", str(size), "--enable_chunked_prefill"]
        if fp8_cache(profile, gpus) and not profile.cache_dir:
            raise ValueError("kv_cache: fp8 is told to trtllm in a file; set cache_dir")
        if gpus:
            tokens = profile.chunked_prefill or sizes(gpus, size).chunked_prefill
            argv += ["--max_num_tokens", str(tokens)]
        option(argv, "--kv_cache_free_gpu_memory_fraction", profile.memory_fraction)
        option(argv, "--max_seq_len", profile.context_length)
        option(argv, "--max_batch_size", profile.max_running)
        if profile.trust_remote_code:
            argv.append("--trust_remote_code")
        if profile.cache_dir:
            argv += ["--config", _config(profile)]
        return [*argv, *profile.args]

    def env(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        return {}

    def files(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        if not profile.cache_dir:
            return {}
        settings: dict[str, Any] = {"enable_iter_perf_stats": True}
        if gpus:
            table = sizes(gpus, parallel(profile, gpus))
            batch = profile.graph_batch or table.graph_batch
            settings["cuda_graph_config"] = {"enable_padding": True, "max_batch_size": batch}
        if fp8_cache(profile, gpus):
            # The file's section stands for the flags of the same, so the fraction is in it too.
            cache: dict[str, Any] = {"dtype": "fp8"}
            cache["free_gpu_memory_fraction"] = profile.memory_fraction or 0.9
            settings["kv_cache_config"] = cache
        return {_config(profile): yaml.safe_dump(settings, sort_keys=True)}

    def load(self, body: bytes) -> Load | None:
        # Of the last one alone: those before may be of another form.
        iterations = decoded(body, list[msgspec.Raw])
        last = decoded(iterations[-1], _Iteration) if iterations else None
        if last is None:
            return None
        return Load(
            running=last.active,
            queued=last.queued or 0,
            kv_used=last.cache.share if last.cache else None,
        )

    def park(self, profile: Profile) -> ParkCalls | None:
        return None

    def gate(self, profile: Profile) -> Call | None:
        return None


def _config(profile: Profile) -> str:
    """One a port, as members of a pool share the folder."""
    return f"{profile.cache_dir}/trtllm/{profile.port}.yaml"


KIND = TRTLLM()

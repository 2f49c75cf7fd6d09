"""Text Generation Inference 3.3: `text-generation-launcher`, in maintenance.

Flags: launcher/src/main.rs. `--cuda-memory-fraction` is the share of the GPU that a shard may take.
Options that the launcher has not are those of its shards' environment, and are not passed.

The port opens when the shards are ready; `/health` is 503 until then. SIGTERM ends the web server
first, which finishes what runs for at most `--graceful-termination-timeout`, then the shards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from forebay_engine.serve.engines import Call, Load, Mark, ParkCalls
from forebay_engine.serve.engines.common import fp8_cache, option, parallel, refuse, samples
from forebay_engine.serve.gpu import Gpu

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile


class TGI:
    """See the module."""

    name = "tgi"
    version = "3.3.6"
    ready_path = "/health"
    load_path = "/metrics"
    chat = True
    drains_on_sigterm = True
    marks = (
        Mark("imported", re.compile(r"Starting shard")),
        Mark("weights", re.compile(r"Starting shard")),
        Mark("weights_end", re.compile(r"Shard ready in ")),
        # The warm-up of the web server measures the cache and captures the graphs.
        Mark("graphs", re.compile(r"Warming up model")),
        Mark("graphs_end", re.compile(r"Setting max batch total tokens")),
    )

    def check(self, profile: Profile, file: str) -> None:
        if profile.park != "stop":
            raise ValueError(f"{file}: park: tgi cannot release its memory; only stop")
        if profile.weights.transfer == "stream":
            raise ValueError(f"{file}: weights.transfer: tgi does not read object stores")
        refuse(
            profile,
            file,
            "tgi",
            weights__load_format="chooses its format by itself",
            max_queued="bounds running and queued together: max_running",
        )

    def argv(self, profile: Profile, gpus: Sequence[Gpu]) -> list[str]:
        size = parallel(profile, gpus)
        argv = [*(profile.launcher or ("text-generation-launcher",))]
        argv += ["--model-id", profile.model]
        argv += ["--hostname", profile.host, "--port", str(profile.port)]
        fp8 = fp8_cache(profile, gpus)
        if gpus:
            argv += ["--num-shard", str(size)]
            # Prefill is left to the launcher, which counts the model's and the GPU's figures in.
            if profile.graph_batch is not None:
                powers = range(profile.graph_batch.bit_length())
                argv += ["--cuda-graphs", ",".join(str(1 << power) for power in powers)]
            option(argv, "--cuda-memory-fraction", profile.memory_fraction)
            if fp8:
                argv += ["--kv-cache-dtype", "fp8_e4m3fn"]
        option(argv, "--max-batch-prefill-tokens", profile.chunked_prefill)
        option(argv, "--max-total-tokens", profile.context_length)
        option(argv, "--dtype", profile.dtype)
        option(argv, "--quantize", profile.quantization)
        option(argv, "--max-concurrent-requests", profile.max_running)
        if profile.trust_remote_code:
            argv.append("--trust-remote-code")
        grace = max(1, ceil(profile.drain.grace_s))
        argv += ["--graceful-termination-timeout", str(grace)]
        return [*argv, *profile.args]

    def env(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        env = {}
        if profile.api_key is not None:
            env["API_KEY"] = profile.api_key
        if profile.cache_dir:
            env["HUGGINGFACE_HUB_CACHE"] = f"{profile.cache_dir}/hub"
        return env

    def files(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        return {}

    def load(self, body: bytes) -> Load | None:
        found = samples(body, "tgi_batch_current_size", "tgi_queue_size")
        if not found["tgi_batch_current_size"] and not found["tgi_queue_size"]:
            return None
        return Load(
            running=int(sum(found["tgi_batch_current_size"])),
            queued=int(sum(found["tgi_queue_size"])),
        )

    def park(self, profile: Profile) -> ParkCalls | None:
        return None

    def gate(self, profile: Profile) -> Call | None:
        return None


KIND = TGI()

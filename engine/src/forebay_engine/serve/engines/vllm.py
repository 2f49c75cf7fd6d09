"""vLLM 0.33.0: `vllm serve`.

Flags: vllm/engine/arg_utils.py, vllm/entrypoints/common/cli_args.py. `--gpu-memory-utilization` is
the share of the whole GPU that the engine may take, 0.92 where nothing is said.

The port is closed until the engine is ready; `/health` is 200 then, and 503 once it has died. With
`--shutdown-timeout` SIGTERM lets running requests finish (entrypoints/launchers/launcher.py);
without it, it cuts them.

Parking: `--enable-sleep-mode`, and `VLLM_SERVER_DEV_MODE=1` for `POST /sleep?level=1` and
`/wake_up` (entrypoints/serve/dev/sleep): the weights move to main memory, and the cache is dropped.
That mode opens other control paths on the same port, which only a gateway may reach.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from forebay_engine.serve.engines import Call, Load, Mark, ParkCalls
from forebay_engine.serve.engines.common import fp8_cache, option, parallel, refuse, samples
from forebay_engine.serve.engines.sglang import load_format
from forebay_engine.serve.gpu import Gpu, sizes

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile


class VLLM:
    """See the module."""

    name = "vllm"
    version = "0.33.0"
    ready_path = "/health"
    load_path = "/metrics"
    chat = True
    drains_on_sigterm = True
    marks = (
        Mark("imported", re.compile(r"non-default args: ")),
        Mark("weights", re.compile(r"Starting to load model ")),
        Mark("weights_end", re.compile(r"Model loading took ")),
        Mark("graphs", re.compile(r"Capturing CUDA graphs|Capturing cudagraphs", re.IGNORECASE)),
        Mark("graphs_end", re.compile(r"Graph capturing finished in ")),
    )

    def check(self, profile: Profile, file: str) -> None:
        if profile.park == "gate":
            raise ValueError(f"{file}: park: vllm has no gate before its weights")
        refuse(profile, file, "vllm", max_queued="has no bound for its queue")

    def argv(self, profile: Profile, gpus: Sequence[Gpu]) -> list[str]:
        size = parallel(profile, gpus)
        argv = [*(profile.launcher or ("vllm", "serve")), profile.model]
        argv += ["--served-model-name", profile.served_name]
        argv += ["--host", profile.host, "--port", str(profile.port)]
        fp8 = fp8_cache(profile, gpus)
        if gpus:
            table = sizes(gpus, size)
            argv += ["--tensor-parallel-size", str(size)]
            tokens = profile.chunked_prefill or table.chunked_prefill
            argv += ["--max-num-batched-tokens", str(tokens)]
            graphs = profile.graph_batch or table.graph_batch
            argv += ["--max-cudagraph-capture-size", str(graphs)]
            option(argv, "--gpu-memory-utilization", profile.memory_fraction)
            if fp8:
                argv += ["--kv-cache-dtype", "fp8"]
        else:
            option(argv, "--max-num-batched-tokens", profile.chunked_prefill)
        option(argv, "--max-model-len", profile.context_length)
        option(argv, "--dtype", profile.dtype)
        option(argv, "--quantization", profile.quantization)
        option(argv, "--max-num-seqs", profile.max_running)
        option(argv, "--load-format", load_format(profile))
        if profile.trust_remote_code:
            argv.append("--trust-remote-code")
        if profile.park == "memory":
            argv.append("--enable-sleep-mode")
        # The supervisor asks each second; the access log is for others.
        argv += ["--disable-access-log-for-endpoints", "/health,/metrics"]
        # 0 would cut what runs.
        argv += ["--shutdown-timeout", str(max(1, ceil(profile.drain.grace_s)))]
        return [*argv, *profile.args]

    def env(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        env = {}
        if profile.api_key is not None:
            env["VLLM_API_KEY"] = profile.api_key
        if profile.park == "memory":
            env["VLLM_SERVER_DEV_MODE"] = "1"
        if profile.cache_dir:
            env["VLLM_CACHE_ROOT"] = f"{profile.cache_dir}/vllm"
        return env

    def files(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        return {}

    def load(self, body: bytes) -> Load | None:
        running, queued = "vllm:num_requests_running", "vllm:num_requests_waiting"
        used = "vllm:kv_cache_usage_perc"
        found = samples(body, running, queued, used)
        if not found[running]:
            return None
        return Load(
            running=int(sum(found[running])),
            queued=int(sum(found[queued])),
            kv_used=max(found[used], default=None),
        )

    def park(self, profile: Profile) -> ParkCalls | None:
        if profile.park != "memory":
            return None
        return ParkCalls(Call("/sleep?level=1"), Call("/wake_up"))

    def gate(self, profile: Profile) -> Call | None:
        return None


KIND = VLLM()

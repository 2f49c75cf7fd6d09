"""SGLang 0.5.23: `python -m sglang.launch_server`.

Flags: srt/arg_groups/fields/*.py. What an engine is given by its GPU's size is SGLang's own table
(arg_groups/memory_hook.py), said aloud so that a start does not depend on what else is on the
GPU. `--mem-fraction-static` is left to SGLang where the profile has none: it counts the model's
own needs in, and can measure after its graphs are captured.

`/ready` is a flag; the port is closed until weights are loaded, and `/ready` is 503 until the
engine has warmed itself up. SIGTERM: `/ready` 503 at once, running streams finish, exit when idle;
requests that still come are served, so gateways are told first.

Parking: `--enable-memory-saver` (needs the package torch_memory_saver, CUDA) and
`/release_memory_occupation`; without it the calls answer 200 and do nothing.
`--gated-launch-port`: all ranks wait after the distributed environment is there, before any large
allocation, for `POST /gate/activate` (srt/distributed/gated_launch.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from forebay_engine.serve.decoding import decoded
from forebay_engine.serve.engines import Call, Load, Mark, ParkCalls
from forebay_engine.serve.engines.common import fp8_cache, option, parallel
from forebay_engine.serve.gpu import Gpu, sizes

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile

GATE_OFFSET = 2_000
"""The gate's port lies so far above the engine's, or below it: SGLang draws others 100 to 1,000
above."""
OUTGOING = 32_768
"""From here on Linux gives ports to connections that go out (`ip_local_port_range`)."""


class _Rank(msgspec.Struct):
    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float


class _Loads(msgspec.Struct):
    """What `/v1/loads` says, as far as it is read."""

    loads: list[_Rank]


class SGLang:
    """See the module."""

    name = "sglang"
    version = "0.5.23"
    ready_path = "/ready"
    load_path = "/v1/loads?include=core"
    chat = True
    drains_on_sigterm = True
    marks = (
        Mark("imported", re.compile(r"server_args=")),
        Mark("gated", re.compile(r"Gated launch waiting for activation")),
        Mark("weights", re.compile(r"Load weight begin")),
        Mark("weights_end", re.compile(r"Load weight end")),
        Mark("graphs", re.compile(r"Capture .*graph begin", re.IGNORECASE)),
        Mark("graphs_end", re.compile(r"Capture .*graph end", re.IGNORECASE)),
    )

    def check(self, profile: Profile, file: str) -> None:
        """Nothing that a profile says is foreign to it."""

    def argv(self, profile: Profile, gpus: Sequence[Gpu]) -> list[str]:
        size = parallel(profile, gpus)
        argv = [*(profile.launcher or ("python", "-m", "sglang.launch_server"))]
        argv += ["--model-path", profile.model, "--served-model-name", profile.served_name]
        argv += ["--host", profile.host, "--port", str(profile.port)]
        if gpus:
            table = sizes(gpus, size)
            argv += ["--tp-size", str(size)]
            argv += [
                "--chunked-prefill-size",
                str(profile.chunked_prefill or table.chunked_prefill),
            ]
            argv += ["--cuda-graph-max-bs-decode", str(profile.graph_batch or table.graph_batch)]
            if fp8_cache(profile, gpus):
                argv += ["--kv-cache-dtype", "fp8_e4m3"]
        else:
            fp8_cache(profile, gpus)
            # Its idle scheduler spins a core otherwise, which the tokenizer and the server need.
            argv += ["--device", "cpu", "--disable-overlap-schedule", "--sleep-on-idle"]
            option(argv, "--chunked-prefill-size", profile.chunked_prefill)
        option(argv, "--mem-fraction-static", profile.memory_fraction)
        option(argv, "--context-length", profile.context_length)
        option(argv, "--dtype", profile.dtype)
        option(argv, "--quantization", profile.quantization)
        option(argv, "--max-running-requests", profile.max_running)
        option(argv, "--max-queued-requests", profile.max_queued)
        option(argv, "--api-key", profile.api_key)
        option(argv, "--load-format", load_format(profile))
        if profile.trust_remote_code:
            argv.append("--trust-remote-code")
        if profile.park == "memory":
            argv.append("--enable-memory-saver")
        if profile.park == "gate":
            argv += ["--gated-launch-port", str(gate_port(profile))]
        # The supervisor asks each second; the access log is for others.
        argv += ["--uvicorn-access-log-exclude-prefixes", "/ready", "/v1/loads"]
        # A load that is a second old, not 15 steps.
        argv += ["--enable-metrics", "--load-snapshot-publish-interval", "1"]
        return [*argv, *profile.args]

    def env(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        if not profile.cache_dir:
            return {}
        # Triton's, inductor's and DeepGEMM's caches are below it by SGLang's own defaults, too;
        # they are set so that one that is set outside does not lead elsewhere (srt/environ.py).
        root = f"{profile.cache_dir}/sglang"
        return {"SGLANG_CACHE_DIR": root, "SGLANG_DG_CACHE_DIR": f"{root}/deep_gemm"}

    def files(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        return {}

    def load(self, body: bytes) -> Load | None:
        found = decoded(body, _Loads)
        if found is None:
            return None
        return Load(
            running=sum(rank.num_running_reqs for rank in found.loads),
            queued=sum(rank.num_waiting_reqs for rank in found.loads),
            kv_used=max((rank.token_usage for rank in found.loads), default=None),
        )

    def park(self, profile: Profile) -> ParkCalls | None:
        if profile.park != "memory":
            return None
        return ParkCalls(Call("/release_memory_occupation"), Call("/resume_memory_occupation"))

    def gate(self, profile: Profile) -> Call | None:
        if profile.park != "gate":
            return None
        return Call("/gate/activate", port=gate_port(profile))


def load_format(profile: Profile) -> str | None:
    """`--load-format`: what the profile says, or the streamer where the engine reads a store."""
    weights = profile.weights
    return weights.load_format or ("runai_streamer" if weights.transfer == "stream" else None)


def gate_port(profile: Profile) -> int:
    """Where SGLang waits to be let on."""
    port, gate = profile.port, profile.port + GATE_OFFSET
    return port - GATE_OFFSET if port < OUTGOING <= gate or gate > 65535 else gate


KIND = SGLang()

"""The profile: which engine serves which model, and how it lives on its machine."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from forebay_engine.serve import document
from forebay_engine.serve.engines import make

KindName = Literal["sglang", "vllm", "tgi", "trtllm"]
KvCache = Literal["auto", "fp8", "fp8_where_supported"]
Park = Literal["stop", "memory", "gate"]

SCHEMES = ("file", "https", "http", "s3", "gs")
"""Of sources that are synced. A plain path is used where it is."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a profile. Fields that it does not have are errors."""


class Weights(Section, frozen=True):
    """Where the weights come from and how they reach memory."""

    source: str = ""
    """A folder, `file://`, `s3://`, `gs://`, or `https://` (a listing). Empty: `model` says it."""
    transfer: Literal["sync", "stream"] = "sync"
    """`sync` copies into the cache folder; `stream` has the engine read the store by itself."""
    load_format: str | None = None
    """The engine's `--load-format`; none: its own choice, or the streamer's for `stream`."""
    cache_limit_gb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """GB (10⁹ bytes) that synced models may take; the least recently used go first."""
    checksums: bool = True
    """Check synced files against `SHA256SUMS` of the source, where it has one."""
    preload: bool = True
    """Read the weight files into the page cache while the engine imports."""
    preload_threads: Count = 4


class Warmup(Section, frozen=True):
    """What is asked of the engine before it counts as warm, one after another."""

    prompts: tuple[str, ...] = ("Hello",)
    max_tokens: Count = 8
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """For each prompt."""


class Drain(Section, frozen=True):
    """How an engine ends."""

    settle_s: Seconds = 2.5
    """Between saying `draining` and the first step, so that gateways have looked (every 2 s)."""
    grace_s: Seconds = 120.0
    """For what runs, from the word on."""
    kill_s: Seconds = 10.0
    """Between SIGTERM and SIGKILL where nothing runs or the grace is over."""


class Restart(Section, frozen=True):
    """After a crash. The n-th pause in a row is `backoff_s` · 2ⁿ⁻¹, `backoff_max_s` at most."""

    backoff_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    backoff_max_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    max_crashes: Annotated[int, msgspec.Meta(ge=0)] = 5
    """Within `within_s`; one more and the engine is `down`. 0: the first is the last."""
    within_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    unready_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """An engine that was warm and has not been ready for so long is killed; none: never."""


class Profile(Section, frozen=True):
    """One engine. Units are in the names; None is left to the engine, or to the GPU's table."""

    kind: KindName
    model: str
    """A path, or a name at the hub that the engine loads from."""
    name: str | None = None
    """The name that it is served under; none: `model`."""
    host: str = "127.0.0.1"
    port: PortNumber = 30000
    api_key: str | None = None
    """Asked of clients by the engine, and sent by the supervisor."""

    launcher: tuple[str, ...] = ()
    """Stands in the place of the kind's own launcher; arguments follow as ever."""
    command: tuple[str, ...] = ()
    """The whole argv, with `{host} {port} {model} {name}` set in; with `park: gate`, `{gate}`."""
    args: tuple[str, ...] = ()
    """More arguments, at the end, where they override."""
    env: dict[str, str] = {}
    cwd: str | None = None

    tensor_parallel: Count | None = None
    """GPUs; none: all that are seen."""
    dtype: str | None = None
    quantization: str | None = None
    kv_cache: KvCache = "auto"
    """`fp8` halves it; without scales in the checkpoint at some cost in accuracy. Needs SM 8.9."""
    context_length: Count | None = None
    memory_fraction: Fraction | None = None
    """In the engine's own meaning (docs/engine-serve.md)."""
    chunked_prefill: Count | None = None
    """Tokens of prefill a step."""
    graph_batch: Count | None = None
    """The largest batch that graphs are captured for."""
    max_running: Count | None = None
    max_queued: Count | None = None
    trust_remote_code: bool = False

    park: Park = "stop"
    """What `park` does: end the process, release its memory, or hold one before its weights."""
    cache_dir: str | None = None
    """For compiled kernels, graphs and synced weights; kept between starts."""
    load_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 1800.0
    """From the start to ready; then it is a crash."""

    weights: Weights = Weights()
    warmup: Warmup = Warmup()
    drain: Drain = Drain()
    restart: Restart = Restart()

    @property
    def served_name(self) -> str:
        """What clients say in `model`."""
        return self.name or self.model

    @property
    def url(self) -> str:
        """Where the engine is asked on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def member(self, index: int) -> Profile:
        """The profile of a pool's member: its port is `port + index`. Raises ValueError."""
        if not 1 <= self.port + index <= 65535:
            raise ValueError(f"port: {self.port} + {index} is none")
        return msgspec.structs.replace(self, port=self.port + index)


def load(path: str | Path, sets: tuple[str, ...] = ()) -> Profile:
    """Read a profile. `sets` are `key=value` words that win over the file, as in `drain.grace_s=5`.

    Raises ValueError, which names the file and the field.
    """
    text = document.read(path)
    return parse(text, str(path), sets)


def parse(text: str, file: str = "profile", sets: tuple[str, ...] = ()) -> Profile:
    """As `load`, of a text; `file` is its name in errors."""
    return from_values(document.mapping(text, file), file, sets)


def from_values(
    values: dict[str, Any], file: str = "profile", sets: tuple[str, ...] = ()
) -> Profile:
    """As `load`, of what YAML has become; `file` is its name in errors."""
    values = copy.deepcopy(values)
    for word in sets:
        document.put(values, word, "--set")
    profile = document.convert(document.expand(values, file), Profile, file)
    _check(profile, file)
    return profile


def _check_finite(section: Section, file: str, at: str = "") -> None:
    """YAML has `.inf` and `.nan`; engines' flags and clocks have not."""
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            _check_finite(value, file, f"{at}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{file}: {at}{name}: must be a finite number")


def _check(profile: Profile, file: str) -> None:
    _check_finite(profile, file)
    if not profile.model:
        raise ValueError(f"{file}: model: must not be empty")
    if profile.command and (profile.launcher or profile.args):
        raise ValueError(f"{file}: command: stands alone, without launcher and args")
    scheme, mark, place = profile.weights.source.partition("://")
    if mark and "@" in place.partition("/")[0]:  # it would stand in logs and answers
        raise ValueError(f"{file}: weights.source: must not hold a user or a password")
    if profile.weights.transfer == "stream":
        if not mark or scheme == "file":
            raise ValueError(f"{file}: weights.transfer: stream needs a store in weights.source")
    elif mark:
        if scheme not in SCHEMES:
            raise ValueError(f"{file}: weights.source: {scheme}:// is none of {', '.join(SCHEMES)}")
        if not profile.cache_dir:
            raise ValueError(f"{file}: weights.source: to sync it needs cache_dir")
    make(profile.kind).check(profile, file)
    if profile.command:
        _check_gate(profile, file)


def _check_gate(profile: Profile, file: str) -> None:
    """The engine is let on at one port, which its command has to be told."""
    said = any("{gate}" in word for word in profile.command)
    if profile.park == "gate" and not said:
        raise ValueError(
            f"{file}: command: park: gate needs the gate's port in it: --gated-launch-port {{gate}}"
        )
    if said and profile.park != "gate":
        raise ValueError(f"{file}: command: {{gate}} needs park: gate")

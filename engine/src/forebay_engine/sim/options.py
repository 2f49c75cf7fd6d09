"""What a simulated server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field

from forebay_engine.sim.faults import Fault
from forebay_engine.sim.scheduler import Limits


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Options of one server.

    models: generative models served; embedding_models: served by `/v1/embeddings`.
    embed_any: `/v1/embeddings` takes every model, which a real engine does not.
    load_delay_s: how long the port refuses connections; afterwards `/ready` is 503 for
        `warmup_s` while completions are already answered, as on a real start.
    disconnect_poll_s: when a hang-up on a request that is queued or not a stream is noticed.
    health_delay_s: what each `/health` takes.
    request_faults: whether requests may ask for faults.
    exit_with_parent: drain and end when the process that started this one is gone.
    bytes_per_token: UTF-8 bytes of a prompt token; 1 counts as the recorded model did.
    kind: what is simulated. api_key: as that kind takes it; where it needs two parts, KEY:SECRET.
    cold_s: the server is not loaded at first; loading takes so long. None: it is.
    comment_s: seconds between comments that keep a waiting stream open; None: as the kind does.
    redirect_after_s, redirect_hops: when and how often at most an answer is put off by a 303.
    wait_s: how long a request waits for a worker that is being started.
    region: of the signatures that are accepted.
    memory_saver: `/server_info` says so; memory is neither released nor resumed.
    gate_port: where the start waits until it is activated; None: it does not.
    """

    kind: str = "sglang"
    host: str = "127.0.0.1"
    port: int = 30000
    models: tuple[str, ...] = ("tiny",)
    embedding_models: tuple[str, ...] = ()
    embedding_dim: int = 64
    embed_any: bool = False
    ready_file: str | None = None
    api_key: str | None = None
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    context_length: int = 131_072
    bytes_per_token: int = 4
    cache_report: bool = False
    load_delay_s: float = 0.0
    warmup_s: float = 0.2
    disconnect_poll_s: float = 3.2
    health_delay_s: float = 1.0
    faults: tuple[Fault, ...] = ()
    request_faults: bool = True
    exit_with_parent: bool = False
    cold_s: float | None = None
    comment_s: float | None = None
    redirect_after_s: float = 150.0
    redirect_hops: int = 20
    wait_s: float = 120.0
    region: str = "us-east-1"
    memory_saver: bool = False
    gate_port: int | None = None

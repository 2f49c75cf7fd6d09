"""The whole file, its JSON Schema, and how it is shown."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from forebay.config.schema.base import MASK, Name, Section
from forebay.config.schema.checks import mask_url
from forebay.config.schema.model import Model
from forebay.config.schema.service import (
    Files,
    Idempotency,
    Limits,
    Listen,
    Log,
    PromptLogs,
    Responses,
    Retention,
    Spool,
    Telemetry,
)
from forebay.config.schema.upstream import SECRETS, Upstream


class Config(Section, frozen=True, kw_only=True):
    """Everything `forebay serve` needs to know.

    database_url: ``postgresql://…``; None runs without keys and usage records.
    redis_url: ``redis://…``; None keeps limits to this machine.
    expected_nodes: machines that share limits, until the store of `redis_url` tells.
    node: this machine's name in usage records; None takes the host's.
    drain_notice_s: seconds from SIGTERM until no more connections are taken. ``/readyz`` is 503 and
        answers close their connections, so that load balancers that look turn away first.
    drain_idle_s: seconds from there, or from its last answer, after which an idle connection is
        closed; until then what a proxy sends on it is answered.
    drain_s: seconds that running requests get to finish after that notice.
    files: where files and batches are kept; None: nowhere.
    workers: processes that serve, on one address and with one table of limits.
    """

    listen: Listen = Listen()
    database_url: str | None = None
    redis_url: str | None = None
    expected_nodes: Annotated[int, Meta(ge=1, le=100_000)] = 1
    upstreams: dict[Name, Upstream] = msgspec.field(default_factory=dict)
    models: dict[Name, Model] = msgspec.field(default_factory=dict)
    limits: Limits = Limits()
    node: Name | None = None
    spool: Spool = Spool()
    retention: Retention = Retention()
    drain_notice_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    drain_idle_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    log: Log = Log()
    telemetry: Telemetry = Telemetry()
    prompt_logs: PromptLogs = PromptLogs()
    files: Files | None = None
    idempotency: Idempotency = Idempotency()
    responses: Responses = Responses()


def json_schema() -> dict[str, Any]:
    """The schema as a JSON Schema (2020-12) document, for editors and checks."""
    schema = msgspec.json.schema(Config)
    money = (*schema["$defs"]["Price"]["properties"].values(),)
    for field in (*money, schema["$defs"]["Target"]["properties"]["max_cost"]):
        for variant in field.get("anyOf", [field]):
            # msgspec has them as strings, which is how JSON carries them; YAML may have numbers.
            if variant.get("format") == "decimal":
                variant["type"] = ["string", "number"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def to_public(config: Config) -> dict[str, Any]:
    """The configuration as plain data with every secret replaced by ``***``."""
    public: dict[str, Any] = msgspec.to_builtins(config)
    for upstream in public["upstreams"].values():
        if upstream["api_key"] is not None:
            upstream["api_key"] = MASK
        upstream["headers"] = dict.fromkeys(upstream["headers"], MASK)
        for name in SECRETS if upstream["credentials"] is not None else ():
            if upstream["credentials"][name] is not None:
                upstream["credentials"][name] = MASK
        if upstream["agent"] is not None and upstream["agent"]["key"] is not None:
            upstream["agent"]["key"] = MASK
    public["prompt_logs"]["keys"] = dict.fromkeys(config.prompt_logs.keys, MASK)
    if config.database_url is not None:
        public["database_url"] = mask_url(config.database_url)
    if config.telemetry.otlp_endpoint is not None:
        public["telemetry"]["otlp_endpoint"] = mask_url(config.telemetry.otlp_endpoint)
    if config.redis_url is not None:
        public["redis_url"] = mask_url(config.redis_url)
    return public

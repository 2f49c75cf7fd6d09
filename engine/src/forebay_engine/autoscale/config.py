"""The file of `forebay-engine autoscale`: which models, where their signals are, who is told.

YAML; a field that is not known is refused. `${NAME}` in a secret is taken from the environment.
"""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta

from forebay_engine.autoscale.policy import Capacity, Limits, Windows

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Words = Annotated[str, Meta(min_length=1)]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/]+")]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section; unknown fields are refused."""


class Exec(Strict, frozen=True, kw_only=True, tag="exec", tag_field="kind"):
    """Runs a command with `DESIRED`, `CURRENT` and `MODEL` in its environment."""

    command: Annotated[list[Words], Meta(min_length=1)]
    timeout_s: Positive = 60.0


class Pool(Strict, frozen=True, kw_only=True, tag="pool", tag_field="kind"):
    """`PUT /pool` of a forebay-engine agent.

    parked: members kept parked, at most those not warm.
    """

    url: Url
    key: str | None = None
    parked: Count = 0


class K8s(Strict, frozen=True, kw_only=True, tag="k8s", tag_field="kind"):
    """The scale subresource of a Deployment, StatefulSet or another resource that has one.

    url, token, ca: from the pod's service account where they are left out.
    """

    name: Words
    namespace: str | None = None
    resource: Words = "deployments"
    group: str = "apps/v1"
    url: Url | None = None
    token: str | None = None
    ca: str | None = None


class RunPod(Strict, frozen=True, kw_only=True, tag="runpod", tag_field="kind"):
    """A serverless endpoint's `workersMin` and `workersMax`.

    spare: workers above the desired ones that RunPod may start by itself
    """

    endpoint: Words
    key: Words
    url: Url = "https://rest.runpod.io/v1"
    spare: Count = 0


class Baseten(Strict, frozen=True, kw_only=True, tag="baseten", tag_field="kind"):
    """A deployment's autoscaling settings."""

    model: Words
    deployment: Words = "production"
    key: Words
    url: Url = "https://api.baseten.co"
    spare: Count = 0


class Modal(Strict, frozen=True, kw_only=True, tag="modal", tag_field="kind"):
    """A function's autoscaler, by the package `modal` with its own credentials.

    function: `name`, or `Class.method` of which the class is scaled
    """

    app: Words
    function: Words
    environment: str | None = None
    spare: Count = 0


Driver = Exec | Pool | K8s | RunPod | Baseten | Modal


class Engine(Strict, frozen=True, kw_only=True):
    """One engine that is read.

    agent: a forebay-engine agent's address; metrics: the engine's own.
    """

    agent: Url | None = None
    metrics: Url | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError where nothing can be read."""
        if self.agent is None and self.metrics is None:
            raise ValueError("an engine has agent, metrics or both")


class Work(Strict, frozen=True, kw_only=True):
    """What a replica does in a second: prompt tokens read, or tokens made in a full batch."""

    prefill_tokens_per_s: Positive
    decode_tokens_per_s: Positive


class CapacityOf(Strict, frozen=True, kw_only=True):
    """See `policy.Capacity`; `work` makes load of tokens instead of requests in the system."""

    concurrency: Annotated[int, Meta(ge=1)]
    start_s: NotNegative = 60.0
    ttft_target_s: Positive = 2.0
    ttft_share: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    kv_target: Share = 0.85
    spill_price: Annotated[float, Meta(ge=1)] | None = None
    work: Work | None = None

    def settings(self) -> Capacity:
        """As the rule takes it."""
        return Capacity(
            concurrency=self.concurrency,
            start_s=self.start_s,
            target_s=self.ttft_target_s,
            late_share=round(1 - self.ttft_share, 9),
            kv_target=self.kv_target,
            spill_price=self.spill_price,
        )


class LimitsOf(Strict, frozen=True, kw_only=True):
    """See `policy.Limits`. Money is in the currency of your choice, exact."""

    min: Count = 0
    max: Annotated[int, Meta(ge=1)] = 10
    cool_down_s: NotNegative = 0.0
    keep_s: NotNegative | None = None
    idle_s: NotNegative = 600.0
    price_per_hour: Decimal | None = None
    max_cost_per_hour: Decimal | None = None
    stale_s: Positive = 30.0

    def __post_init__(self) -> None:
        """Raises: ValueError naming the field that is out of bounds."""
        for name in ("price_per_hour", "max_cost_per_hour"):
            money: Decimal | None = getattr(self, name)
            if money is not None and not (money.is_finite() and money >= 0):
                raise ValueError(f"{name}: {money} is not an amount")
        self.settings()

    def settings(self) -> Limits:
        """As the autoscaler takes it."""
        return Limits(
            least=self.min,
            most=self.max,
            cool_down_s=self.cool_down_s,
            idle_s=self.idle_s,
            price=self.price_per_hour,
            most_per_hour=self.max_cost_per_hour,
            stale_s=self.stale_s,
        )

    def windows(self) -> Windows:
        """How long the rule keeps what it wanted."""
        return Windows(keep_s=self.keep_s)


class Model(Strict, frozen=True, kw_only=True):
    """One model. upstreams: the gateway's own engines of it, none of the managed tiers.

    rule: `target` is ours; the others are there to compare with
    """

    upstreams: Annotated[list[Words], Meta(min_length=1)]
    capacity: CapacityOf
    limits: LimitsOf = LimitsOf()
    rule: Literal["target", "forecast", "concurrency", "hpa"] = "target"
    engines: list[Engine] = []
    driver: Driver | None = None


class Config(Strict, frozen=True, kw_only=True):
    """The whole file.

    gateways: every gateway of the model, of which all `/metrics` are summed up.
    """

    gateways: Annotated[list[Url], Meta(min_length=1)]
    gateway_key: str | None = None
    interval_s: Annotated[float, Meta(ge=0.2, le=300)] = 2.0
    timeout_s: Positive = 2.0
    models: Annotated[dict[Words, Model], Meta(min_length=1)]


_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(path: Path, environment: dict[str, str] | None = None) -> Config:
    """Read the file.

    Raises: ValueError naming the file and the field, OSError where it is not there.
    """
    env = dict(os.environ) if environment is None else environment
    try:
        # All values are text until their field says what they are: money never passes a float.
        tree = yaml.load(path.read_text(), yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where}: this is not YAML") from None
    try:
        return msgspec.convert(_filled(tree, env), Config, strict=False, str_keys=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _filled(node: object, env: dict[str, str]) -> object:
    if isinstance(node, dict):
        return {key: _filled(value, env) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, env) for value in node]
    if isinstance(node, str):
        return _REFERENCE.sub(lambda match: _value(match[1], env), node)
    return node


def _value(name: str, env: dict[str, str]) -> str:
    if name not in env:
        raise ValueError(f"${{{name}}} is not in the environment")
    return env[name]

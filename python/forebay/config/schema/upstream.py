"""Upstreams: where requests go, with which credentials, and within which bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from forebay.config.kinds import UpstreamKind
from forebay.config.schema.base import MASK, MIB, Concurrency, Name, Seconds, SecondsOrNone, Section
from forebay.config.schema.health import Agent, Cold, Outlier, ProbeSettings

OnDisconnect = Literal["abort", "drain"]
Api = Literal["native", "openai"]


class Queue(Section, frozen=True, kw_only=True):
    """Where requests wait while an upstream has as many as it may, fairly among accounts.

    max_waiting: requests that wait at most; 0 refuses at once what cannot start at once.
    timeout: longest wait, in seconds.
    """

    max_waiting: Annotated[int, Meta(ge=0, le=100_000)] = 1000
    timeout: Seconds = 30.0


class Adaptive(Section, frozen=True, kw_only=True):
    """Bounds of a limit on requests in flight that follows the time to first token of streams.

    min: requests that the upstream can always take at once: the time without a queue is measured
        there. max: more are never tried.
    """

    min: Concurrency = 4
    max: Concurrency


class Credentials(Section, frozen=True, kw_only=True):
    """Credentials that are more than one key; which of them a kind takes is in `config.kinds`.

    key, secret: a proxy token (Modal). access_key_id, secret_access_key, session_token: AWS.
    profile: of the AWS configuration. file: a service account or workload identity (Google).
    tenant_id, client_id, client_secret: an application of Microsoft Entra.
    authority: its login server where that is not the public cloud's.
    """

    key: str | None = None
    secret: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    profile: str | None = None
    file: str | None = None
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    authority: str | None = None

    def __repr__(self) -> str:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        return f"Credentials({', '.join(f'{name}={MASK}' for name in given)})"


SECRETS = (
    "key",
    "secret",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "client_secret",
)
"""The fields of `Credentials` that are shown to nobody."""


class Upstream(Section, frozen=True, kw_only=True):
    """One place that answers requests.

    url: base address without ``/v1``; a trailing ``/v1`` is taken off when read. None takes the
        kind's own.
    api_key: its key, sent as the kind wants it; None sends none.
    credentials: others than one key.
    api: which of a provider's two APIs is used; None takes the one that the kind prefers.
    region, project, location, api_version: parts of the address, where a kind has them.
    deployments: Azure's classic addresses, with the deployment in the path.
    headers: sent with every request.
    max_concurrency: requests in flight at most; None does not bound them.
    adaptive: find out how many requests in flight the upstream can take, instead of
        ``max_concurrency``.
    queue: where requests wait once there are as many in flight.
    http2: speak HTTP/2 from the first byte (prior knowledge on ``http://``, ALPN on ``https://``).
    discover: serve every model this upstream lists, besides those under ``models``.
    on_disconnect: what becomes of a request whose client leaves. ``abort``: it is stopped, and what
        was delivered is billed. ``drain``: its answer is read to the end, and billed whole; for
        providers that bill the whole anyway. None: as its kind does.
    drain_s, drain_bytes: how far it is read at most, in seconds and bytes after the client left.
    drop_params: leave out what the provider's dialect cannot carry, instead of refusing it.
    max_output_tokens: asked for where the dialect wants a bound and the client names none.
    responses: how requests of OpenAI's Responses reach it. ``native``: as they are, where it has
        them. ``bridge``: over chat. None: as its kind does.
    continues: can go on from a last message of the assistant's; None: as its kind can.
    draining: takes no new requests.
    probe, outlier, slow_start, cold: how it is watched. slow_start: seconds over which its share
        of requests grows once it is back. cold: None as its kind does.
    agent: tells how the engine is and starts it; None: the engine itself is asked.
    """

    kind: UpstreamKind
    url: str | None = None
    api_key: str | None = None
    credentials: Credentials | None = None
    api: Api | None = None
    region: str | None = None
    project: str | None = None
    location: str | None = None
    api_version: str | None = None
    deployments: bool = False
    headers: dict[Name, str] = msgspec.field(default_factory=dict)
    max_concurrency: Concurrency | None = None
    adaptive: Adaptive | None = None
    queue: Queue = Queue()
    http2: bool = False
    discover: bool = False
    on_disconnect: OnDisconnect | None = None
    drain_s: Seconds = 120.0
    drain_bytes: Annotated[int, Meta(ge=1024, le=1024 * MIB)] = MIB
    drop_params: bool = False
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    responses: Literal["native", "bridge"] | None = None
    continues: bool | None = None
    draining: bool = False
    probe: ProbeSettings = ProbeSettings()
    outlier: Outlier | None = Outlier()
    slow_start: SecondsOrNone = 10.0
    cold: Cold | None = None
    agent: Agent | None = None

    def __repr__(self) -> str:
        return f"Upstream(kind={self.kind!r}, url={self.url!r})"

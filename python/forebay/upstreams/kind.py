"""What the gateway has to know of a kind of upstream, as types.

A kind's file makes one `Kind`, or one object of a subclass where an address, a path or a credential
depends on the upstream's settings. Methods take the settings of one upstream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from forebay.config.schema import Upstream
    from forebay.upstreams.credentials import CredentialSource

Dialect = Literal["open_ai", "anthropic", "gemini", "converse"]
"""A protocol of chat, as the core names it."""
Reason = Literal["context_overflow", "content_filter", "loading", "quota"]
"""What a refusal is about, where another model or target may do better."""
State = Literal["warm", "loading", "cold", "down"]
"""What a look at an upstream comes to."""
ErrorKind = Literal[
    "invalid_request",
    "model_not_found",
    "payload_too_large",
    "rate_limited",
    "upstream_error",
    "unavailable",
    "upstream_timeout",
]
"""The kinds of error that an upstream's answer can be; the names are those of the core."""


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """What one answer means; all conditions that are given have to hold, the first rule counts.

    status: the HTTP status.
    kind: the error that it is to the client.
    code: the error's own ``code``, ``type`` or ``status``.
    contains: text in the body, in lower case; compared without case.
    retry: whether another target may do better; None as the kind of error says.
    reason: what it is about, where another model may do better.
    """

    status: int
    kind: ErrorKind
    code: str | None = None
    contains: str | None = None
    retry: bool | None = None
    reason: Reason | None = None


Endpoint = Literal[
    "rerank",
    "score",
    "moderations",
    "images",
    "image_edits",
    "image_variations",
    "speech",
    "transcriptions",
    "translations",
    "files",
    "batches",
]
"""An API that not every engine has, as the core names it."""
OWN: dict[Endpoint, str] = {
    "rerank": "/rerank",
    "score": "/score",
    "moderations": "/moderations",
    "images": "/images/generations",
    "image_edits": "/images/edits",
    "image_variations": "/images/variations",
    "speech": "/audio/speech",
    "transcriptions": "/audio/transcriptions",
    "translations": "/audio/translations",
    "files": "/files",
    "batches": "/batches",
}
"""Where each is below ``/v1``."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths below the address; ``{model}`` is the model's name there. None: not there.

    count_tokens: takes a request of Anthropic's Messages, answers how many tokens its input has.
    realtime: a WebSocket for Realtime sessions.
    """

    chat: str | None = "/v1/chat/completions"
    chat_stream: str | None = None
    completions: str | None = "/v1/completions"
    embeddings: str | None = "/v1/embeddings"
    count_tokens: str | None = None
    responses: str | None = None
    realtime: str | None = None
    rerank: str | None = None
    score: str | None = None
    moderations: str | None = None
    images: str | None = None
    image_edits: str | None = None
    image_variations: str | None = None
    speech: str | None = None
    transcriptions: str | None = None
    translations: str | None = None
    files: str | None = None
    batches: str | None = None

    def having(self, *names: Endpoint, below: str = "/v1", query: str = "") -> Paths:
        """These with further APIs, each where OpenAI (or Jina, or vLLM) has it `below` a path."""
        return replace(self, **{name: f"{below}{OWN[name]}{query}" for name in names})


@dataclass(frozen=True, slots=True)
class Sign:
    """What a signature (AWS Signature Version 4) is for."""

    service: str
    region: str


@dataclass(frozen=True, slots=True)
class Probe:
    """How an upstream is asked how it is. Paths lie below its address and are read with GET.

    ready: 200 when requests can be taken, without touching the model where that is possible.
    loading: statuses that mean "is being started".
    models: lists the models it serves. loads: how much it has to do. info: whether it makes text or
        embeddings, where a chat would harm an engine of embeddings.
    auth: refuses a wrong key, where neither `ready` nor `models` asks for one.
    wakes: asking starts it, or keeps it from being stopped: ask only while requests want it.
    interval_s, timeout_s: between two looks, and the longest wait for an answer.
    """

    ready: str
    loading: frozenset[int] = frozenset()
    models: str | None = None
    loads: str | None = None
    info: str | None = None
    auth: str | None = None
    wakes: bool = False
    interval_s: float = 2.0
    timeout_s: float = 2.0

    def judge(self, status: int, body: bytes) -> State:
        """What an answer to `ready` says. No answer at all is for the caller to judge."""
        if status == 200:
            return "warm"
        return "loading" if status in self.loading else "down"


@dataclass(frozen=True, slots=True)
class Wake:
    """The request that starts an engine that was stopped; its answer need not be waited for."""

    method: Literal["GET", "POST"]
    path: str


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of engine or provider.

    name: as in the configuration's ``kind``.
    dialect: what is spoken there unless the settings choose another (`dialect_for`).
    default_url: its address where there is one for all; None: the settings must have it.
    bearer: ``api_key`` is sent as a bearer token; else `headers` carries it.
    include_usage, continuous_usage: knows ``stream_options.include_usage`` and
        ``stream_options.continuous_usage_stats``.
    rid: takes our request id in the body field ``rid``.
    abort_path: where ``{"rid": …}`` is posted to stop a request; None if closing the connection
        is the only way.
    drains: bills a whole answer even if its client leaves, so that it is read to its end.
    redirects: a 303 says where the answer is to be fetched.
    continues: goes on from a last message of the assistant's (``continue_final_message``).
    any_model: serves what it has, whatever name a request has for it.
    cold: may have to be started first: requests are held meanwhile.
    idle_s: without requests for so long it is taken to have been stopped, seconds; 0 never.
    errors: what its answers mean where that is not what the core reads in them anyway. That is: 401
        to 403 and 5xx are the upstream's own fault, 404 a model it lacks, 408 and 504 time, 429 a
        rate, 503 and 529 too much to do, every other 4xx the request's fault; and by code and words
        (rust/core/src/scrub/reason.rs) an overflow of the context, a filter, a start, a quota.
    responses: requests of OpenAI's Responses go to its own unless the settings say otherwise; else
        they are bridged over chat.
    probe: how it is asked how it is; None: only requests tell. wake: how it is started.
    """

    name: str
    dialect: Dialect = "open_ai"
    default_url: str | None = None
    bearer: bool = True
    include_usage: bool = True
    continuous_usage: bool = False
    rid: bool = False
    abort_path: str | None = None
    drains: bool = False
    redirects: bool = False
    continues: bool = False
    any_model: bool = False
    cold: bool = False
    idle_s: float = 0.0
    errors: tuple[ErrorRule, ...] = ()
    default_paths: Paths = Paths()
    responses: bool = False
    probe: Probe | None = None
    wake: Wake | None = None

    def address(self, upstream: Upstream) -> str:
        """Scheme, host, port and an optional prefix that all paths lie below."""
        url = upstream.url or self.default_url
        if url is None:
            raise ValueError(f"{self.name} has no address of its own: url is needed")
        return url

    def dialect_for(self, upstream: Upstream) -> Dialect:
        """What is spoken at this upstream."""
        return self.dialect

    def paths(self, upstream: Upstream) -> Paths:
        """Where each API is."""
        return self.default_paths

    def paths_used(self, upstream: Upstream) -> Paths:
        """Where each API is that the gateway uses there."""
        paths = self.paths(upstream)
        wanted = self.responses if upstream.responses is None else upstream.responses == "native"
        return paths if wanted else replace(paths, responses=None)

    def bearer_token(self, upstream: Upstream) -> str | None:
        """The key that is sent as a bearer token."""
        return upstream.api_key if self.bearer else None

    def headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """What every request carries besides a bearer token: other credentials, versions."""
        return []

    def sign(self, upstream: Upstream) -> Sign | None:
        """What requests are signed for, if they are."""
        return None

    def credentials(self, upstream: Upstream) -> CredentialSource | None:
        """Where credentials that change come from; None: there are none that do."""
        return None

    def errors_for(self, upstream: Upstream) -> tuple[ErrorRule, ...]:
        """The table of errors of this upstream."""
        return self.errors

    def probe_for(self, upstream: Upstream) -> Probe | None:
        """How this upstream is asked how it is, with what its settings say of it."""
        return self._as_set(self.probe, upstream)

    def wake_for(self, upstream: Upstream) -> Wake | None:
        """How this upstream is started: as its settings say, else as its kind is."""
        cold = upstream.cold
        if cold is not None and cold.wake is not None:
            return Wake("POST", cold.wake)
        return self.own_wake(upstream)

    def own_wake(self, upstream: Upstream) -> Wake | None:
        """How this upstream is started where its settings say nothing."""
        return self.wake

    def can_be_cold(self, upstream: Upstream) -> bool:
        """Whether this upstream may have to be started first."""
        return self.cold

    def starts(self, upstream: Upstream) -> bool:
        """Whether requests are held for this upstream though its settings say nothing of that."""
        return upstream.agent is not None or self.can_be_cold(upstream)

    @staticmethod
    def _as_set(probe: Probe | None, upstream: Upstream) -> Probe | None:
        """The kind's probe with the settings' path, interval and timeout."""
        settings = upstream.probe
        if probe is None:
            if settings.path is None:
                return None
            probe = Probe(ready=settings.path)
        if settings.path is not None:
            # Whoever names a path of their own knows what it costs.
            probe = replace(probe, ready=settings.path, wakes=False)
        if settings.interval is not None:
            probe = replace(probe, interval_s=settings.interval)
        if settings.timeout is not None:
            probe = replace(probe, timeout_s=settings.timeout)
        return probe

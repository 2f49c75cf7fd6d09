"""Models: where they are served, how a target is chosen, and what happens when one fails."""

from typing import Annotated, Literal

from msgspec import Meta

from forebay.config.schema.base import (
    Name,
    Percent,
    Seconds,
    SecondsOrNone,
    Section,
    Usd,
    UsdPerMillion,
)

Policy = Literal["round_robin", "least_load", "power_of_two", "prefix_affinity", "latency"]
StickyBy = Literal["session", "user", "key"]


class Target(Section, frozen=True, kw_only=True):
    """One upstream that serves a model.

    model: the model's name there; None uses the name under ``models``.
    tier: used when no target of a lower one can take a request; 0 comes first.
    weight: its share of requests against its siblings'.
    canary_percent: its share of all of the model's requests, whatever the policy.
    max_cost: not used for requests that may cost more there, US dollars.
    first_byte: longest wait for its first byte, where that is not the model's, seconds.
    context_tokens: its context; what is estimated not to fit goes elsewhere.
    """

    upstream: Name
    model: Name | None = None
    tier: Annotated[int, Meta(ge=0, le=255)] = 0
    weight: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    canary_percent: Percent | None = None
    max_cost: Usd | None = None
    first_byte: Seconds | None = None
    context_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None


class Timeouts(Section, frozen=True, kw_only=True):
    """Bounds on one attempt, in seconds.

    connect: until the connection stands. first_byte: from sending until the first body byte.
    idle: between two chunks. total: the whole answer.
    """

    connect: Seconds = 2.0
    first_byte: Seconds = 120.0
    idle: Seconds = 60.0
    total: Seconds = 600.0


class Price(Section, frozen=True, kw_only=True):
    """What a model's tokens cost, in US dollars for a million.

    cached: of the input tokens that the engine had in its cache; None takes input's.
    """

    input: UsdPerMillion
    output: UsdPerMillion
    cached: UsdPerMillion | None = None


class Sticky(Section, frozen=True, kw_only=True):
    """Requests of one session go to one target as long as that can take them.

    by: ``session`` is the header ``x-session-id``, else the body's ``user``, else the key.
        ``user`` leaves the header out, ``key`` takes the API key alone.
    ttl: seconds that a session is remembered after its last request.
    """

    by: StickyBy = "session"
    ttl: Seconds = 600.0


class Shadow(Section, frozen=True, kw_only=True):
    """A copy of some requests goes there; its answers are thrown away.

    model: the model's name there; None uses the name under ``models``.
    percent: of the requests. max_in_flight: copies at a time; more are not made.
    """

    upstream: Name
    model: Name | None = None
    percent: Percent
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 16


class Retry(Section, frozen=True, kw_only=True):
    """What happens when an attempt fails before its first token.

    attempts: at most, the first one included. budget: retries for each request, over time.
    min_per_second: retries a second that are always allowed.
    backoff, max_backoff: the first and the longest wait before a target is tried again, seconds;
        it doubles, with jitter.
    statuses: of upstreams, that are tried elsewhere though they usually are not.
    """

    attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    budget: Annotated[float, Meta(ge=0, le=100)] = 0.2
    min_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] = 10.0
    backoff: SecondsOrNone = 0.05
    max_backoff: SecondsOrNone = 2.0
    statuses: tuple[Annotated[int, Meta(ge=400, le=599)], ...] = ()


class Hedge(Section, frozen=True, kw_only=True):
    """A second attempt beside a slow first one.

    after: seconds without a first token. max_percent: of all requests at most.
    """

    after: Seconds
    max_percent: Percent = 5.0


class Model(Section, frozen=True, kw_only=True):
    """A model as clients name it.

    policy: how a target is chosen among those of a tier.
    price: what it costs until the price book says otherwise; None leaves it to the book.
    fallbacks: models that are tried in turn when this one cannot answer.
    context_fallback: the model for what does not fit into this one's context.
    content_filter_fallback: the model for what a content filter refuses.
    resume: a stream whose engine dies is carried on by a sibling that can.
    """

    targets: Annotated[tuple[Target, ...], Meta(min_length=1)]
    aliases: tuple[Name, ...] = ()
    policy: Policy = "round_robin"
    sticky: Sticky | None = None
    shadow: Shadow | None = None
    retry: Retry = Retry()
    hedge: Hedge | None = None
    fallbacks: tuple[Name, ...] = ()
    context_fallback: Name | None = None
    content_filter_fallback: Name | None = None
    resume: bool = False
    timeouts: Timeouts = Timeouts()
    price: Price | None = None

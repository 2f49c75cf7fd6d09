"""How an upstream is watched: probes, ejection, and what happens while it is being started."""

from typing import Annotated

from msgspec import Meta

from forebay.config.schema.base import Seconds, SecondsOrNone, Section

UrlPath = Annotated[str, Meta(pattern=r"^/[!-~]*$", max_length=1000)]
Share = Annotated[int, Meta(ge=0, le=100)]


class ProbeSettings(Section, frozen=True, kw_only=True):
    """How it is asked how it is. None: as its kind does.

    interval: seconds between two looks. timeout: longest wait for an answer. path: answers 200
        when requests can be taken.
    """

    interval: Seconds | None = None
    timeout: Seconds | None = None
    path: UrlPath | None = None


class Outlier(Section, frozen=True, kw_only=True):
    """When an upstream is taken out for what its requests come to.

    consecutive: failures in a row. failure_percent: their share within an interval.
    latency_factor: times the median first-token time of its siblings. Each: 0 never.
    min_requests: requests within an interval before share and latency count.
    interval, base_ejection, max_ejection: seconds; each further ejection is longer by the first.
    max_ejection_percent: of a model's targets in one tier that may be out; one always may.
    """

    consecutive: Annotated[int, Meta(ge=0, le=1_000_000)] = 5
    failure_percent: Share = 0
    min_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    latency_factor: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    interval: Seconds = 10.0
    base_ejection: Seconds = 5.0
    max_ejection: Seconds = 60.0
    max_ejection_percent: Share = 50


class Agent(Section, frozen=True, kw_only=True):
    """What stands beside an engine, tells how it is and starts it (`forebay-engine serve`).

    url: its address. key: sent as a bearer token; None sends none. member: which of a pool's
    engines the upstream is, from 0.
    """

    url: str
    key: str | None = None
    member: Annotated[int, Meta(ge=0, le=1000)] = 0

    def __repr__(self) -> str:
        return f"Agent(url={self.url!r})"


class Cold(Section, frozen=True, kw_only=True):
    """What requests do at an engine that has to be started.

    hold: longest wait for it, seconds; 0 holds none. spill_after: seconds until a request goes to
        a higher tier, where there is one. keep_alive: seconds between two comments to a stream's
        client. max_held: requests that wait at most.
    idle: without requests for so long it is taken to have been stopped; 0 never, None as its
        kind does.
    wake: path below its address that is posted to (`{}`) to have it started; None as its kind does.
    warm_up: have it answer one token before it gets requests.
    """

    hold: SecondsOrNone = 60.0
    spill_after: SecondsOrNone = 5.0
    keep_alive: Seconds = 10.0
    max_held: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    idle: SecondsOrNone | None = None
    wake: UrlPath | None = None
    warm_up: bool = True

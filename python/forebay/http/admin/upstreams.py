"""Operations on upstreams: how each stands in this gateway, and taking one out."""

import asyncio
import time

import msgspec
import structlog

from forebay.http.admin.operation import Call, Refused
from forebay.store.audit import AuditStore
from forebay.store.database import UNREACHABLE
from forebay.store.errors import StoreUnavailable

log = structlog.get_logger("forebay.http.admin")

AUDIT_S = 2.0
"""Seconds that the database has to note who drained what; it is done all the same."""


class Ejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why an upstream is out for what its requests came to.

    reason: ``consecutive``, ``failure_share``, ``latency`` or ``trial``. until: Unix seconds; from
    then on one request at a time tries it. streak: which ejection in succession it is.
    """

    reason: str
    until: float
    streak: int


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine said of itself. tokens: in its cache. age_s: how long ago."""

    running: int
    waiting: int
    tokens: int
    age_s: float


class UpstreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream, as the worker that answers knows it.

    state: what looking at it found: ``unknown``, ``warm``, ``loading``, ``cold``, ``draining`` or
    ``down``. agent: whether its agent ``answers`` or is ``away``; null: it has none, or was not
    asked yet.
    availability: whether it gets requests: ``open``, ``trial``, ``out``, ``cold``, ``loading`` or
    ``draining``. share: its part of its usual requests, below 1 in slow start. in_flight: its
    requests, of all workers of the machine. waiting: this worker's that wait for a place. limit:
    most in flight; null: any number. first_token_ms: moving average. successes, failures: attempts.
    backs_off_s: seconds that it asked to be left alone. ejections: how many there were.
    """

    name: str
    kind: str
    state: str
    agent: str | None
    availability: str
    share: float
    draining: bool
    in_flight: int
    waiting: int
    limit: int | None
    load: EngineLoad | None
    first_token_ms: float | None
    successes: int
    failures: int
    backs_off_s: float | None
    ejections: int
    ejection: Ejection | None


class UpstreamList(msgspec.Struct, frozen=True, kw_only=True):
    """All upstreams, by name."""

    data: list[UpstreamStatus]


def _all(call: Call) -> list[UpstreamStatus]:
    now = time.time()
    entries = msgspec.json.decode(call.core.upstreams())
    for entry in entries:
        if (ejection := entry["ejection"]) is not None:
            ejection["until"] = now + ejection.pop("ends_in_s")
    return msgspec.convert(entries, list[UpstreamStatus])


def _unknown(name: str) -> Refused:
    return Refused("not_found", f"There is no upstream {name!r}.", code="upstream_not_found")


def _one(call: Call) -> UpstreamStatus:
    name = call.path["upstream"]
    for upstream in _all(call):
        if upstream.name == name:
            return upstream
    raise _unknown(name)


async def list_upstreams(call: Call) -> UpstreamList:
    """Without asking the upstreams or the database."""
    return UpstreamList(data=_all(call))


async def get_upstream(call: Call) -> UpstreamStatus:
    """Without asking the upstream or the database."""
    return _one(call)


async def drain_upstream(call: Call) -> UpstreamStatus:
    """It takes no new requests until it is undrained or the gateway starts anew; others end."""
    return await _set(call, True)


async def undrain_upstream(call: Call) -> UpstreamStatus:
    """It takes requests again, unless its configuration drains it."""
    return await _set(call, False)


async def _set(call: Call, draining: bool) -> UpstreamStatus:
    name = call.path["upstream"]
    if not call.drain_upstream(name, draining):
        raise _unknown(name)
    action = "upstream.drain" if draining else "upstream.undrain"
    try:
        async with asyncio.timeout(AUDIT_S):
            await AuditStore(call.database).note(action, "upstream", name, {"draining": draining})
    except (StoreUnavailable, *UNREACHABLE) as error:
        # An upstream has to be taken out also while the database is away.
        log.warning("not in the audit log", action=action, upstream=name, cause=repr(error))
    return _one(call)

"""Faults on request: `KIND[:ARGS][@PROBABILITY]`.

For a whole server by `--fault` (repeatable; the first that hits is taken), for one request by the
header `x-sim-fault` or, since gateways drop unknown headers, the body field `sim_fault`.

  stall[:K]             K events (default 3), then silence on an open socket (0: no byte at all)
  cut[:K]               K events, then the connection closes without a last chunk
  cut-mid-event[:K]     K events and half of the next, then the connection closes
  garbage[:K]           K events (default 0), then bytes that are neither SSE nor JSON, in a 200
  garbage-json[:K]      K events (default 0), then `data:` lines of broken JSON
  error-event[:K]       K events (default 1), then `data: {"error":...}` and `[DONE]`
  no-finish             no chunk has a finish_reason; `[DONE]` comes
  no-done               the body ends without `[DONE]`
  no-usage              usage is left out though asked for
  loading[:SECONDS]     503 (for a server: during its first SECONDS; default: always)
  slow-first-token:S    the request waits S seconds before it is queued
  status:CODE[:AFTER]   an error of that status, with `retry-after: AFTER` where given
  empty                 the connection closes without a byte
  quota                 the account's quota is used up, as the kind says it (kinds but sglang)
  filter[:K]            K events (default 3), then a content filter ends the answer (as above)

An event is one SSE event, the role chunk included. On answers that are not streams, the kinds that
need events act on the body: `stall` never answers, `cut` and `cut-mid-event` close half way.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, cast, get_args

Kind = Literal[
    "stall",
    "cut",
    "cut-mid-event",
    "garbage",
    "garbage-json",
    "error-event",
    "no-finish",
    "no-done",
    "no-usage",
    "loading",
    "slow-first-token",
    "status",
    "empty",
    "quota",
    "filter",
]
_DEFAULT_AFTER: dict[str, int] = {
    "stall": 3,
    "cut": 3,
    "cut-mid-event": 3,
    "garbage": 0,
    "garbage-json": 0,
    "error-event": 1,
    "filter": 3,
}
_PLAIN = ("no-finish", "no-done", "no-usage", "empty", "quota")
OF_PROVIDERS = ("quota", "filter")
"""Kinds of fault that an engine itself does not have."""


class BadFault(ValueError):
    """A fault specification that cannot be read."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    after: events before it strikes. seconds: of `loading` (0: for ever) and `slow-first-token`.
    status, retry_after_s: of `status`. probability: 0 to 1.
    """

    kind: Kind
    after: int = 0
    seconds: float = 0.0
    status: int = 0
    retry_after_s: int | None = None
    probability: float = 1.0

    @property
    def in_stream(self) -> bool:
        """Whether it strikes after a number of events."""
        return self.kind in _DEFAULT_AFTER


def parse(text: str) -> Fault:
    """Read `KIND[:ARGS][@PROBABILITY]`. Raises BadFault."""
    body, _, chance = text.strip().partition("@")
    kind, *args = body.split(":")
    try:
        probability = float(chance) if chance else 1.0
        if not 0.0 <= probability <= 1.0:
            raise BadFault(f"fault {text!r}: the probability must be between 0 and 1")
        return _build(kind, args, probability)
    except BadFault:
        raise
    except (ValueError, TypeError) as error:
        raise BadFault(f"fault {text!r}: {error}") from None


def _build(kind: str, args: list[str], probability: float) -> Fault:
    if kind in _DEFAULT_AFTER and len(args) <= 1:
        after = int(args[0]) if args else _DEFAULT_AFTER[kind]
        if after < 0:
            raise ValueError("the number of events must not be negative")
        return Fault(_kind(kind), after=after, probability=probability)
    if kind in _PLAIN and not args:
        return Fault(_kind(kind), probability=probability)
    if (kind == "loading" and len(args) <= 1) or (kind == "slow-first-token" and len(args) == 1):
        seconds = float(args[0]) if args else 0.0
        if not 0.0 <= seconds < 86_400.0:
            raise ValueError("the seconds must be between 0 and 86,400")
        return Fault(_kind(kind), seconds=seconds, probability=probability)
    if kind == "status" and 1 <= len(args) <= 2:
        status = int(args[0])
        if not 400 <= status <= 599:
            raise ValueError("the status must be between 400 and 599")
        retry_after = int(args[1]) if len(args) == 2 else None
        return Fault("status", status=status, retry_after_s=retry_after, probability=probability)
    raise ValueError("unknown kind or wrong number of arguments")


def _kind(text: str) -> Kind:
    if text not in get_args(Kind):
        raise ValueError("unknown kind")
    return cast(Kind, text)


class FaultPlan:
    """The faults of a server: which request gets which is a function of the seed and the order."""

    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        self.faults = faults
        self.seed = seed
        self._random = random.Random(seed)

    def reset(self, faults: tuple[Fault, ...] | None = None) -> None:
        """Begin the sequence anew, with other faults where given."""
        if faults is not None:
            self.faults = faults
        self._random = random.Random(self.seed)

    def pick(self) -> Fault | None:
        """The fault of the next request. `loading` is for `loading(...)` to judge."""
        for fault in self.faults:
            if fault.kind == "loading":
                continue
            if fault.probability >= 1.0 or self._random.random() < fault.probability:
                return fault
        return None

    def loading(self, up_s: float) -> bool:
        """Whether a server that has been up for `up_s` seconds says that it is loading."""
        return any(
            fault.kind == "loading"
            and (fault.seconds == 0.0 or up_s < fault.seconds)
            and (fault.probability >= 1.0 or self._random.random() < fault.probability)
            for fault in self.faults
        )


def garbage(seed: int, size: int = 512) -> bytes:
    """Bytes that are neither SSE nor JSON nor UTF-8."""
    return b"\xff\xfe\x00" + random.Random(seed).randbytes(size)

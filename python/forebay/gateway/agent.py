"""The agent beside an engine (`forebay-engine serve` and `warm`): asking it how the engine is."""

from collections.abc import Awaitable
from typing import Literal, Protocol

import msgspec
import orjson

from forebay.gateway.answer import Answer, failure
from forebay.upstreams.unreadable import UNREADABLE

STATE = "/state"
"""Where it tells the engine's state."""
WAKE = "/wake"
"""Posted to have the engine started."""
INTERVAL_S = 1.0
"""Seconds at most between two looks: an engine that drains gets requests until it is seen."""
TIMEOUT_S = 2.0
"""Longest wait for its answer."""

AgentState = Literal["cold", "loading", "warm", "draining", "down"]
_MOST = 2**32 - 1
_TOO_LARGE = b"answer is too large"
"""In the core's error for an answer over its limit."""


class AskAgent(Protocol):
    """Asks an upstream's agent; None if the question was cancelled."""

    def __call__(
        self, upstream: str, path: str, limit_s: float, method: str, body: bytes | None
    ) -> Awaitable[Answer | None]: ...


class Load(msgspec.Struct, frozen=True):
    """Requests that the engine runs, and that wait in it."""

    running: int = 0
    queued: int = 0


class Said(msgspec.Struct, frozen=True):
    """What an agent says of its engine. parked: cold, but back sooner than from nothing."""

    state: AgentState
    parked: bool = False
    load: Load | None = None

    def report(self) -> bytes | None:
        """Its load as the core takes it; None if it says nothing of it."""
        if self.load is None:
            return None
        running, queued = (min(max(n, 0), _MOST) for n in (self.load.running, self.load.queued))
        return orjson.dumps({"running": running, "waiting": queued, "tokens": 0})


class Away(Exception):
    """There is no word of the agent's; the text says why, and quotes nothing of its answer."""


def read(answer: Answer | None) -> Said:
    """What the answer to `STATE` says.

    Raises: Away.
    """
    if answer is None:
        raise Away("it was not asked")
    why = failure(answer)
    status, _, body, _ = answer
    if why is not None:
        raise Away(_unanswered(why, body))
    if status in (401, 403):
        raise Away(f"it refuses the key with {status}")
    if status != 200:
        raise Away(f"{STATE} was answered with {status}")
    try:
        return msgspec.json.decode(body, type=Said)
    except UNREADABLE:
        raise Away("what it says is no state") from None


def _unanswered(why: bytes, body: bytes) -> str:
    """Why there is no answer, by the core's own error."""
    if why == b"upstream_timeout":
        return "no answer in time"
    if why == b"upstream_error":
        return "its answer is too large" if _TOO_LARGE in body else "it broke off its answer"
    return "no connection"


def of_member(path: str, member: int) -> str:
    """The path that asks for one of a pool's engines."""
    return f"{path}?member={member}" if member else path


class Agent:
    """The agent of one upstream.

    member: which of a pool's engines the upstream is. answers: None before it was asked.
    """

    def __init__(self, upstream: str, member: int, ask: AskAgent) -> None:
        self.answers: bool | None = None
        self.why = ""
        """Why it is away."""
        self._upstream = upstream
        self._member = member
        self._ask = ask

    async def state(self) -> Said | None:
        """What it says of its engine; None while it is away (`why`)."""
        answer = await self._ask(
            self._upstream, of_member(STATE, self._member), TIMEOUT_S, "GET", None
        )
        try:
            said = read(answer)
        except Away as away:
            self.answers, self.why = False, str(away)
            return None
        self.answers = True
        return said

    async def wake(self, limit_s: float) -> int | None:
        """Have it start the engine. The status of its answer; None if there was none."""
        answer = await self._ask(
            self._upstream, of_member(WAKE, self._member), limit_s, "POST", b"{}"
        )
        return None if answer is None or failure(answer) is not None else answer[0]

    @property
    def check(self) -> str:
        """How it is, for `/readyz`."""
        if self.answers is False:
            return f"degraded: {self.why}; the engine itself is asked"
        return "ok"

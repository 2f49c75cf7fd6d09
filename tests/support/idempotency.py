"""A store of answers in memory, with a clock of its own: what the real one is compared with."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from forebay.store import StoreUnavailable
from forebay.store.idempotency import AnswerHead, Claim, Replay, Verdict


def answer(text: str = "hello", *, stream: bool = False) -> Replay:
    """An answer that may be kept."""
    headers = [("content-type", "text/event-stream" if stream else "application/json")]
    head = AnswerHead(status=200, headers=headers, stream=stream, request_id="req_1")
    return Replay(head, text.encode())


@dataclass
class _Row:
    fingerprint: bytes
    owner: UUID
    lease_until: float
    expires_at: float
    outcome: Replay | None = None
    ended: bool = False


class MemoryStore:
    """By the rules of `forebay.store.idempotency.IdempotencyStore`. clock: seconds.

    away: every method fails as with a database that is away.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rows: dict[tuple[str, str], _Row] = {}
        self.away = False
        self.claims = 0
        self._clock = clock

    async def claim(self, claim: Claim, *, lease_s: float, ttl_s: float) -> Verdict:
        """Try to get to work on a request."""
        self._there()
        self.claims += 1
        now, row = self._clock(), self.rows.get(claim.name)
        over = row is not None and (row.ended or row.lease_until <= now)
        if row is not None and not (over and row.expires_at <= now):
            if row.fingerprint != claim.fingerprint:
                return "reused"
            if row.ended:
                return row.outcome or "too_large"
            if not over:
                return "running"
        self.rows[claim.name] = _Row(claim.fingerprint, claim.owner, now + lease_s, now + ttl_s)
        return "run"

    async def finish(self, claim: Claim, answer: Replay | None, *, ttl_s: float) -> bool:
        """Keep an answer."""
        self._there()
        row = self._held(claim)
        if row is None:
            return False
        row.outcome, row.ended, row.expires_at = answer, True, self._clock() + ttl_s
        return True

    async def release(self, claim: Claim) -> None:
        """Give a claim up."""
        self._there()
        if self._held(claim) is not None:
            del self.rows[claim.name]

    async def renew(self, claims: Sequence[Claim], *, lease_s: float) -> None:
        """Hold on to claims."""
        self._there()
        for claim in claims:
            if (row := self._held(claim)) is not None:
                row.lease_until = self._clock() + lease_s

    async def running(self, names: Sequence[tuple[str, str]]) -> Collection[tuple[str, str]]:
        """Those that someone works on."""
        self._there()
        now = self._clock()
        rows = {name: row for name in names if (row := self.rows.get(name)) is not None}
        return {name for name, row in rows.items() if not row.ended and row.lease_until > now}

    def _held(self, claim: Claim) -> _Row | None:
        row = self.rows.get(claim.name)
        return row if row is not None and row.owner == claim.owner and not row.ended else None

    def _there(self) -> None:
        if self.away:
            raise StoreUnavailable("the database cannot be reached: away")

"""Requests with an idempotency key: whoever claims one first works on it, and its answer stays.

A claim is a lease that its owner renews. One that lapses, because its process died, may be claimed
by another with the same request; an answer that has expired is as if it had never been.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from forebay.store import expiring
from forebay.store.database import Connection
from forebay.store.expiring import ExpiringTable

if TYPE_CHECKING:
    pass


class Claim(NamedTuple):
    """A request that wants to be worked on once.

    account, key: what is unique. fingerprint: SHA-256 of the request. owner: this attempt alone.
    """

    account: str
    key: str
    fingerprint: bytes
    owner: UUID

    @property
    def name(self) -> tuple[str, str]:
        """What is unique of it."""
        return self.account, self.key


class AnswerHead(msgspec.Struct, frozen=True, kw_only=True):
    """An answer without its body.

    headers: those that matter to whoever gets it again. stream: it was sent in pieces.
    request_id: of the request that it answered.
    """

    status: int
    headers: list[tuple[str, str]]
    stream: bool
    request_id: str


class Replay(NamedTuple):
    """The answer is there."""

    head: AnswerHead
    body: bytes


Verdict = Replay | Literal["run", "running", "reused", "too_large"]
"""What a claim comes to: it is yours; another one works on it; the key belongs to another request;
or its answer was too large to be kept."""

_NOW = "coalesce($1::timestamptz, clock_timestamp())"
_CLAIM = (
    f"WITH t AS (SELECT {_NOW} AS now)"
    " INSERT INTO idempotency_keys AS k"
    " (account, key, fingerprint, owner, lease_until, created_at, expires_at)"
    " SELECT $2, $3, $4, $5, t.now + $6, t.now, t.now + $7 FROM t"
    " ON CONFLICT (account, key) DO UPDATE SET fingerprint = EXCLUDED.fingerprint,"
    " owner = EXCLUDED.owner, lease_until = EXCLUDED.lease_until,"
    " created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at,"
    " outcome = NULL, head = NULL, enc_key = NULL, answer = NULL"
    # EXCLUDED.created_at is now.
    " WHERE (k.outcome IS NOT NULL OR k.lease_until <= EXCLUDED.created_at)"
    " AND (k.expires_at <= EXCLUDED.created_at"
    " OR (k.outcome IS NULL AND k.fingerprint = EXCLUDED.fingerprint))"
    " RETURNING 1"
)
_LOOK = (
    "SELECT fingerprint, owner, outcome, head, enc_key, answer FROM idempotency_keys"
    " WHERE account = $1 AND key = $2"
)
_FINISH = (
    "UPDATE idempotency_keys SET outcome = $5, head = $6, enc_key = $7, answer = $8,"
    f" expires_at = {_NOW} + $9"
    " WHERE account = $2 AND key = $3 AND owner = $4 AND outcome IS NULL RETURNING 1"
)
_RELEASE = (
    "DELETE FROM idempotency_keys"
    " WHERE account = $1 AND key = $2 AND owner = $3 AND outcome IS NULL"
)
_RENEW = (
    f"UPDATE idempotency_keys k SET lease_until = {_NOW} + $2"
    " FROM unnest($3::text[], $4::text[], $5::uuid[]) AS o (account, key, owner)"
    " WHERE k.account = o.account AND k.key = o.key AND k.owner = o.owner AND k.outcome IS NULL"
)
_RUNNING = (
    "SELECT k.account, k.key FROM idempotency_keys k"
    " JOIN unnest($2::text[], $3::text[]) AS w (account, key)"
    " ON k.account = w.account AND k.key = w.key"
    f" WHERE k.outcome IS NULL AND k.lease_until > {_NOW}"
)
_SWEEP = (
    "DELETE FROM idempotency_keys WHERE (account, key) IN ("
    "SELECT account, key FROM idempotency_keys WHERE expires_at <= $1"
    " AND (outcome IS NOT NULL OR lease_until <= $1) LIMIT $2 FOR UPDATE SKIP LOCKED)"
)


class IdempotencyStore(ExpiringTable):
    """The table of keys. Whoever is asked for an account's answer has checked the account."""

    timeout_s = 5.0

    async def claim(self, claim: Claim, *, lease_s: float, ttl_s: float) -> Verdict:
        """Try to get to work on a request.

        Raises: LogKeyMissing, LogUnreadable where the answer does not open.
        """
        lease, ttl = timedelta(seconds=lease_s), timedelta(seconds=ttl_s)
        while True:
            if await self._ask(_CLAIM, self._now(), *claim, lease, ttl):
                return "run"
            rows = await self._ask(_LOOK, *claim.name)
            # Released in between: it is to be had again.
            if rows:
                return self._verdict(claim, rows[0])

    def _verdict(self, claim: Claim, row: "asyncpg.Record") -> Verdict:
        if row["fingerprint"] != claim.fingerprint:
            return "reused"
        if row["outcome"] is None:
            return "running"
        if row["outcome"] == "too_large":
            return "too_large"
        body: bytes = row["answer"]
        if row["enc_key"] is not None:
            body = self._cipher.open(row["enc_key"], row["owner"], "replay", body)
        return Replay(msgspec.json.decode(row["head"], type=AnswerHead), body)

    async def finish(self, claim: Claim, answer: Replay | None, *, ttl_s: float) -> bool:
        """Keep the answer of a claim; None: it was too large. Whether the claim still held."""
        enc_key = self._cipher.active
        head = body = None
        if answer is not None:
            head, body = msgspec.json.encode(answer.head).decode(), answer.body
            if enc_key is not None:
                body = self._cipher.seal(claim.owner, "replay", body)
        outcome = "too_large" if answer is None else "answered"
        done = await self._ask(
            _FINISH,
            *(self._now(), *claim.name, claim.owner, outcome, head),
            *(None if answer is None else enc_key, body, timedelta(seconds=ttl_s)),
        )
        return bool(done)

    async def release(self, claim: Claim) -> None:
        """Nothing came of it that is worth keeping: the next one works on it anew."""
        await self._ask(_RELEASE, *claim.name, claim.owner)

    async def renew(self, claims: Sequence[Claim], *, lease_s: float) -> None:
        """Hold on to these claims for so many seconds from now."""
        names = [claim.account for claim in claims], [claim.key for claim in claims]
        owners = [claim.owner for claim in claims]
        await self._ask(
            *(_RENEW, self._now(), timedelta(seconds=lease_s), *names, owners), upkeep=True
        )

    async def running(self, names: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of these accounts and keys that someone works on."""
        accounts, keys = [name[0] for name in names], [name[1] for name in names]
        rows = await self._ask(_RUNNING, self._now(), accounts, keys)
        return {(row["account"], row["key"]) for row in rows}


async def sweep(connection: Connection, now: datetime) -> int:
    """Delete what has expired; how many."""
    return await expiring.sweep(connection, _SWEEP, now)

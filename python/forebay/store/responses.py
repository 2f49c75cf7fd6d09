"""Responses that are kept for their account: saved once, loaded, deleted, gone when they expire."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from forebay.store import expiring
from forebay.store.database import Connection
from forebay.store.errors import ResponseExists
from forebay.store.expiring import ExpiringTable
from forebay.store.prompt_cipher import Part

if TYPE_CHECKING:
    pass

_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")

_SAVE = (
    "INSERT INTO stored_responses AS r (id, row_id, account, key_id, model, previous_response_id,"
    " created_at, expires_at, enc_key, response, items)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
    # An ask may come twice.
    " ON CONFLICT (id) DO UPDATE SET row_id = EXCLUDED.row_id, enc_key = EXCLUDED.enc_key,"
    " response = EXCLUDED.response, items = EXCLUDED.items"
    " WHERE r.account = EXCLUDED.account RETURNING 1"
)
_LOAD = (
    "SELECT {columns} FROM stored_responses WHERE id = $1 AND account = $2"
    " AND expires_at > coalesce($3::timestamptz, clock_timestamp())"
)
_DELETE = (
    "DELETE FROM stored_responses WHERE id = $1 AND account = $2"
    " AND expires_at > coalesce($3::timestamptz, clock_timestamp()) RETURNING 1"
)
_SWEEP = (
    "DELETE FROM stored_responses WHERE id IN (SELECT id FROM stored_responses"
    " WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)"
)


class NewResponse(NamedTuple):
    """A response to keep.

    created_at: Unix seconds. response: its JSON. items: what the model was given, a JSON array.
    """

    id: str
    account: str
    key_id: str
    model: str
    previous_response_id: str | None
    created_at: int
    response: bytes
    items: bytes


class ResponseStore(ExpiringTable):
    """The table of responses. Whoever asks for an account's has checked that it may.

    Those that read raise LogKeyMissing and LogUnreadable where a response does not open.
    """

    timeout_s = 10.0

    async def save(self, new: NewResponse, *, ttl_s: float) -> None:
        """Keep it until `ttl_s` seconds after it was made.

        Raises: ResponseExists where another account has one of that id.
        """
        row_id = uuid4()
        created = datetime.fromtimestamp(new.created_at, UTC)
        response, items = new.response, new.items
        if (key := self._cipher.active) is not None:
            response = self._cipher.seal(row_id, "response", response)
            items = self._cipher.seal(row_id, "items", items)
        expires = created + timedelta(seconds=ttl_s)
        saved = await self._ask(
            _SAVE,
            *(new.id, row_id, new.account, new.key_id, new.model, new.previous_response_id),
            *(created, expires, key, response, items),
        )
        if not saved:
            raise ResponseExists(f"another account has a response {new.id}")

    async def load(self, account: str, response_id: str) -> tuple[bytes, bytes] | None:
        """Response and items, JSON each; None: the account has none of that id."""
        found = await self._load(account, response_id, "response", "items")
        return None if found is None else (found[0], found[1])

    async def response(self, account: str, response_id: str) -> bytes | None:
        """The response alone."""
        found = await self._load(account, response_id, "response")
        return None if found is None else found[0]

    async def items(self, account: str, response_id: str) -> bytes | None:
        """The items alone."""
        found = await self._load(account, response_id, "items")
        return None if found is None else found[0]

    async def delete(self, account: str, response_id: str) -> bool:
        """Whether there was one."""
        if _ID.fullmatch(response_id) is None:
            return False
        return bool(await self._ask(_DELETE, response_id, account, self._now()))

    async def _load(self, account: str, response_id: str, *parts: Part) -> list[bytes] | None:
        if _ID.fullmatch(response_id) is None:
            # Anything may be asked for, also what no text in the database can be.
            return None
        query = _LOAD.format(columns=", ".join(("row_id", "enc_key", *parts)))
        rows = await self._ask(query, response_id, account, self._now())
        if not rows:
            return None
        row = rows[0]
        if row["enc_key"] is None:
            return [row[part] for part in parts]
        return [self._cipher.open(row["enc_key"], row["row_id"], part, row[part]) for part in parts]


async def sweep(connection: Connection, now: datetime) -> int:
    """Delete what has expired; how many."""
    return await expiring.sweep(connection, _SWEEP, now)

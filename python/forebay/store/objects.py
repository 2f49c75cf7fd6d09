"""Whose the files and batches at an upstream are."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from forebay.store.database import UNREACHABLE
from forebay.store.errors import StoreUnavailable

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

Kind = Literal["file", "batch"]

_TIMEOUT_S = 10.0

_CLAIM = (
    "INSERT INTO upstream_objects AS o (upstream, kind, id, account, object, purpose)"
    " VALUES ($1, $2, $3, $4, $5, $6)"
    # Told anew, it is the same object; without contents nothing new is known of it.
    " ON CONFLICT (upstream, kind, id) DO UPDATE SET"
    " object = coalesce(EXCLUDED.object, o.object), purpose = coalesce(EXCLUDED.purpose, o.purpose)"
    " WHERE o.account = EXCLUDED.account RETURNING 1"
)
_CHECK = (
    "SELECT count(*) FROM upstream_objects"
    " WHERE upstream = $1 AND kind = $2 AND account = $3 AND id = ANY ($4::text[])"
)
_FORGET = (
    "DELETE FROM upstream_objects"
    " WHERE upstream = $1 AND kind = $2 AND account = $3 AND id = ANY ($4::text[])"
)
_LIST = (
    "SELECT object FROM upstream_objects WHERE upstream = $1 AND kind = $2 AND account = $3"
    " AND object IS NOT NULL AND ($4::text IS NULL OR purpose = $4)"
    " AND ($5::text IS NULL OR number {beyond} (SELECT number FROM upstream_objects"
    " WHERE upstream = $1 AND kind = $2 AND account = $3 AND id = $5))"
    " ORDER BY number {order} LIMIT $6"
)


class Claimed(NamedTuple):
    """An object, and its JSON as the upstream told it; purpose: of a file."""

    kind: Kind
    id: str
    object: bytes | None = None
    purpose: str | None = None


class ObjectStore:
    """The table of files and batches. Every method raises StoreUnavailable."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def claim(self, upstream: str, account: str, objects: list[Claimed]) -> bool:
        """Record that the objects are the account's. False: one is another account's."""
        try:
            async with (
                self._pool.acquire(timeout=_TIMEOUT_S) as connection,
                connection.transaction(),
            ):
                for one in objects:
                    row = await connection.fetchrow(
                        _CLAIM,
                        *(upstream, one.kind, one.id, account, one.object, one.purpose),
                        timeout=_TIMEOUT_S,
                    )
                    if row is None:
                        raise _Taken
        except _Taken:
            return False
        except UNREACHABLE as error:
            raise _away(error) from error
        return True

    async def owns(self, upstream: str, account: str, kind: Kind, ids: list[str]) -> bool:
        """Whether all of them are the account's."""
        rows = await self._fetch(_CHECK, upstream, kind, account, ids)
        count: int = rows[0][0]
        return count == len(set(ids))

    async def forget(self, upstream: str, account: str, kind: Kind, ids: list[str]) -> None:
        """They are no more."""
        await self._fetch(_FORGET, upstream, kind, account, ids)

    async def page(
        self,
        upstream: str,
        account: str,
        kind: Kind,
        *,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        ascending: bool = False,
    ) -> tuple[list[bytes], bool]:
        """The account's objects, the newest first, and whether there are more."""
        beyond, order = (">", "ASC") if ascending else ("<", "DESC")
        query = _LIST.format(beyond=beyond, order=order)
        rows = await self._fetch(query, upstream, kind, account, purpose, after, limit + 1)
        return [row["object"] for row in rows[:limit]], len(rows) > limit

    async def _fetch(self, query: str, *arguments: object) -> "list[asyncpg.Record]":
        try:
            return await self._pool.fetch(query, *arguments, timeout=_TIMEOUT_S)
        except UNREACHABLE as error:
            raise _away(error) from error


class _Taken(Exception):
    """Another account has it."""


def _away(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(f"the database cannot be reached: {str(error) or type(error).__name__}")

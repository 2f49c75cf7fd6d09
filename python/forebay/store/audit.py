"""The audit log: who changed what, and who looked into prompt logs."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from forebay.store.errors import BadValue
from forebay.store.limits import check_name

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

MAX_PAGE = 1000
MIN_DAYS = 30
"""Days that the log is kept at least."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One deed.

    at: Unix seconds. actor: ``key:ID`` of an admin key, ``cli:USER@HOST``, ``gateway``, or
    ``sql:USER`` for whoever changed the tables by hand. action: such as ``key.rotate``. before,
    after: the row's columns, without digests, exact numbers as text; null where there was none.
    remote: the client's address.
    """

    id: int
    at: float
    actor: str
    action: str
    subject_kind: str
    subject_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None
    remote: str | None


def _entry(row: "asyncpg.Record") -> AuditEntry:
    return AuditEntry(
        id=row["id"],
        at=row["at"].timestamp(),
        actor=row["actor"],
        action=row["action"],
        subject_kind=row["subject_kind"],
        subject_id=row["subject_id"],
        before=_decoded(row["before"]),
        after=_decoded(row["after"]),
        request_id=row["request_id"],
        remote=row["remote"],
    )


def _decoded(column: str | None) -> dict[str, Any] | None:
    return None if column is None else msgspec.json.decode(column, type=dict[str, Any])


_SELECT = (
    "SELECT id, at, actor, action, subject_kind, subject_id, before, after, request_id, remote"
    " FROM audit_log"
    " WHERE ($1::timestamptz IS NULL OR at >= $1)"
    " AND ($2::text IS NULL OR actor = $2 OR starts_with(actor, $2 || ':'))"
    " AND ($3::text IS NULL OR subject_kind = $3)"
    " AND ($4::text IS NULL OR subject_id = $4)"
    " AND ($5::bigint IS NULL OR id < $5)"
    " ORDER BY id DESC LIMIT $6"
)


class AuditStore:
    """Reads the log, and writes what no trigger sees."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def list(
        self,
        *,
        since_s: float | None = None,
        actor: str | None = None,
        subject: str | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> "list[AuditEntry]":
        """Entries, the newest first.

        since_s: only the last so many seconds. actor: the whole name, or ``key``, ``cli`` or
        ``sql`` for all of that kind. subject: ``kind:id``, or a kind alone. after: the id of the
        last entry of the page before.

        Raises: BadValue.
        """
        if actor is not None:
            check_name("actor", actor)
        kind = name = None
        if subject is not None:
            check_name("subject", subject)
            kind, colon, rest = subject.partition(":")
            name = rest if colon else None
        since = None
        if since_s is not None:
            try:
                since = datetime.now(UTC) - timedelta(seconds=since_s)
            except OverflowError:
                raise BadValue("since", "lies before all time") from None
        rows = await self._pool.fetch(_SELECT, since, actor, kind, name, after, limit)
        return [_entry(row) for row in rows]

    async def note(self, action: str, kind: str, subject_id: str, what: dict[str, Any]) -> None:
        """Write down something that changes no row; it is there when this returns."""
        await self._pool.execute(
            "SELECT audit_note($1, $2, $3, NULL, $4)",
            action,
            kind,
            subject_id,
            msgspec.json.encode(what).decode(),
        )


async def maintain(
    connection: "asyncpg.Connection[asyncpg.Record]", now: datetime, days: int
) -> int:
    """Forget what is older than `days` before `now`; returns how many entries that were.

    days: at least `MIN_DAYS`; the database refuses less.
    """
    gone: int = await connection.fetchval("SELECT audit_forget($1)", now - timedelta(days=days))
    return gone

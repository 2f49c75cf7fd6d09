"""The audit log."""

from typing import Annotated

import msgspec
from msgspec import Meta

from forebay.http.admin.operation import Call
from forebay.store.audit import MAX_PAGE, AuditEntry, AuditStore


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries to list.

    since_s: only the last so many seconds. actor: the whole name, or key, cli or sql for all of
    that kind. subject: kind:id, or a kind alone. after: the id of the last entry of the page
    before.
    """

    since_s: Annotated[float, Meta(gt=0, le=36_500 * 86_400)] | None = None
    actor: str | None = None
    subject: str | None = None
    after: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries, the newest first. next: `after` of the next page; null at the end."""

    data: list[AuditEntry]
    next: int | None


async def list_audit(call: Call) -> AuditPage:
    """The newest first."""
    query: AuditQuery = call.query
    found = await AuditStore(call.database).list(
        since_s=query.since_s,
        actor=query.actor,
        subject=query.subject,
        after=query.after,
        limit=query.limit + 1,
    )
    page = found[: query.limit]
    return AuditPage(data=page, next=page[-1].id if len(found) > query.limit else None)

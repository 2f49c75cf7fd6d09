"""Prompt logs: search, show, and encrypt anew."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from forebay.store.audit import AuditStore
from forebay.store.errors import BadValue, LogKeyMissing, LogNotFound, LogUnreadable
from forebay.store.limits import check_name
from forebay.store.log_settings import PromptLogLevel
from forebay.store.prompt_cipher import Part, PromptCipher
from forebay.store.prompt_log_search import Needle
from forebay.store.prompt_logs import COLUMNS

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

MAX_PAGE = 1000
MAX_TEXT = 1000
"""Characters of a text to look for."""
SCANNED = 1000
"""Logs that one search for a text opens at most."""
ROTATED = 500
"""Logs that one step of `PromptLogStore.rotate` encrypts anew at most."""
_AT_ONCE = 32
"""Logs with their contents in memory at a time."""

_PARTS: tuple[Part, ...] = ("request", "answer")


class PromptLog(msgspec.Struct, frozen=True, kw_only=True):
    """One logged request, without what it said.

    at: Unix seconds. request_bytes, answer_bytes: of the whole, of which a truncated log has the
    beginning. redactions: places that were blotted out. enc_key: the key that opens the contents;
    null where only metadata was logged.
    """

    event_id: str
    at: float
    request_id: str
    account: str
    key_id: str
    model: str | None
    level: PromptLogLevel
    status: int | None
    request_bytes: int | None
    answer_bytes: int | None
    request_truncated: bool | None
    answer_truncated: bool | None
    redactions: int | None
    enc_key: str | None


class PromptLogContents(PromptLog, frozen=True, kw_only=True):
    """One logged request with what it said; null where that was not logged."""

    request: str | None
    answer: str | None


class PromptLogFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which logs to find. since, until: Unix seconds of admission. contains: a text in request or
    answer, whatever the case of its letters."""

    account: str | None = None
    key: str | None = None
    model: str | None = None
    since: float | None = None
    until: float | None = None
    status: int | None = None
    request_id: str | None = None
    contains: str | None = None


class PromptLogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Logs, the newest first.

    next: `after` of the next page, which need not have any; null at the end. unreadable: logs that
    could not be opened to look for the text.
    """

    data: list[PromptLog]
    next: str | None
    unreadable: int = 0


class LogRotation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of encrypting anew.

    rotated: logs that the active key opens now. unreadable: those that stay as they were, by the
    name of their key. next: `after` of the next step; null when all were looked at.
    """

    rotated: int
    unreadable: dict[str, int]
    next: str | None


_META = ", ".join(COLUMNS[:14])
_FIND = (
    "SELECT {columns} FROM prompt_logs"
    " WHERE ($1::text IS NULL OR account = $1)"
    " AND ($2::text IS NULL OR key_id = $2)"
    " AND ($3::text IS NULL OR model = $3)"
    " AND ($4::timestamptz IS NULL OR event_id >= event_floor($4))"
    " AND ($5::timestamptz IS NULL OR event_id < event_floor($5))"
    " AND ($6::integer IS NULL OR status = $6)"
    " AND ($7::text IS NULL OR request_id = $7)"
    " AND ($8::uuid IS NULL OR event_id < $8)"
    " ORDER BY event_id DESC LIMIT $9"
)
_FIND_META = _FIND.format(columns=_META)
_FIND_ALL = _FIND.format(columns=", ".join(COLUMNS))
_OLD_KEYS = (
    "SELECT event_id, enc_key, request, answer FROM prompt_logs"
    " WHERE enc_key <> $1 AND ($2::uuid IS NULL OR event_id > $2)"
    " ORDER BY event_id LIMIT $3 FOR UPDATE"
)
_RENEW = "UPDATE prompt_logs SET enc_key = $2, request = $3, answer = $4 WHERE event_id = $1"


class PromptLogStore:
    """The table of prompt logs. Every look into it is in the audit log before it is answered."""

    def __init__(self, database: "Database", cipher: PromptCipher):
        self._pool = database.pool
        self._audit = AuditStore(database)
        self._cipher = cipher

    async def search(
        self, wanted: PromptLogFilter, *, after: str | None = None, limit: int = 100
    ) -> PromptLogPage:
        """Logs that fit, up to `limit`, the newest first, from the one after log `after`.

        A search for a text opens at most `SCANNED` logs, and `next` says where to go on.

        Raises: BadValue; LogKeyMissing on a text without any key configured.
        """
        terms = _terms(wanted)
        start = None if after is None else _id("after", after)
        if wanted.contains is None:
            rows = await self._pool.fetch(_FIND_META, *terms, start, limit + 1)
            page = _page(rows[:limit], more=len(rows) > limit)
        else:
            page = await self._search_contents(Needle(wanted.contains), terms, start, limit)
        given = {k: v for k, v in msgspec.to_builtins(wanted).items() if v is not None}
        # Entries stay for good, and people look for what should not: a key that leaked, a name.
        if wanted.contains is not None:
            given["contains"] = {"characters": len(wanted.contains)}
        await self._audit.note("logs.search", "logs", "", {**given, "found": len(page.data)})
        return page

    async def _search_contents(
        self, needle: Needle, terms: list[Any], start: UUID | None, limit: int
    ) -> PromptLogPage:
        if not self._cipher.names:
            raise LogKeyMissing(
                "no key to open logs with: set prompt_logs.keys in the configuration"
            )
        found: list[PromptLog] = []
        unreadable = scanned = 0
        while scanned < SCANNED:
            rows = await self._pool.fetch(_FIND_ALL, *terms, start, _AT_ONCE)
            for row in rows:
                start = row["event_id"]
                scanned += 1
                try:
                    bodies = [self._opened(row, part) for part in _PARTS]
                except (LogKeyMissing, LogUnreadable):
                    unreadable += 1
                    continue
                if any(body is not None and needle.is_in(body) for body in bodies):
                    found.append(_log(row))
                    if len(found) == limit:
                        return PromptLogPage(data=found, next=str(start), unreadable=unreadable)
            if len(rows) < _AT_ONCE:
                return PromptLogPage(data=found, next=None, unreadable=unreadable)
        return PromptLogPage(data=found, next=str(start), unreadable=unreadable)

    async def show(self, event_id: str) -> PromptLogContents:
        """One log with its contents; bytes that are no UTF-8 are replaced.

        Raises: LogNotFound; LogKeyMissing; LogUnreadable.
        """
        try:
            wanted = _id("event_id", event_id)
        except BadValue:
            raise LogNotFound(f"no prompt log has the id {event_id!r}") from None
        row = await self._pool.fetchrow(
            f"SELECT {', '.join(COLUMNS)} FROM prompt_logs WHERE event_id = $1", wanted
        )
        if row is None:
            raise LogNotFound(f"no prompt log has the id {event_id!r}")
        opened = {part: self._opened(row, part) for part in _PARTS}
        texts = {
            part: None if body is None else body.decode("utf-8", "replace")
            for part, body in opened.items()
        }
        found = _log(row)
        of = {"account": found.account, "key_id": found.key_id, "request_id": found.request_id}
        await self._audit.note("logs.show", "log", found.event_id, of)
        meta = {name: getattr(found, name) for name in PromptLog.__struct_fields__}
        return PromptLogContents(**meta, request=texts["request"], answer=texts["answer"])

    async def rotate(self, *, after: str | None = None) -> LogRotation:
        """Encrypt with the active key what others hold: one step, from the log after `after`.

        Each batch commits by itself, and what the active key holds is left alone: a rotation that
        was cut off is begun again at no loss.

        Raises: BadValue; LogKeyMissing without an active key.
        """
        active = self._cipher.active
        if active is None:
            raise LogKeyMissing(
                "no key to encrypt with: set prompt_logs.active in the configuration"
            )
        last = None if after is None else _id("after", after)
        rotated = looked = 0
        unreadable: dict[str, int] = {}
        while looked < ROTATED:
            async with self._pool.acquire() as connection, connection.transaction():
                rows = await connection.fetch(_OLD_KEYS, active, last, _AT_ONCE)
                for row in rows:
                    last, key = row["event_id"], row["enc_key"]
                    try:
                        sealed = [self._renewed(row, part) for part in _PARTS]
                    except (LogKeyMissing, LogUnreadable):
                        unreadable[key] = unreadable.get(key, 0) + 1
                        continue
                    await connection.execute(_RENEW, last, active, *sealed)
                    rotated += 1
            looked += len(rows)
            if len(rows) < _AT_ONCE:
                last = None
                break
        if rotated:
            await self._audit.note("logs.rotate", "logs", "", {"key": active, "rotated": rotated})
        next_ = None if last is None else str(last)
        return LogRotation(rotated=rotated, unreadable=unreadable, next=next_)

    def _opened(self, row: "asyncpg.Record", part: Part) -> bytes | None:
        sealed = row[part]
        if sealed is None:
            return None
        return self._cipher.open(row["enc_key"], row["event_id"], part, sealed)

    def _renewed(self, row: "asyncpg.Record", part: Part) -> bytes | None:
        plain = self._opened(row, part)
        return None if plain is None else self._cipher.seal(row["event_id"], part, plain)


def _id(field: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise BadValue(field, "must be the id of a log") from None


def _terms(wanted: PromptLogFilter) -> list[Any]:
    for field in ("account", "key", "model", "request_id"):
        if (text := getattr(wanted, field)) is not None:
            check_name(field, text)
    if wanted.contains is not None and not 0 < len(wanted.contains) <= MAX_TEXT:
        raise BadValue("contains", f"must have 1 to {MAX_TEXT} characters")
    if wanted.status is not None and not 0 <= wanted.status <= 999:
        raise BadValue("status", "must be 0 to 999")
    since, until = (_moment(name, getattr(wanted, name)) for name in ("since", "until"))
    if since is not None and until is not None and since >= until:
        raise BadValue("until", "must be after since")
    return [
        *(wanted.account, wanted.key, wanted.model, since, until),
        *(wanted.status, wanted.request_id),
    ]


def _moment(field: str, seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    # As far as a UUIDv7's 48 bits of milliseconds go Python's datetime does not.
    if not 0 <= seconds <= 253_402_300_799:
        raise BadValue(field, "must be Unix seconds of the years 1970 to 9999")
    return datetime.fromtimestamp(seconds, UTC)


def _page(rows: "Sequence[asyncpg.Record]", *, more: bool) -> PromptLogPage:
    logs = [_log(row) for row in rows]
    return PromptLogPage(data=logs, next=logs[-1].event_id if more else None)


def _log(row: "asyncpg.Record") -> PromptLog:
    values = {name: row[name] for name in COLUMNS[:14]}
    values["event_id"] = str(values["event_id"])
    values["at"] = values["at"].timestamp()
    return PromptLog(**values)

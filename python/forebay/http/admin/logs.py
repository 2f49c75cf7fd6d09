"""Operations on prompt logs; each look into them is in the audit log."""

from typing import Annotated

import msgspec
from msgspec import Meta

from forebay.http.admin.operation import Call
from forebay.store.prompt_cipher import PromptCipher
from forebay.store.prompt_log_store import (
    MAX_PAGE,
    LogRotation,
    PromptLogContents,
    PromptLogFilter,
    PromptLogPage,
    PromptLogStore,
)


class LogQuery(PromptLogFilter, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which logs to find.

    since, until: Unix seconds of admission. contains: a text in request or answer. after: the id of
    the last log of the page before.
    """

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class RotationStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """after: `next` of the step before."""

    after: str | None = None


def _store(call: Call) -> PromptLogStore:
    return PromptLogStore(call.database, PromptCipher(call.config.prompt_logs))


async def search_logs(call: Call) -> PromptLogPage:
    """The newest first, without what they say."""
    query: LogQuery = call.query
    wanted = PromptLogFilter(
        **{name: getattr(query, name) for name in PromptLogFilter.__struct_fields__}
    )
    return await _store(call).search(wanted, after=query.after, limit=query.limit)


async def show_log(call: Call) -> PromptLogContents:
    """With what was said."""
    return await _store(call).show(call.path["event_id"])


async def rotate_logs(call: Call) -> LogRotation:
    """One step; repeated with `next` until that is null, all are done."""
    body: RotationStep = call.body
    return await _store(call).rotate(after=body.after)

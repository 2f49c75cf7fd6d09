"""The usage report."""

from typing import Annotated

import msgspec
from msgspec import Meta

from forebay.http.admin.operation import Call
from forebay.metering.report import Group, UsageRow, usage


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to sum up.

    since_s: how far back, seconds; at most a year. account: of this one alone.
    """

    by: Group = "key"
    account: str | None = None
    since_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 7 * 86_400.0


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Sums, the largest first; days in order."""

    data: list[UsageRow]


async def get_usage(call: Call) -> UsageReport:
    """Requests, tokens and cost, by key, model, account, upstream, day or month."""
    query: UsageQuery = call.query
    return UsageReport(
        data=await usage(call.database, by=query.by, since_s=query.since_s, account=query.account)
    )

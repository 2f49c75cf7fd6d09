"""What was used, by key, model, account, upstream, day or month; from the sums, not the events."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from forebay.store.limits import check_name
from forebay.store.money import exact

if TYPE_CHECKING:
    from forebay.store.database import Database

Group = Literal["key", "model", "account", "upstream", "day", "month"]
GROUPS: tuple[Group, ...] = ("key", "model", "account", "upstream", "day", "month")

# How the sums are grouped, how events are, and how a group is shown.
_EXPRESSIONS: dict[Group, tuple[str, str, str]] = {
    "key": ("key_id", "key_id", "u.grp"),
    "model": ("model", "coalesce(model_served, model_asked, '')", "u.grp"),
    "account": ("account", "account", "u.grp"),
    "upstream": ("upstream", "coalesce(upstream, '')", "u.grp"),
    "day": (
        "day",
        "(event_time(event_id) AT TIME ZONE 'UTC')::date",
        "to_char(u.grp, 'YYYY-MM-DD')",
    ),
    "month": (
        "date_trunc('month', day::timestamp)",
        "date_trunc('month', event_time(event_id) AT TIME ZONE 'UTC')",
        "to_char(u.grp, 'YYYY-MM')",
    ),
}
_COLUMNS = (
    "account, key_id, model, upstream, requests, errors, prompt_tokens, cached_tokens,"
    " cache_write_tokens, completion_tokens, reasoning_tokens, cost"
)
# The first day is summed from its hours, those after it are taken as they are.
_SUMS = f"""
    SELECT (hour AT TIME ZONE 'UTC')::date AS day, {_COLUMNS} FROM usage_hourly
        WHERE hour >= $1 AND hour < $2
    UNION ALL
    SELECT day, {_COLUMNS} FROM usage_daily WHERE day >= ($2 AT TIME ZONE 'UTC')::date
"""
SAMPLE = 20_000
"""Latest requests of which the median time to the first byte is taken."""


class UsageRow(msgspec.Struct, frozen=True):
    """Sums over one group.

    group: key id, model as served, account, upstream, day (UTC, YYYY-MM-DD) or month. label: a
    key's name, else the group itself. failed: requests whose outcome is not ok. cost: US dollars.
    prompt_tokens include cached_tokens and cache_write_tokens, completion_tokens include
    reasoning_tokens. ttft_ms_p50: median time to the first byte, milliseconds, of those among the
    latest 20,000 requests of the time that got one; None without any.
    """

    group: str
    label: str
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost: str
    ttft_ms_p50: float | None


async def usage(
    database: "Database",
    *,
    by: Group,
    since_s: float,
    account: str | None = None,
    now: datetime | None = None,
) -> list[UsageRow]:
    """Usage since `since_s` seconds ago, largest first; days and months in order.

    It begins with the whole hour in which that was. account: of this one alone. now: the moment
    to count back from; None takes the database's clock.

    Raises: BadValue on what is no account's id.
    """
    if account is not None:
        check_name("account", account)
    order = (
        "1"
        if by in ("day", "month")
        else "prompt_tokens + completion_tokens DESC, requests DESC, 1"
    )
    of_sums, of_events, shown = _EXPRESSIONS[by]
    if now is None:
        now = await database.pool.fetchval("SELECT now()")
    start = (now.astimezone(UTC) - timedelta(seconds=since_s)).replace(
        minute=0, second=0, microsecond=0
    )
    midnight = (start + timedelta(days=1)).replace(hour=0)
    rows = await database.pool.fetch(
        f"""
        SELECT {shown} AS shown, coalesce(k.name, {shown}) AS label, u.*, t.ttft_ms_p50 FROM (
            SELECT {of_sums} AS grp,
                sum(requests)::bigint AS requests,
                sum(errors)::bigint AS failed,
                sum(prompt_tokens)::bigint AS prompt_tokens,
                sum(cached_tokens)::bigint AS cached_tokens,
                sum(cache_write_tokens)::bigint AS cache_write_tokens,
                sum(completion_tokens)::bigint AS completion_tokens,
                sum(reasoning_tokens)::bigint AS reasoning_tokens,
                sum(cost) AS cost
            FROM ({_SUMS}) s WHERE $3::text IS NULL OR account = $3
            GROUP BY 1
        ) u LEFT JOIN api_keys k ON $4 AND k.id = u.grp::text LEFT JOIN (
            SELECT {of_events} AS grp,
                percentile_cont(0.5) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_ms_p50
            FROM (
                SELECT * FROM usage_events
                WHERE event_id >= event_floor($1) AND ($3::text IS NULL OR account = $3)
                ORDER BY event_id DESC LIMIT {SAMPLE}
            ) e GROUP BY 1
        ) t ON t.grp = u.grp
        ORDER BY {order}
        """,
        start,
        midnight,
        account,
        by == "key",
    )
    return [
        UsageRow(
            row["shown"],
            row["label"],
            row["requests"],
            row["failed"],
            row["prompt_tokens"],
            row["cached_tokens"],
            row["cache_write_tokens"],
            row["completion_tokens"],
            row["reasoning_tokens"],
            exact(row["cost"]),
            row["ttft_ms_p50"],
        )
        for row in rows
    ]

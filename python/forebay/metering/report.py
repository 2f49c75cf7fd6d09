"""What was used, by key, model, account or day."""

from typing import TYPE_CHECKING, Literal

import msgspec

from forebay.store.money import from_numeric, text

if TYPE_CHECKING:
    from forebay.store.database import Database

Group = Literal["key", "model", "account", "day"]
GROUPS: tuple[Group, ...] = ("key", "model", "account", "day")

_EXPRESSIONS: dict[Group, str] = {
    "key": "key_id",
    "model": "coalesce(model_served, model_asked, '')",
    "account": "account",
    "day": "to_char(admitted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}


class UsageRow(msgspec.Struct, frozen=True):
    """Sums over one group.

    group: key id, model as served, account, or day (UTC, YYYY-MM-DD). label: a key's name, else
    the group itself. failed: requests whose outcome is not ok. cost: US dollars. ttft_ms_p50:
    median time to the first byte of the requests that got one, milliseconds; None without any.
    """

    group: str
    label: str
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost: str
    ttft_ms_p50: float | None


async def usage(database: "Database", *, by: Group, since_s: float) -> list[UsageRow]:
    """Usage of the last `since_s` seconds, largest first; days in order."""
    order = "1" if by == "day" else "prompt_tokens + completion_tokens DESC, requests DESC, 1"
    rows = await database.pool.fetch(
        f"""
        SELECT u.*, coalesce(k.name, u.grp) AS label FROM (
            SELECT {_EXPRESSIONS[by]} AS grp,
                count(*) AS requests,
                count(*) FILTER (WHERE outcome <> 'ok') AS failed,
                coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
                coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
                coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
                coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
                coalesce(sum(cost), 0) AS cost,
                percentile_cont(0.5) WITHIN GROUP (ORDER BY ttft_ms) AS ttft_ms_p50
            FROM usage_events
            WHERE admitted_at >= now() - make_interval(secs => $1)
            GROUP BY 1
        ) u LEFT JOIN api_keys k ON $2 AND k.id = u.grp
        ORDER BY {order}
        """,
        float(since_s),
        by == "key",
    )
    return [
        UsageRow(
            row["grp"],
            row["label"],
            row["requests"],
            row["failed"],
            row["prompt_tokens"],
            row["cached_tokens"],
            row["completion_tokens"],
            row["reasoning_tokens"],
            text(from_numeric(row["cost"])),
            row["ttft_ms_p50"],
        )
        for row in rows
    ]

"""What was spent in the current period of each budget."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from forebay.store.money import from_numeric

if TYPE_CHECKING:
    import asyncpg


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Spend of one subject since its budget's period began.

    scope: ``account``, ``key``, ``model`` or ``key_model``. model: with ``key_model`` only.
    period_start: Unix seconds, by the database's clock; 0 for a total budget. spent_nano:
    nano-dollars.
    """

    scope: str
    id: str
    model: str | None
    period_start: int
    spent_nano: int


def _branch(scope: str, identity: str, model: str, table: str, where: str, match: str) -> str:
    return (
        f"SELECT '{scope}' AS scope, {identity} AS id, {model} AS model,"
        " extract(epoch FROM p.day)::bigint AS period_start,"
        " (SELECT coalesce(sum(s.cost), 0) FROM usage_daily s"
        f" WHERE s.day >= p.day AND {match}) AS spent"
        f" FROM {table} b JOIN periods p ON p.period = b.budget_period"
        f" WHERE b.budget IS NOT NULL AND {where}"
    )


SPENT = (
    "WITH periods (period, day) AS (SELECT v.period, v.day"
    " FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) t, LATERAL (VALUES"
    " ('day', t.today), ('month', date_trunc('month', t.today::timestamp)::date),"
    " ('total', DATE '1970-01-01')) v (period, day)) "
    + " UNION ALL ".join(
        (
            _branch(
                *("key", "b.id::text", "NULL::text", "api_keys"),
                *("b.revoked_at IS NULL", "s.key_id = b.id::text"),
            ),
            _branch(
                *("account", "b.account", "NULL::text", "limits"),
                *("b.account IS NOT NULL", "s.account = b.account"),
            ),
            _branch(
                *("model", "b.model", "NULL::text", "limits"),
                *("b.model IS NOT NULL AND b.key_id IS NULL", "s.model = b.model"),
            ),
            _branch(
                *("key_model", "b.key_id::text", "b.model", "limits"),
                *("b.key_id IS NOT NULL", "s.key_id = b.key_id::text AND s.model = b.model"),
            ),
        )
    )
)
"""The spend of every subject with a budget."""


def to_spent(row: "asyncpg.Record") -> Spent:
    """One row of `SPENT`."""
    return Spent(
        scope=row["scope"],
        id=row["id"],
        model=row["model"],
        period_start=row["period_start"],
        spent_nano=from_numeric(row["spent"]),
    )


def encode_spent(spent: Iterable[Spent]) -> bytes:
    """Encode for the core: a JSON list of objects with the fields of `Spent`."""
    return msgspec.json.encode(list(spent))

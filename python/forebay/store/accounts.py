"""Accounts: who pays, and their part of what is scarce."""

from typing import TYPE_CHECKING, Annotated, Any

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from forebay.store.errors import AccountExists, AccountNotFound, BadValue
from forebay.store.limits import check_name, is_name
from forebay.store.log_settings import (
    PromptLogLevel,
    PromptLogSample,
    check_sample,
    to_numeric,
)

if TYPE_CHECKING:
    from forebay.store.database import Database

MIN_WEIGHT = 0.001
MAX_WEIGHT = 1000.0

Weight = Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)]


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account.

    weight: its part of an engine that is full, relative to the other accounts' weights.
    created_at: Unix seconds. keys: how many it has that are not revoked.
    log_level, log_sample: what is logged of its requests, and of which part of them, 0 to 1.
    """

    id: str
    name: str
    weight: float
    created_at: float
    keys: int
    log_level: PromptLogLevel
    log_sample: float


class AccountChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of an account; a field that is not given stays."""

    name: str | UnsetType = UNSET
    weight: Weight | UnsetType = UNSET
    log_level: PromptLogLevel | UnsetType = UNSET
    log_sample: PromptLogSample | UnsetType = UNSET


_SELECT = (
    "SELECT id, name, weight, created_at, log_level, log_sample, (SELECT count(*) FROM api_keys k"
    " WHERE k.account = accounts.id AND k.revoked_at IS NULL) AS keys FROM accounts"
)


def _account(row: Any) -> Account:
    return Account(
        id=row["id"],
        name=row["name"],
        weight=row["weight"],
        created_at=row["created_at"].timestamp(),
        keys=row["keys"],
        log_level=row["log_level"],
        log_sample=float(row["log_sample"]),
    )


def check_account_id(field: str, account: str) -> None:
    """An id is 1 to 200 printable characters without ``/``: it stands in paths.

    Raises: BadValue.
    """
    check_name(field, account)
    if "/" in account:
        raise BadValue(field, "must not contain /")


def _check_weight(weight: float) -> None:
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise BadValue("weight", f"must be {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")


Accounts = list[Account]
"""Named, because `AccountStore.list` hides the type's name inside the class."""


class AccountStore:
    """The table of accounts. A change of a weight reaches watchers by NOTIFY and by version."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def list(self, *, after: str | None = None, limit: int | None = None) -> Accounts:
        """Accounts by id, up to `limit`, from the one after `after`.

        Raises: BadValue on what is no id.
        """
        if after is not None:
            check_name("after", after)
        rows = await self._pool.fetch(
            f"{_SELECT} WHERE $1::text IS NULL OR id > $1 ORDER BY id LIMIT $2", after, limit
        )
        return [_account(row) for row in rows]

    async def get(self, account: str) -> Account:
        """One account by id.

        Raises: AccountNotFound.
        """
        row = None
        if is_name(account):
            row = await self._pool.fetchrow(f"{_SELECT} WHERE id = $1", account)
        if row is None:
            raise AccountNotFound(f"no account has the id {account!r}")
        return _account(row)

    async def create(
        self,
        account: str,
        *,
        name: str | None = None,
        weight: float = 1.0,
        log_level: PromptLogLevel = "off",
        log_sample: float = 1.0,
    ) -> Account:
        """Make an account. name: None takes the id.

        Raises: AccountExists; BadValue.
        """
        check_account_id("id", account)
        name = account if name is None else name
        check_name("name", name)
        _check_weight(weight)
        check_sample(log_sample)
        try:
            await self._pool.execute(
                "INSERT INTO accounts (id, name, weight, log_level, log_sample)"
                " VALUES ($1, $2, $3, $4, $5)",
                account,
                name,
                weight,
                log_level,
                to_numeric(log_sample),
            )
        except asyncpg.UniqueViolationError:
            raise AccountExists(f"there is an account {account!r} already") from None
        return await self.get(account)

    async def update(self, account: str, changes: AccountChanges) -> Account:
        """Change an account.

        Raises: AccountNotFound; BadValue.
        """
        name = None if changes.name is UNSET else changes.name
        weight = None if changes.weight is UNSET else changes.weight
        if name is not None:
            check_name("name", name)
        if weight is not None:
            _check_weight(weight)
        sample = None if changes.log_sample is UNSET else changes.log_sample
        check_sample(sample)
        if is_name(account):
            await self._pool.execute(
                "UPDATE accounts SET name = coalesce($2, name), weight = coalesce($3, weight),"
                " log_level = coalesce($4, log_level), log_sample = coalesce($5, log_sample),"
                " updated_at = now() WHERE id = $1",
                account,
                name,
                weight,
                None if changes.log_level is UNSET else changes.log_level,
                to_numeric(sample),
            )
        return await self.get(account)

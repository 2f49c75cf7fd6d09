"""Operations on accounts."""

from typing import Annotated

import msgspec
from msgspec import Meta

from forebay.http.admin.operation import Call
from forebay.store.accounts import Account, AccountChanges, AccountStore, Weight
from forebay.store.log_settings import PromptLogLevel, PromptLogSample, check_level

MAX_PAGE = 1000


class AccountQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which accounts to list. after: the last id of the page before."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class AccountPage(msgspec.Struct, frozen=True, kw_only=True):
    """Accounts by id. next: `after` of the next page; null at the end."""

    data: list[Account]
    next: str | None


class AccountCreation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account to make. name: null takes the id. log_level: full takes a key to encrypt with."""

    id: str
    name: str | None = None
    weight: Weight = 1.0
    log_level: PromptLogLevel = "off"
    log_sample: PromptLogSample = 1.0


async def list_accounts(call: Call) -> AccountPage:
    """By id."""
    query: AccountQuery = call.query
    found = await AccountStore(call.database).list(after=query.after, limit=query.limit + 1)
    page = found[: query.limit]
    return AccountPage(data=page, next=page[-1].id if len(found) > query.limit else None)


async def create_account(call: Call) -> Account:
    """Creating a key in a new account does this too."""
    body: AccountCreation = call.body
    check_level(body.log_level, call.config.prompt_logs)
    return await AccountStore(call.database).create(
        body.id,
        name=body.name,
        weight=body.weight,
        log_level=body.log_level,
        log_sample=body.log_sample,
    )


async def get_account(call: Call) -> Account:
    """One account."""
    return await AccountStore(call.database).get(call.path["account"])


async def change_account(call: Call) -> Account:
    """A field that is not given stays."""
    changes: AccountChanges = call.body
    check_level(changes.log_level, call.config.prompt_logs)
    return await AccountStore(call.database).update(call.path["account"], changes)

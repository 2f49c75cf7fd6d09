"""Operations on API keys."""

import asyncio
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from forebay.http.admin.operation import Call, Refused
from forebay.store.errors import KeyNotFound
from forebay.store.key_format import KeyKind
from forebay.store.keys import KeyChanges, KeyStore, Priority, PublicKey
from forebay.store.limits import FIELDS, Limits
from forebay.store.log_settings import PromptLogLevel, PromptLogSample, check_level
from forebay.store.money import text

MAX_PAGE = 1000
STORE_S = 0.05
"""Seconds after which the store of shared limits has answered, or will not."""


class KeyQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which keys to list.

    account: only this account's. after: the id of the last key of the page before.
    limit: most keys in the page.
    """

    account: str | None = None
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """Keys, oldest first. next: `after` of the next page; null at the end."""

    data: list[PublicKey]
    next: str | None


class KeyCreation(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make.

    account: made if it is new. expires_at: Unix seconds; null for never. log_level, log_sample:
    null for what the account has; full takes a key to encrypt with.
    """

    name: str
    account: str = "default"
    kind: KeyKind = "inference"
    models: tuple[str, ...] | None = None
    priority: Priority = "interactive"
    expires_at: float | None = None
    log_level: PromptLogLevel | None = None
    log_sample: PromptLogSample | None = None


class SecretKey(PublicKey, frozen=True, kw_only=True):
    """A key with its secret, which is shown this once."""

    key: str


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """overlap_s: seconds for which the secret until now stays good too."""

    overlap_s: Annotated[float, Meta(ge=0, le=90 * 86_400)] = 0.0


class LiveLimit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit that applies to a key, as it stands now in this gateway.

    Requests, tokens and requests in flight are whole numbers, budgets US dollars as text.
    limit: units in each period. burst: the most that can remain. remaining: what may be used at
    once. reset_s: seconds until all of it is there again; null where time does not help.
    """

    scope: Literal["account", "key", "model", "key_model"]
    subject: str
    model: str | None
    dimension: Literal["requests", "tokens", "concurrency", "budget"]
    period: Literal["second", "minute", "day", "month", "total"] | None
    limit: int | str
    burst: int | str
    remaining: int | str
    reset_s: float | None


class LiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """All limits that apply to a key."""

    data: list[LiveLimit]


async def list_keys(call: Call) -> KeyPage:
    """Oldest first, revoked ones too."""
    query: KeyQuery = call.query
    try:
        found = await KeyStore(call.database).page(
            account=query.account, after=query.after, limit=query.limit + 1
        )
    except KeyNotFound:
        raise Refused(
            "invalid_request", "There is no key of that id.", param="after", code="invalid_value"
        ) from None
    page = found[: query.limit]
    more = len(found) > query.limit
    return KeyPage(data=[record.to_public() for record in page], next=page[-1].id if more else None)


async def create_key(call: Call) -> SecretKey:
    """The answer alone has the secret."""
    body: KeyCreation = call.body
    check_level(body.log_level, call.config.prompt_logs)
    record, secret = await KeyStore(call.database).create(
        name=body.name,
        account=body.account,
        kind=body.kind,
        models=body.models,
        priority=body.priority,
        expires_at=body.expires_at,
        log_level=body.log_level,
        log_sample=body.log_sample,
        **{name: getattr(body, name) for name in FIELDS},
    )
    return _with_secret(record.to_public(), secret)


def _with_secret(key: PublicKey, secret: str) -> SecretKey:
    return SecretKey(**{name: getattr(key, name) for name in key.__struct_fields__}, key=secret)


async def get_key(call: Call) -> PublicKey:
    """Never its secret."""
    return (await KeyStore(call.database).get(call.path["key_id"])).to_public()


async def change_key(call: Call) -> PublicKey:
    """A field that is not given stays; null takes a limit away."""
    changes: KeyChanges = call.body
    check_level(changes.log_level, call.config.prompt_logs)
    return (await KeyStore(call.database).update(call.path["key_id"], changes)).to_public()


async def rotate_key(call: Call) -> SecretKey:
    """The answer alone has the new secret."""
    body: Rotation = call.body
    record, secret = await KeyStore(call.database).rotate(
        call.path["key_id"], overlap_s=body.overlap_s
    )
    return _with_secret(record.to_public(), secret)


async def revoke_key(call: Call) -> PublicKey:
    """For good; a key that is revoked already stays so."""
    return (await KeyStore(call.database).revoke(call.path["key_id"])).to_public()


async def live_limits(call: Call) -> LiveLimits:
    """What remains of every limit that applies to the key, without asking the database."""
    found = call.core.key_limits(call.path["key_id"])
    if found is not None and call.core.shares_limits:
        # That had the store asked what other nodes have left.
        await asyncio.sleep(STORE_S)
        found = call.core.key_limits(call.path["key_id"])
    if found is None:
        raise KeyNotFound(f"this gateway knows no API key with the id {call.path['key_id']!r}")
    entries = msgspec.json.decode(found)
    for entry in entries:
        if entry["dimension"] == "budget":
            for name in ("limit", "burst", "remaining"):
                entry[name] = text(entry[name])
    return LiveLimits(data=msgspec.convert(entries, list[LiveLimit]))

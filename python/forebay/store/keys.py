"""API keys: their records, and the table that holds them. Their format: `key_format`."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from forebay.store.accounts import check_account_id
from forebay.store.errors import BadValue, KeyNotFound, KeyRevoked
from forebay.store.key_format import KEY_ID, KeyKind, generate
from forebay.store.limits import (
    FIELDS,
    LimitChanges,
    Limits,
    OnStoreLoss,
    Period,
    arguments,
    changed,
    check_name,
    column_values,
    completed,
    core_limits,
    is_name,
    limits_from,
    limits_of,
)
from forebay.store.log_settings import (
    PromptLogLevel,
    PromptLogSample,
    check_sample,
    core_log_settings,
    from_numeric,
    to_numeric,
)
from forebay.store.money import Usd

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

Priority = Literal["interactive", "batch"]

MAX_MODELS = 1000
"""Models that a key may be held to."""
_FAR_S = 100 * 366 * 86_400
_OVERLAP_S = 90 * 86_400


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as listings show it: all but its digests, which even hashed are nobody's business.

    Times: Unix seconds. previous_expires_at: until when the secret before the last rotation is
    good; null without one. models: null for every model. priority: who goes first where requests
    have to wait. The limits are those of `Limits`; per_model: further ones on single models.
    log_level, log_sample: what is logged of its requests, and of which part of them, 0 to 1; null
    for what its account has.
    """

    id: str
    kind: KeyKind
    account: str
    name: str
    last4: str
    created_at: float
    expires_at: float | None = None
    revoked: bool = False
    previous_expires_at: float | None = None
    models: tuple[str, ...] | None = None
    priority: Priority = "interactive"
    rps: int | None = None
    rps_burst: int | None = None
    rpm: int | None = None
    rpm_burst: int | None = None
    tpm: int | None = None
    tpm_burst: int | None = None
    concurrency: int | None = None
    budget: Usd | None = None
    budget_period: Period | None = None
    on_store_loss: OnStoreLoss = "share"
    per_model: dict[str, Limits] = {}
    log_level: PromptLogLevel | None = None
    log_sample: float | None = None


class KeyRecord(PublicKey, frozen=True, kw_only=True):
    """A stored key, as watchers see it.

    digest, previous_digest: SHA-256, hex. version: grows with every change of any key.
    """

    digest: str
    version: int
    previous_digest: str | None = None

    def to_public(self) -> PublicKey:
        """The same without digests and version."""
        return PublicKey(**{name: getattr(self, name) for name in PublicKey.__struct_fields__})


class KeyChanges(LimitChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a key; a field that is not given stays.

    models: null for every model. expires_at: Unix seconds; null for never. log_level, log_sample:
    null for what its account has.
    """

    name: str | UnsetType = UNSET
    models: tuple[str, ...] | UnsetType | None = UNSET
    priority: Priority | UnsetType = UNSET
    expires_at: float | UnsetType | None = UNSET
    log_level: PromptLogLevel | UnsetType | None = UNSET
    log_sample: PromptLogSample | UnsetType | None = UNSET


def encode_records(records: Iterable[KeyRecord]) -> bytes:
    """Encode records for the core: a JSON list of objects.

    Each has id, kind, account, digest (hex), models (null: every model), priority, the limits
    (null: none; the budget in nano-dollars), per_model with the same limits by model's name,
    expires_at (whole Unix seconds, rounded down, or null), revoked, what `core_log_settings` has,
    and, after a rotation only, previous_digest and previous_expires_at.
    """
    return msgspec.json.encode([_core_record(record) for record in records])


def _core_record(record: KeyRecord) -> dict[str, Any]:
    encoded = {
        "id": record.id,
        "kind": record.kind,
        "account": record.account,
        "digest": record.digest,
        "models": record.models,
        "priority": record.priority,
        **core_limits(limits_of(record)),
        "per_model": {model: core_limits(limits) for model, limits in record.per_model.items()},
        "expires_at": _whole(record.expires_at),
        "revoked": record.revoked,
        **core_log_settings(record.log_level, record.log_sample),
    }
    if record.previous_digest is not None:
        encoded["previous_digest"] = record.previous_digest
        encoded["previous_expires_at"] = _whole(record.previous_expires_at)
    return encoded


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


_PER_MODEL = (
    "(SELECT json_object_agg(l.model, json_build_object("
    + ", ".join(f"'{name}', l.{name}" + ("::text" * (name == "budget")) for name in FIELDS)
    + ")) FROM limits l WHERE l.key_id = api_keys.id) AS per_model"
)
_COLUMNS = (
    "id, kind, account, name, digest, last4, version, created_at, previous_digest,"
    f" previous_expires_at, models, priority, expires_at, revoked_at, log_level, log_sample,"
    f" {', '.join(FIELDS)}, {_PER_MODEL}"
)
_SELECT = f"SELECT {_COLUMNS} FROM api_keys"
CHANGED_SINCE = f"{_SELECT} WHERE version > $1 ORDER BY version"


def to_record(row: "asyncpg.Record") -> KeyRecord:
    """One row of `CHANGED_SINCE` or of this module's other queries."""
    models, previous, per_model = row["models"], row["previous_digest"], row["per_model"]
    return KeyRecord(
        id=row["id"],
        kind=row["kind"],
        account=row["account"],
        name=row["name"],
        digest=row["digest"].hex(),
        last4=row["last4"],
        version=row["version"],
        created_at=row["created_at"].timestamp(),
        previous_digest=None if previous is None else previous.hex(),
        previous_expires_at=_unix(row["previous_expires_at"]),
        models=None if models is None else tuple(models),
        priority=row["priority"],
        expires_at=_unix(row["expires_at"]),
        revoked=row["revoked_at"] is not None,
        log_level=row["log_level"],
        log_sample=from_numeric(row["log_sample"]),
        per_model={}
        if per_model is None
        else {model: limits_from(v) for model, v in msgspec.json.decode(per_model).items()},
        **column_values(row),
    )


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _expiry(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    now = datetime.now(UTC)
    if not 0 < seconds - now.timestamp() <= _FAR_S:
        raise BadValue("expires_at", "must lie in the next 100 years")
    return datetime.fromtimestamp(seconds, UTC)


def _checked_models(models: Sequence[str] | None) -> list[str] | None:
    if models is None:
        return None
    if not (0 < len(models) <= MAX_MODELS and all(map(is_name, models))):
        raise BadValue(
            "models", f"must be 1 to {MAX_MODELS} names of 1 to 200 printable characters"
        )
    return list(models)


Records = list[KeyRecord]
"""Named, because `KeyStore.list` hides the type's name inside the class."""


class KeyStore:
    """The table of keys. Every change reaches watchers by NOTIFY and by version."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def create(
        self,
        *,
        name: str,
        account: str = "default",
        kind: KeyKind = "inference",
        models: Sequence[str] | None = None,
        priority: Priority = "interactive",
        rps: int | None = None,
        rps_burst: int | None = None,
        rpm: int | None = None,
        rpm_burst: int | None = None,
        tpm: int | None = None,
        tpm_burst: int | None = None,
        concurrency: int | None = None,
        budget: str | None = None,
        budget_period: Period | None = None,
        on_store_loss: OnStoreLoss = "share",
        expires_in_s: float | None = None,
        expires_at: float | None = None,
        log_level: PromptLogLevel | None = None,
        log_sample: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key, and its account where that is new; return record and secret.

        The limits are those of `Limits`. expires_at: Unix seconds; expires_in_s: the same from
        now, seconds. log_level, log_sample: None for what the account has.

        Raises: BadValue.
        """
        check_name("name", name)
        check_account_id("account", account)
        limits = completed(
            Limits(
                rps=rps,
                rps_burst=rps_burst,
                rpm=rpm,
                rpm_burst=rpm_burst,
                tpm=tpm,
                tpm_burst=tpm_burst,
                concurrency=concurrency,
                budget=budget,
                budget_period=budget_period,
                on_store_loss=on_store_loss,
            )
        )
        allowed = _checked_models(models)
        check_sample(log_sample)
        expires = _expiry(expires_at)
        if expires_in_s is not None:
            if not 0 < expires_in_s <= _FAR_S:
                raise BadValue("expiry", "must be within 100 years")
            expires = datetime.now(UTC) + timedelta(seconds=expires_in_s)
        new = generate(kind)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO accounts (id, name) VALUES ($1, $1) ON CONFLICT DO NOTHING", account
            )
            row = await connection.fetchrow(
                "INSERT INTO api_keys (id, kind, account, name, digest, last4, models, priority,"
                f" expires_at, log_level, log_sample, {', '.join(FIELDS)})"
                f" VALUES ({', '.join(f'${i + 1}' for i in range(11 + len(FIELDS)))})"
                f" RETURNING {_COLUMNS}",
                new.id,
                kind,
                account,
                name,
                new.digest,
                new.last4,
                allowed,
                priority,
                expires,
                log_level,
                to_numeric(log_sample),
                *arguments(limits),
            )
        assert row is not None
        return to_record(row), new.key

    async def list(self, *, account: str | None = None) -> Records:
        """All keys, revoked ones too, oldest first."""
        rows = await self._pool.fetch(
            f"{_SELECT} WHERE $1::text IS NULL OR account = $1 ORDER BY created_at, id", account
        )
        return [to_record(row) for row in rows]

    async def page(self, *, account: str | None, after: str | None, limit: int) -> Records:
        """Up to `limit` keys, revoked ones too, oldest first, from the one after key `after`.

        Raises: KeyNotFound, of `after`; BadValue on an account that is no id.
        """
        if account is not None:
            check_name("account", account)
        start = None if after is None else await self.get(after)
        rows = await self._pool.fetch(
            f"{_SELECT} WHERE ($1::text IS NULL OR account = $1) AND ($2::text IS NULL"
            " OR (created_at, id) > (SELECT created_at, id FROM api_keys WHERE id = $2))"
            " ORDER BY created_at, id LIMIT $3",
            account,
            None if start is None else start.id,
            limit,
        )
        return [to_record(row) for row in rows]

    async def get(self, key_id: str) -> KeyRecord:
        """One key by id.

        Raises: KeyNotFound.
        """
        row = None
        if KEY_ID.fullmatch(key_id):
            row = await self._pool.fetchrow(f"{_SELECT} WHERE id = $1", key_id)
        if row is None:
            raise KeyNotFound(f"no API key has the id {key_id!r}")
        return to_record(row)

    async def update(self, key_id: str, changes: KeyChanges) -> KeyRecord:
        """Change a key; running gateways follow within a second, and what was used stays used.

        Raises: KeyNotFound, KeyRevoked; BadValue.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            old = to_record(await self._locked(connection, key_id))
            limits = changed(limits_of(old), changes)
            name = old.name if changes.name is UNSET else changes.name
            check_name("name", name)
            expires_at = changes.expires_at
            sample = old.log_sample if changes.log_sample is UNSET else changes.log_sample
            check_sample(sample)
            row = await connection.fetchrow(
                "UPDATE api_keys SET name = $2, models = $3, priority = $4,"
                " expires_at = CASE WHEN $5 THEN $6 ELSE expires_at END, log_level = $7,"
                " log_sample = $8,"
                f" {', '.join(f'{field} = ${i + 9}' for i, field in enumerate(FIELDS))}"
                f" WHERE id = $1 RETURNING {_COLUMNS}",
                key_id,
                name,
                _checked_models(old.models if changes.models is UNSET else changes.models),
                old.priority if changes.priority is UNSET else changes.priority,
                expires_at is not UNSET,
                None if expires_at is UNSET else _expiry(expires_at),
                old.log_level if changes.log_level is UNSET else changes.log_level,
                to_numeric(sample),
                *arguments(limits),
            )
        assert row is not None
        return to_record(row)

    async def _locked(self, connection: Any, key_id: str) -> "asyncpg.Record":
        row: asyncpg.Record | None = None
        if KEY_ID.fullmatch(key_id):
            row = await connection.fetchrow(f"{_SELECT} WHERE id = $1 FOR UPDATE", key_id)
        if row is None:
            raise KeyNotFound(f"no API key has the id {key_id!r}")
        if row["revoked_at"] is not None:
            raise KeyRevoked(f"API key {key_id} is revoked")
        return row

    async def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> tuple[KeyRecord, str]:
        """Give a key a new secret under the same id; return record and secret.

        overlap_s: seconds, 0 to 90 days, for which the secret until now stays good. An even
        older one, still in its own overlap, ends at once.

        Raises: KeyNotFound, KeyRevoked; BadValue on an overlap out of range.
        """
        if not 0 <= overlap_s <= _OVERLAP_S:
            raise BadValue("overlap_s", "must be 0 to 90 days")
        async with self._pool.acquire() as connection, connection.transaction():
            old = await self._locked(connection, key_id)
            new = generate(old["kind"], old["id"])
            row = await connection.fetchrow(
                "UPDATE api_keys SET digest = $2, last4 = $3, rotated_at = now(),"
                " previous_digest = CASE WHEN $4 > 0 THEN digest END,"
                " previous_expires_at = CASE WHEN $4 > 0"
                " THEN now() + make_interval(secs => $4) END"
                f" WHERE id = $1 RETURNING {_COLUMNS}",
                key_id,
                new.digest,
                new.last4,
                float(overlap_s),
            )
        assert row is not None
        return to_record(row), new.key

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key for good; one already revoked stays as it is.

        Raises: KeyNotFound.
        """
        row = None
        if KEY_ID.fullmatch(key_id):
            row = await self._pool.fetchrow(
                "UPDATE api_keys SET revoked_at = now(), previous_digest = NULL,"
                " previous_expires_at = NULL"
                f" WHERE id = $1 AND revoked_at IS NULL RETURNING {_COLUMNS}",
                key_id,
            )
        return await self.get(key_id) if row is None else to_record(row)

    async def all_active(self) -> Records:
        """Every key that is neither revoked nor expired."""
        rows = await self._pool.fetch(
            f"{_SELECT} WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
            " ORDER BY version"
        )
        return [to_record(row) for row in rows]

    async def changed_since(self, version: int) -> Records:
        """Every key changed after `version`, revoked ones too, in order of change."""
        return [to_record(row) for row in await self._pool.fetch(CHANGED_SINCE, version)]

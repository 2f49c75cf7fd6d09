"""API keys: their format, their records, and the table that holds them.

A key is ``fb-`` + kind (1) + id (12) + secret (32) + check (6), all base62: 54 characters. The
check is the CRC-32 of everything before it, so noise is refused without a look-up. Only the id,
the SHA-256 of the whole key and its last four characters are stored; a fast hash suits a secret
of 190 random bits.
"""

import hashlib
import secrets
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from forebay.store.errors import KeyNotFound, KeyRevoked, StoreError

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

KeyKind = Literal["inference", "admin"]

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "fb-"
ID_LENGTH = 12
SECRET_LENGTH = 32
CHECK_LENGTH = 6
KEY_LENGTH = len(PREFIX) + 1 + ID_LENGTH + SECRET_LENGTH + CHECK_LENGTH
_LETTERS: dict[str, str] = {"inference": "k", "admin": "a"}
_KINDS: dict[str, KeyKind] = {"k": "inference", "a": "admin"}
_ALPHABET_SET = frozenset(ALPHABET)


class MalformedKey(ValueError):
    """Text that cannot be a key of ours. The message does not repeat it."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; `key` is shown once and never stored.

    digest: SHA-256 of the key, 32 bytes. last4: its last four characters, to recognise it by.
    """

    id: str
    key: str = field(repr=False)
    digest: bytes = field(repr=False)
    last4: str


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A well-formed key, without its secret. digest: SHA-256 of the whole key, 32 bytes."""

    kind: KeyKind
    id: str
    digest: bytes = field(repr=False)


def _check(text: str) -> str:
    value = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(CHECK_LENGTH):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def generate(kind: KeyKind, key_id: str | None = None) -> NewKey:
    """Make a key from the system's random source.

    key_id: keep this id (a rotation); None makes a new one.
    """
    key_id = _random(ID_LENGTH) if key_id is None else key_id
    body = f"{PREFIX}{_LETTERS[kind]}{key_id}{_random(SECRET_LENGTH)}"
    key = body + _check(body)
    return NewKey(key_id, key, hashlib.sha256(key.encode()).digest(), key[-4:])


def parse(text: str) -> ParsedKey:
    """Read a key as a client sent it. A change of any one character is noticed.

    Raises: MalformedKey.
    """
    if len(text) != KEY_LENGTH or not text.startswith(PREFIX):
        raise MalformedKey(f"an API key starts with {PREFIX} and has {KEY_LENGTH} characters")
    if not _ALPHABET_SET.issuperset(text[len(PREFIX) :]):
        raise MalformedKey("an API key has letters and digits only")
    body, check = text[:-CHECK_LENGTH], text[-CHECK_LENGTH:]
    kind = _KINDS.get(text[len(PREFIX)])
    if kind is None or _check(body) != check:
        raise MalformedKey("the API key's check characters do not fit: it was mistyped or cut")
    start = len(PREFIX) + 1
    digest = hashlib.sha256(text.encode()).digest()
    return ParsedKey(kind, text[start : start + ID_LENGTH], digest)


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored key, as watchers and listings see it.

    digest, previous_digest: SHA-256, hex. Times: Unix seconds. models: None for every model.
    rpm, tpm: units a minute; bursts and concurrency: units; None is no limit.
    version: grows with every change of any key.
    """

    id: str
    kind: KeyKind
    account: str
    name: str
    digest: str
    last4: str
    version: int
    created_at: float
    previous_digest: str | None = None
    previous_expires_at: float | None = None
    models: tuple[str, ...] | None = None
    rpm: int | None = None
    rpm_burst: int | None = None
    tpm: int | None = None
    tpm_burst: int | None = None
    concurrency: int | None = None
    expires_at: float | None = None
    revoked: bool = False

    def to_public(self) -> dict[str, Any]:
        """Everything but the digests, which even hashed are nobody's business."""
        public: dict[str, Any] = msgspec.to_builtins(self)
        for name in ("digest", "previous_digest", "version"):
            del public[name]
        return public


class _CoreRecord(msgspec.Struct, omit_defaults=True):
    # Fields without a default are always written, null included.
    id: str
    kind: str
    account: str
    digest: str
    models: tuple[str, ...] | None
    rpm: int | None
    rpm_burst: int | None
    tpm: int | None
    tpm_burst: int | None
    concurrency: int | None
    expires_at: int | None
    revoked: bool
    previous_digest: str | None = None
    previous_expires_at: int | None = None


def _core_record(record: KeyRecord) -> _CoreRecord:
    return _CoreRecord(
        id=record.id,
        kind=record.kind,
        account=record.account,
        digest=record.digest,
        models=record.models,
        rpm=record.rpm,
        rpm_burst=record.rpm_burst,
        tpm=record.tpm,
        tpm_burst=record.tpm_burst,
        concurrency=record.concurrency,
        expires_at=_whole(record.expires_at),
        revoked=record.revoked,
        previous_digest=record.previous_digest,
        previous_expires_at=_whole(record.previous_expires_at),
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def encode_records(records: Iterable[KeyRecord]) -> bytes:
    """Encode records for the core: a JSON list of objects.

    Each has id, kind, account, digest (hex), models (null: every model), rpm, rpm_burst, tpm,
    tpm_burst, concurrency (null: no limit), expires_at (whole Unix seconds, rounded down, or
    null), revoked, and, after a rotation only, previous_digest and previous_expires_at.
    """
    return msgspec.json.encode([_core_record(record) for record in records])


_SELECT = (
    "SELECT id, kind, account, name, digest, last4, version, created_at, previous_digest,"
    " previous_expires_at, models, rpm, rpm_burst, tpm, tpm_burst, concurrency, expires_at,"
    " revoked_at FROM api_keys"
)
CHANGED_SINCE = f"{_SELECT} WHERE version > $1 ORDER BY version"


def to_record(row: "asyncpg.Record") -> KeyRecord:
    """One row of `CHANGED_SINCE` or of this module's other queries."""
    models, previous = row["models"], row["previous_digest"]
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
        rpm=row["rpm"],
        rpm_burst=row["rpm_burst"],
        tpm=row["tpm"],
        tpm_burst=row["tpm_burst"],
        concurrency=row["concurrency"],
        expires_at=_unix(row["expires_at"]),
        revoked=row["revoked_at"] is not None,
    )


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _require(ok: bool, reason: str) -> None:
    if not ok:
        raise StoreError(reason)


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
        rpm: int | None = None,
        rpm_burst: int | None = None,
        tpm: int | None = None,
        tpm_burst: int | None = None,
        concurrency: int | None = None,
        expires_in_s: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key, and its account where that is new; return record and secret.

        rpm: requests a minute, with a burst of rpm/6 (at least 1) unless rpm_burst.
        tpm: tokens a minute, with a burst of tpm unless tpm_burst.

        Raises: StoreError on a value out of range.
        """
        for what, text in (("name", name), ("account", account)):
            _require(
                0 < len(text) <= 200 and text.isprintable(),
                f"{what} must have 1 to 200 printable characters",
            )
        numbers = {
            "rpm": rpm,
            "rpm_burst": rpm_burst,
            "tpm": tpm,
            "tpm_burst": tpm_burst,
            "concurrency": concurrency,
        }
        for what, number in numbers.items():
            _require(number is None or 0 < number < 1 << 40, f"{what} must be 1 to 2^40 - 1")
        _require(rpm_burst is None or rpm is not None, "rpm_burst needs rpm")
        _require(tpm_burst is None or tpm is not None, "tpm_burst needs tpm")
        _require(models is None or (len(models) > 0 and all(models)), "models must not be empty")
        _require(
            expires_in_s is None or 0 < expires_in_s <= 100 * 366 * 86_400,
            "expiry must be within 100 years",
        )
        if rpm is not None and rpm_burst is None:
            rpm_burst = max(1, rpm // 6)
        if tpm is not None and tpm_burst is None:
            tpm_burst = tpm
        expires_at = None
        if expires_in_s is not None:
            expires_at = datetime.now(UTC) + timedelta(seconds=expires_in_s)
        new = generate(kind)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO accounts (id, name) VALUES ($1, $1) ON CONFLICT DO NOTHING", account
            )
            row = await connection.fetchrow(
                "INSERT INTO api_keys (id, kind, account, name, digest, last4, models, rpm,"
                " rpm_burst, tpm, tpm_burst, concurrency, expires_at)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *",
                new.id,
                kind,
                account,
                name,
                new.digest,
                new.last4,
                None if models is None else list(models),
                rpm,
                rpm_burst,
                tpm,
                tpm_burst,
                concurrency,
                expires_at,
            )
        assert row is not None
        return to_record(row), new.key

    async def list(self, *, account: str | None = None) -> Records:
        """Every key, revoked ones too, oldest first; of one account if given."""
        rows = await self._pool.fetch(
            f"{_SELECT} WHERE $1::text IS NULL OR account = $1 ORDER BY created_at, id", account
        )
        return [to_record(row) for row in rows]

    async def get(self, key_id: str) -> KeyRecord:
        """One key by id.

        Raises: KeyNotFound.
        """
        row = await self._pool.fetchrow(f"{_SELECT} WHERE id = $1", key_id)
        if row is None:
            raise KeyNotFound(f"no API key has the id {key_id!r}")
        return to_record(row)

    async def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> tuple[KeyRecord, str]:
        """Give a key a new secret under the same id; return record and secret.

        overlap_s: seconds, 0 to 90 days, for which the secret until now stays good. An even
        older one, still in its own overlap, ends at once.

        Raises: KeyNotFound, KeyRevoked; StoreError on an overlap out of range.
        """
        _require(0 <= overlap_s <= 90 * 86_400, "overlap must be 0 to 90 days")
        async with self._pool.acquire() as connection, connection.transaction():
            old = await connection.fetchrow(f"{_SELECT} WHERE id = $1 FOR UPDATE", key_id)
            if old is None:
                raise KeyNotFound(f"no API key has the id {key_id!r}")
            if old["revoked_at"] is not None:
                raise KeyRevoked(f"API key {key_id} is revoked")
            new = generate(old["kind"], old["id"])
            row = await connection.fetchrow(
                "UPDATE api_keys SET digest = $2, last4 = $3, rotated_at = now(),"
                " previous_digest = CASE WHEN $4 > 0 THEN digest END,"
                " previous_expires_at = CASE WHEN $4 > 0"
                " THEN now() + make_interval(secs => $4) END"
                " WHERE id = $1 RETURNING *",
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
        row = await self._pool.fetchrow(
            "UPDATE api_keys SET revoked_at = now(), previous_digest = NULL,"
            " previous_expires_at = NULL"
            " WHERE id = $1 AND revoked_at IS NULL RETURNING *",
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

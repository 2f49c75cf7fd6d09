"""Limits: what they are, how they change, and the table for those that belong to no single key.

Whom a limit may hold: an account, a key, a model for all clients together, and a key on one
model. All take the same settings. A key's own are in its record (`forebay.store.keys`).
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from forebay.store.errors import AccountNotFound, BadValue, KeyNotFound
from forebay.store.key_format import KEY_ID
from forebay.store.log_settings import PromptLogLevel, core_log_settings
from forebay.store.money import NANO, Usd, from_numeric, nano, text, to_numeric

if TYPE_CHECKING:
    from forebay.store.database import Database

MAX_RPS = 1_000_000_000
MAX_UNITS = (1 << 40) - 1
MAX_CONCURRENCY = (1 << 31) - 1
MAX_BUDGET_NANO = 10_000_000 * NANO
"""Ten million dollars."""
MAX_NAME = 200
"""Characters of a name, an account's id or a model's name."""

Scope = Literal["account", "model", "key_model"]
Period = Literal["day", "month", "total"]
OnStoreLoss = Literal["share", "deny"]

_PerSecond = Annotated[int, Meta(ge=1, le=MAX_RPS, description="Requests a second.")]
_AtOnce = Annotated[int, Meta(ge=1, le=MAX_UNITS, description="Units that may come at once.")]
_PerMinute = Annotated[int, Meta(ge=1, le=MAX_UNITS, description="Units a minute.")]
_InFlight = Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY, description="Requests in flight.")]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one subject; None is no limit.

    rps, rpm: requests a second, a minute. tpm: input and output tokens a minute. ``*_burst``:
    how many of them at once; None takes the default, which is rps, rpm/6 (at least 1) and tpm.
    concurrency: requests in flight. budget: US dollars in each budget_period of the UTC calendar,
    or in all time. on_store_loss: what holds while the nodes' shared store is away, this node's
    share of each limit or no admission at all.
    """

    rps: _PerSecond | None = None
    rps_burst: _AtOnce | None = None
    rpm: _PerMinute | None = None
    rpm_burst: _AtOnce | None = None
    tpm: _PerMinute | None = None
    tpm_burst: _AtOnce | None = None
    concurrency: _InFlight | None = None
    budget: Usd | None = None
    budget_period: Period | None = None
    on_store_loss: OnStoreLoss = "share"


class LimitChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of some `Limits`: a field that is not given stays, null takes a limit away.

    A rate given without its burst gets that rate's default burst.
    """

    rps: _PerSecond | UnsetType | None = UNSET
    rps_burst: _AtOnce | UnsetType | None = UNSET
    rpm: _PerMinute | UnsetType | None = UNSET
    rpm_burst: _AtOnce | UnsetType | None = UNSET
    tpm: _PerMinute | UnsetType | None = UNSET
    tpm_burst: _AtOnce | UnsetType | None = UNSET
    concurrency: _InFlight | UnsetType | None = UNSET
    budget: Usd | UnsetType | None = UNSET
    budget_period: Period | UnsetType | None = UNSET
    on_store_loss: OnStoreLoss | UnsetType | None = UNSET


FIELDS = Limits.__struct_fields__
_RATES = (("rps", "rps_burst"), ("rpm", "rpm_burst"), ("tpm", "tpm_burst"))
_MOST = {
    "rps": MAX_RPS,
    "rps_burst": MAX_UNITS,
    "rpm": MAX_UNITS,
    "rpm_burst": MAX_UNITS,
    "tpm": MAX_UNITS,
    "tpm_burst": MAX_UNITS,
    "concurrency": MAX_CONCURRENCY,
}


class Subject(NamedTuple):
    """Whom limits of the table belong to.

    id: an account's id, a model's name, or a key's id. model: with ``key_model`` only.
    """

    scope: Scope
    id: str
    model: str | None = None


class SubjectLimits(msgspec.Struct, frozen=True, kw_only=True):
    """One subject and its limits.

    weight, log_level, log_sample: of an account; those of no other subject mean anything.
    """

    scope: Scope
    id: str
    model: str | None
    limits: Limits
    weight: float = 1.0
    log_level: PromptLogLevel = "off"
    log_sample: float = 1.0


def limits_of(source: Any) -> Limits:
    """The limits among the attributes of a record."""
    return Limits(**{name: getattr(source, name) for name in FIELDS})


def completed(limits: Limits) -> Limits:
    """The same with default bursts filled in, every value checked.

    Raises: BadValue.
    """
    values = {name: getattr(limits, name) for name in FIELDS}
    for name, most in _MOST.items():
        value = values[name]
        if value is not None and not 1 <= value <= most:
            raise BadValue(name, f"must be 1 to {most}")
    for rate, burst in _RATES:
        if values[rate] is None and values[burst] is not None:
            raise BadValue(burst, f"needs {rate}")
        if values[rate] is not None and values[burst] is None:
            values[burst] = max(1, values[rate] // 6) if rate == "rpm" else values[rate]
    if values["budget"] is not None:
        values["budget"] = _checked_budget(values["budget"])
        if values["budget_period"] is None:
            raise BadValue("budget_period", "is needed with a budget: day, month or total")
    elif values["budget_period"] is not None:
        raise BadValue("budget_period", "needs budget")
    return Limits(**values)


def _checked_budget(usd: str) -> str:
    try:
        amount = nano(usd)
    except ValueError as error:
        raise BadValue("budget", f"is wrong: {error}") from None
    if not 1 <= amount <= MAX_BUDGET_NANO:
        raise BadValue("budget", "must be 0.000000001 to 10000000 dollars")
    return text(amount)


def changed(limits: Limits, changes: LimitChanges) -> Limits:
    """The limits after the changes, completed.

    Raises: BadValue.
    """
    given = {name: value for name in FIELDS if (value := getattr(changes, name)) is not UNSET}
    values = {name: getattr(limits, name) for name in FIELDS} | given
    for rate, burst in _RATES:
        if rate in given and burst not in given:
            values[burst] = None
    if "budget" in given and given["budget"] is None and "budget_period" not in given:
        values["budget_period"] = None
    if values["on_store_loss"] is None:
        values["on_store_loss"] = "share"
    return completed(Limits(**values))


def limits_from(row: Any) -> Limits:
    """The limits in a row, or in the JSON of one."""
    return Limits(**column_values(row))


def column_values(row: Any) -> dict[str, Any]:
    """The limit columns of a row, or of the JSON of one, as `Limits` has them."""
    values = {name: row[name] for name in FIELDS}
    if values["budget"] is not None:
        values["budget"] = text(from_numeric(Decimal(values["budget"])))
    return values


def arguments(limits: Limits) -> list[Any]:
    """The limits in the order of `FIELDS`, as statements take them."""
    values = {name: getattr(limits, name) for name in FIELDS}
    if limits.budget is not None:
        values["budget"] = to_numeric(nano(limits.budget))
    return list(values.values())


def core_limits(limits: Limits) -> dict[str, Any]:
    """The limits as the core takes them: budget_nano in place of budget."""
    values = {name: getattr(limits, name) for name in FIELDS if name != "budget"}
    values["budget_nano"] = None if limits.budget is None else nano(limits.budget)
    return values


def encode_limits(subjects: Iterable[SubjectLimits]) -> bytes:
    """Encode the limits of accounts and models for the core: a JSON list of objects.

    Each has scope, id, the limits (null: none) with budget_nano, and of accounts weight and what
    `core_log_settings` has. Limits of a key on one model are not among them; they go with the key.
    """
    return msgspec.json.encode(
        [
            {
                "scope": subject.scope,
                "id": subject.id,
                **core_limits(subject.limits),
                **(_of_account(subject) if subject.scope == "account" else {}),
            }
            for subject in subjects
            if subject.scope != "key_model"
        ]
    )


def _of_account(subject: SubjectLimits) -> dict[str, Any]:
    settings = core_log_settings(subject.log_level, subject.log_sample)
    return {"weight": subject.weight, **settings}


_COLUMNS = ", ".join(FIELDS)
ALL_SUBJECTS = (
    "SELECT coalesce(l.account, a.id) AS account, l.key_id, l.model,"
    " coalesce(a.weight, 1) AS weight, coalesce(a.log_level, 'off') AS log_level,"
    " coalesce(a.log_sample, 1) AS log_sample, coalesce(l.on_store_loss, 'share') AS on_store_loss,"
    f" {', '.join(f'l.{name}' for name in FIELDS if name != 'on_store_loss')}"
    " FROM (SELECT * FROM limits WHERE key_id IS NULL OR $1) l"
    " FULL JOIN (SELECT id, weight, log_level, log_sample FROM accounts"
    " WHERE weight <> 1 OR log_level <> 'off') a ON a.id = l.account"
    " ORDER BY 1, 2, 3"
)
"""Every subject with limits, and every account with a weight or logs; $1: limits of keys too."""


def to_subject(row: "asyncpg.Record") -> SubjectLimits:
    """One row of `ALL_SUBJECTS`."""
    scope: Scope = "model"
    name, model = row["model"], None
    if row["account"] is not None:
        scope, name = "account", row["account"]
    elif row["key_id"] is not None:
        scope, name, model = "key_model", row["key_id"], row["model"]
    return SubjectLimits(
        scope=scope,
        id=name,
        model=model,
        limits=limits_from(row),
        weight=row["weight"],
        log_level=row["log_level"],
        log_sample=float(row["log_sample"]),
    )


class LimitStore:
    """The table of limits. Every change reaches watchers by NOTIFY and by version."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def list(self) -> "list[SubjectLimits]":
        """Every subject with limits and every account with a weight or logs of its own."""
        return [to_subject(row) for row in await self._pool.fetch(ALL_SUBJECTS, True)]

    async def get(self, subject: Subject) -> Limits:
        """The limits of one subject; without any, `Limits()`.

        Raises: AccountNotFound, KeyNotFound; BadValue on a bad name.
        """
        _check_subject(subject)
        row = await self._pool.fetchrow(f"{_ONE}", *_where(subject))
        if row is None:
            await self._check_there(self._pool, subject)
            return Limits()
        return limits_from(row)

    async def put(self, subject: Subject, limits: Limits) -> Limits:
        """Set all limits of one subject; `Limits()` takes them away. Returns them, completed.

        Raises: AccountNotFound, KeyNotFound; BadValue.
        """
        _check_subject(subject)
        limits = completed(limits)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_TURN)
            await self._write(connection, subject, limits)
        return limits

    async def change(self, subject: Subject, changes: LimitChanges) -> Limits:
        """Change some limits of one subject; returns all of them.

        Raises: AccountNotFound, KeyNotFound; BadValue.
        """
        _check_subject(subject)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_TURN)
            row = await connection.fetchrow(_ONE, *_where(subject))
            limits = changed(Limits() if row is None else limits_from(row), changes)
            await self._write(connection, subject, limits)
        return limits

    async def _write(self, connection: Any, subject: Subject, limits: Limits) -> None:
        if limits == Limits():
            await self._check_there(connection, subject)
            await connection.execute(f"DELETE FROM limits WHERE {_MATCH}", *_where(subject))
            return
        try:
            await connection.execute(_UPSERT, *_where(subject), *arguments(limits))
        except asyncpg.ForeignKeyViolationError:
            raise _missing(subject) from None

    async def _check_there(self, connection: Any, subject: Subject) -> None:
        table = {"account": "accounts", "key_model": "api_keys"}.get(subject.scope)
        if table is not None and not await connection.fetchval(
            f"SELECT true FROM {table} WHERE id = $1", subject.id
        ):
            raise _missing(subject)


_TURN = "SELECT version FROM limits_version FOR UPDATE"
"""Writers take turns here before they touch a row: none builds on what another is changing, and
none waits for this lock, which a trigger takes too, with a row in hand."""
_MATCH = (
    "account IS NOT DISTINCT FROM $1 AND key_id IS NOT DISTINCT FROM $2"
    " AND model IS NOT DISTINCT FROM $3"
)
_ONE = f"SELECT {_COLUMNS} FROM limits WHERE {_MATCH}"
_UPSERT = (
    f"INSERT INTO limits (account, key_id, model, {_COLUMNS})"
    f" VALUES ({', '.join(f'${i + 1}' for i in range(3 + len(FIELDS)))})"
    " ON CONFLICT (key_id, account, model) DO UPDATE SET"
    f" {', '.join(f'{name} = EXCLUDED.{name}' for name in FIELDS)}, updated_at = now()"
)


def _where(subject: Subject) -> tuple[str | None, str | None, str | None]:
    if subject.scope == "account":
        return (subject.id, None, None)
    if subject.scope == "model":
        return (None, None, subject.id)
    return (None, subject.id, subject.model)


def _missing(subject: Subject) -> AccountNotFound | KeyNotFound:
    if subject.scope == "account":
        return AccountNotFound(f"no account has the id {subject.id!r}")
    return KeyNotFound(f"no API key has the id {subject.id!r}")


def _check_subject(subject: Subject) -> None:
    if subject.scope == "account":
        if not is_name(subject.id):
            raise _missing(subject)
        return
    if subject.scope == "key_model" and KEY_ID.fullmatch(subject.id) is None:
        raise _missing(subject)
    check_name("model", subject.id if subject.model is None else subject.model)


def is_name(text: str) -> bool:
    """Whether it is 1 to 200 printable characters, as names and ids of accounts are."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def check_name(field: str, name: str) -> None:
    """Raises: BadValue on what is no name."""
    if not is_name(name):
        raise BadValue(field, f"must have 1 to {MAX_NAME} printable characters")

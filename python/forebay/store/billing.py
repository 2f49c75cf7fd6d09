"""How accounts are billed, and who bills them."""

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import available_timezones

import msgspec
from msgspec import UNSET, Meta, UnsetType

from forebay.store.currency import check_currency
from forebay.store.errors import AccountNotFound, BadValue
from forebay.store.limits import is_name

if TYPE_CHECKING:
    from forebay.store.database import Database

MAX_LINES = 8
MAX_TAXES = 8
MAX_PAYMENT_DAYS = 365

Percent = Annotated[
    str, Meta(pattern=r"^[0-9]{1,3}(\.[0-9]{1,4})?$", description="Percent, a decimal number.")
]
PaymentDays = Annotated[int, Meta(ge=0, le=MAX_PAYMENT_DAYS)]
_PERCENT = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")


class Tax(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tax, as it is called on the invoice. rate: percent. on: what it is taken of."""

    name: str
    rate: Percent
    on: Literal["all", "usage", "fees"] = "all"


class Billing(msgspec.Struct, frozen=True, kw_only=True):
    """How an account is billed.

    currency: of ISO 4217. time_zone: of IANA; a month begins at its midnight. legal_name: null
    takes the account's name. address: its lines. payment_days: until an invoice is due.
    """

    currency: str = "USD"
    time_zone: str = "UTC"
    taxes: tuple[Tax, ...] = ()
    tax_id: str | None = None
    legal_name: str | None = None
    address: tuple[str, ...] = ()
    email: str | None = None
    payment_days: int = 30


class BillingChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change; a field that is not given stays.

    Currency and time zone stay for good once something was invoiced or rated anew.
    """

    currency: str | UnsetType = UNSET
    time_zone: str | UnsetType = UNSET
    taxes: tuple[Tax, ...] | UnsetType = UNSET
    tax_id: str | UnsetType | None = UNSET
    legal_name: str | UnsetType | None = UNSET
    address: tuple[str, ...] | UnsetType = UNSET
    email: str | UnsetType | None = UNSET
    payment_days: PaymentDays | UnsetType = UNSET


class Seller(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who writes the invoices. bank: lines that say where to pay. footer: one line below all."""

    name: str
    address: tuple[str, ...] = ()
    tax_id: str | None = None
    email: str | None = None
    bank: tuple[str, ...] = ()
    footer: str | None = None


BILLING_FIELDS = Billing.__struct_fields__
SELLER_FIELDS = Seller.__struct_fields__


def _check_text(field: str, text: str | None) -> None:
    if text is not None and not is_name(text):
        raise BadValue(field, "must have 1 to 200 printable characters")


def _check_lines(field: str, lines: tuple[str, ...]) -> None:
    if len(lines) > MAX_LINES:
        raise BadValue(field, f"must have at most {MAX_LINES} lines")
    for line in lines:
        _check_text(field, line)


def _check_email(email: str | None) -> None:
    _check_text("email", email)
    if email is not None and _EMAIL.fullmatch(email) is None:
        raise BadValue("email", "must look like name@example.com")


def _check_taxes(taxes: tuple[Tax, ...]) -> None:
    if len(taxes) > MAX_TAXES:
        raise BadValue("taxes", f"must be at most {MAX_TAXES}")
    for tax in taxes:
        _check_text("taxes", tax.name)
        if _PERCENT.fullmatch(tax.rate) is None or Decimal(tax.rate) > 100:
            raise BadValue("taxes", "must have rates of 0 to 100 percent, at most four decimals")
    if len({(tax.name, tax.rate) for tax in taxes}) < len(taxes):
        raise BadValue("taxes", "must not name the same rate twice")


def checked_billing(billing: Billing) -> Billing:
    """The same. Raises: BadValue."""
    check_currency("currency", billing.currency)
    if billing.time_zone not in available_timezones():
        raise BadValue("time_zone", "must be a name of IANA such as Europe/Berlin")
    _check_taxes(billing.taxes)
    _check_text("tax_id", billing.tax_id)
    _check_text("legal_name", billing.legal_name)
    _check_lines("address", billing.address)
    _check_email(billing.email)
    if not 0 <= billing.payment_days <= MAX_PAYMENT_DAYS:
        raise BadValue("payment_days", f"must be 0 to {MAX_PAYMENT_DAYS}")
    return billing


def checked_seller(seller: Seller) -> Seller:
    """The same. Raises: BadValue."""
    if not is_name(seller.name):
        raise BadValue("name", "must have 1 to 200 printable characters")
    _check_lines("address", seller.address)
    _check_lines("bank", seller.bank)
    _check_text("tax_id", seller.tax_id)
    _check_text("footer", seller.footer)
    _check_email(seller.email)
    return seller


async def lock_account(connection: Any, account: str) -> None:
    """Take turns with all that is finalised, credited or rated anew for an account.

    Held until the transaction ends.

    Raises: AccountNotFound.
    """
    if is_name(account):
        await connection.execute("SELECT pg_advisory_xact_lock(7166411, hashtext($1))", account)
        if await connection.fetchval("SELECT true FROM accounts WHERE id = $1", account):
            return
    raise AccountNotFound(f"no account has the id {account!r}")


async def billing_of(connection: Any, account: str) -> tuple[str, Billing]:
    """An account's name and how it is billed.

    Raises: AccountNotFound.
    """
    row = None
    if is_name(account):
        row = await connection.fetchrow(
            f"SELECT a.name, b.account AS set, {', '.join(f'b.{name}' for name in BILLING_FIELDS)}"
            " FROM accounts a LEFT JOIN account_billing b ON b.account = a.id WHERE a.id = $1",
            account,
        )
    if row is None:
        raise AccountNotFound(f"no account has the id {account!r}")
    return row["name"], Billing() if row["set"] is None else _billing(row)


def _billing(row: Any) -> Billing:
    values = {name: row[name] for name in BILLING_FIELDS}
    values["taxes"] = msgspec.json.decode(row["taxes"], type=tuple[Tax, ...])
    values["address"] = tuple(row["address"])
    return Billing(**values)


async def seller_of(connection: Any) -> Seller | None:
    """Who writes the invoices; None while nobody said."""
    row = await connection.fetchrow(f"SELECT {', '.join(SELLER_FIELDS)} FROM seller")
    if row is None:
        return None
    values = {name: row[name] for name in SELLER_FIELDS}
    return Seller(**{**values, "address": tuple(row["address"]), "bank": tuple(row["bank"])})


class BillingStore:
    """The tables of billing settings."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def get(self, account: str) -> Billing:
        """How an account is billed; defaults where nothing was set.

        Raises: AccountNotFound.
        """
        return (await billing_of(self._pool, account))[1]

    async def update(self, account: str, changes: BillingChanges) -> Billing:
        """Change how an account is billed.

        Raises: AccountNotFound; BadValue, also for another currency or time zone than that of
        what was invoiced.
        """
        given = {
            name: value for name in BILLING_FIELDS if (value := getattr(changes, name)) is not UNSET
        }
        async with self._pool.acquire() as connection, connection.transaction():
            await lock_account(connection, account)
            _, before = await billing_of(connection, account)
            after = checked_billing(msgspec.structs.replace(before, **given))
            for field in ("currency", "time_zone"):
                if getattr(after, field) != getattr(before, field):
                    await _check_free(connection, account, field)
            await connection.execute(_UPSERT_BILLING, account, *_columns(after, BILLING_FIELDS))
        return after

    async def seller(self) -> Seller | None:
        """Who writes the invoices; None while nobody said."""
        return await seller_of(self._pool)

    async def set_seller(self, seller: Seller) -> Seller:
        """Say who writes the invoices: those finalised from now on.

        Raises: BadValue.
        """
        checked_seller(seller)
        await self._pool.execute(_UPSERT_SELLER, *_columns(seller, SELLER_FIELDS))
        return seller


async def _check_free(connection: Any, account: str, field: str) -> None:
    if await connection.fetchval(
        "SELECT EXISTS (SELECT FROM invoices WHERE account = $1)"
        " OR EXISTS (SELECT FROM adjustments WHERE account = $1)",
        account,
    ):
        raise BadValue(field, "cannot change: something of the account was invoiced or re-rated")


def _columns(record: Billing | Seller, fields: tuple[str, ...]) -> list[Any]:
    values = {name: getattr(record, name) for name in fields}
    if "taxes" in values:
        values["taxes"] = msgspec.json.encode(values["taxes"]).decode()
    return [list(value) if isinstance(value, tuple) else value for value in values.values()]


def _upsert(table: str, key: str, fields: tuple[str, ...], first: str) -> str:
    shift = 1 if first.startswith("$") else 0
    marks = ", ".join(f"${i + 1 + shift}" for i in range(len(fields)))
    return (
        f"INSERT INTO {table} ({key}, {', '.join(fields)}) VALUES ({first}, {marks})"
        f" ON CONFLICT ({key}) DO UPDATE SET"
        f" {', '.join(f'{name} = EXCLUDED.{name}' for name in fields)}, updated_at = now()"
    )


_UPSERT_BILLING = _upsert("account_billing", "account", BILLING_FIELDS, "$1")
_UPSERT_SELLER = _upsert("seller", "one", SELLER_FIELDS, "true")

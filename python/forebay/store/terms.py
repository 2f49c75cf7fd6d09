"""What was agreed with an account beyond prices: allowances, discounts, fees."""

import re
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forebay.store.billing import lock_account
from forebay.store.errors import AccountNotFound, BadValue, TermNotFound
from forebay.store.limits import check_name, is_name

if TYPE_CHECKING:
    from forebay.store.database import Database

MAX_TOKENS = 10**15
FIRST_YEAR, LAST_YEAR = 2000, 9998
"""Of what is billed; in every time zone the years before and after are years too."""
TermKind = Literal["free_tokens", "free_money", "discount", "fee"]
TokenKind = Literal["input", "cached", "cache_write", "output", "reasoning"]
TOKEN_KINDS: tuple[TokenKind, ...] = ("input", "cached", "cache_write", "output", "reasoning")
MONEY = r"^[0-9]{1,12}(\.[0-9]{1,6})?$"
Money = Annotated[
    str, Meta(pattern=MONEY, description="Money in the account's currency, a decimal number.")
]
_NEEDS = {"free_tokens": "tokens", "free_money": "amount", "fee": "amount", "discount": "percent"}
_MAY: dict[str, set[str]] = {
    "free_tokens": {"tokens", "model", "token_kind"},
    "free_money": {"amount"},
    "fee": {"amount"},
    "discount": {"percent", "model", "above"},
}


class NewTerm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is agreed.

    free_tokens: so many `tokens` a month cost nothing, of a `model` and a `token_kind` or of all.
    free_money: usage of so much money a month costs nothing. discount: `percent` off the month's
    usage, of a `model` or all, of what is `above` an amount only; several add up. fee: `amount` a
    month, for the seconds that it holds.
    starts, ends: days of the account's, YYYY-MM-DD; it holds no more on `ends`. All but fees hold
    for whole months.
    """

    kind: TermKind
    description: str
    starts: date
    ends: date | None = None
    model: str | None = None
    token_kind: TokenKind | None = None
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    amount: Money | None = None
    percent: Annotated[str, Meta(pattern=r"^[0-9]{1,3}(\.[0-9]{1,4})?$")] | None = None
    above: Money | None = None


class Term(NewTerm, frozen=True, kw_only=True):
    """A term of an account."""

    id: int
    account: str


class TermEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ends: the first day on which the term holds no more."""

    ends: date


FIELDS = NewTerm.__struct_fields__
_DECIMALS = ("amount", "percent", "above")
Terms = list[Term]
"""Named, because `TermStore.list` hides the type's name inside the class."""


def checked_term(term: NewTerm) -> NewTerm:
    """The same. Raises: BadValue."""
    if term.kind not in _NEEDS:
        raise BadValue("kind", f"must be one of {', '.join(_NEEDS)}")
    check_name("description", term.description)
    needed = _NEEDS[term.kind]
    if getattr(term, needed) is None:
        raise BadValue(needed, f"is needed for {term.kind}")
    for field in ("model", "token_kind", "tokens", *_DECIMALS):
        if getattr(term, field) is not None and field not in _MAY[term.kind]:
            raise BadValue(field, f"does not go with {term.kind}")
    if term.model is not None:
        check_name("model", term.model)
    if term.token_kind is not None and term.token_kind not in TOKEN_KINDS:
        raise BadValue("token_kind", f"must be one of {', '.join(TOKEN_KINDS)}")
    if term.tokens is not None and not 1 <= term.tokens <= MAX_TOKENS:
        raise BadValue("tokens", f"must be 1 to {MAX_TOKENS}")
    for field in ("amount", "above"):
        _check_number(field, getattr(term, field), MONEY, zero=field == "above")
    _check_number("percent", term.percent, r"^[0-9]{1,3}(\.[0-9]{1,4})?$", most=100)
    _check_days(term.kind, term.starts, term.ends)
    return term


def _check_number(
    field: str, text: str | None, pattern: str, *, zero: bool = False, most: int | None = None
) -> None:
    if text is None:
        return
    if re.fullmatch(pattern, text) is None:
        raise BadValue(field, "must be a decimal number such as 12.50")
    number = Decimal(text)
    if number == 0 and not zero:
        raise BadValue(field, "must be above 0")
    if most is not None and number > most:
        raise BadValue(field, f"must be at most {most}")


def _check_days(kind: str, starts: date, ends: date | None) -> None:
    for field, day in (("starts", starts), ("ends", ends)):
        if day is not None and not FIRST_YEAR <= day.year <= LAST_YEAR:
            raise BadValue(field, f"must be in the years {FIRST_YEAR} to {LAST_YEAR}")
        if day is not None and kind != "fee" and day.day != 1:
            raise BadValue(field, "must be the first of a month: only fees hold for parts of one")
    if ends is not None and ends <= starts:
        raise BadValue("ends", "must be after starts")


def _term(row: Any) -> Term:
    values = {name: row[name] for name in ("id", "account", *FIELDS)}
    for name in _DECIMALS:
        if values[name] is not None:
            values[name] = plain_decimal(values[name])
    return Term(**values)


def plain_decimal(value: Decimal) -> str:
    """A decimal without needless zeros: ``12.5``, ``0.1``, ``300``."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


async def terms_of(connection: Any, account: str, first: date, last: date) -> Terms:
    """An account's terms that hold on some day from `first` to before `last`, by id."""
    rows = await connection.fetch(
        f"{_SELECT} WHERE account = $1 AND starts < $3 AND (ends IS NULL OR ends > $2) ORDER BY id",
        account,
        first,
        last,
    )
    return [_term(row) for row in rows]


_SELECT = f"SELECT id, account, {', '.join(FIELDS)} FROM terms"


async def _check_open(connection: Any, account: str, field: str, day: date) -> None:
    last = await connection.fetchval(
        "SELECT max(month) FROM invoices WHERE account = $1 AND refers IS NULL", account
    )
    if last is not None and f"{day:%Y-%m}" <= last:
        raise BadValue(field, f"must be after {last}, which is invoiced already")


class TermStore:
    """The table of terms."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def list(self, account: str | None = None) -> Terms:
        """All terms, or an account's.

        Raises: AccountNotFound.
        """
        if account is not None:
            await self._check_account(account)
        rows = await self._pool.fetch(
            f"{_SELECT} WHERE $1::text IS NULL OR account = $1 ORDER BY account, id", account
        )
        return [_term(row) for row in rows]

    async def add(self, account: str, term: NewTerm) -> Term:
        """Agree on a term.

        Raises: AccountNotFound; BadValue, also for a month that is invoiced already.
        """
        checked_term(term)
        values = {name: getattr(term, name) for name in FIELDS}
        for name in _DECIMALS:
            if values[name] is not None:
                values[name] = Decimal(values[name])
        async with self._pool.acquire() as connection, connection.transaction():
            await lock_account(connection, account)
            await _check_open(connection, account, "starts", term.starts)
            row = await connection.fetchrow(
                f"INSERT INTO terms (account, {', '.join(FIELDS)})"
                f" VALUES ($1, {', '.join(f'${i + 2}' for i in range(len(FIELDS)))})"
                f" RETURNING id, account, {', '.join(FIELDS)}",
                account,
                *values.values(),
            )
        return _term(row)

    async def end(self, term: int, ends: date) -> Term:
        """Let a term hold until before a day.

        Raises: TermNotFound; BadValue on a day that is not after its start, of a month that is
        invoiced already, or for a term that has ended before.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            account = await connection.fetchval("SELECT account FROM terms WHERE id = $1", term)
            if account is None:
                raise TermNotFound(f"no term has the id {term}")
            await lock_account(connection, account)
            row = await connection.fetchrow(f"{_SELECT} WHERE id = $1", term)
            assert row is not None  # Terms are ended, never deleted.
            _check_days(row["kind"], row["starts"], ends)
            await _check_open(connection, row["account"], "ends", ends)
            if row["ends"] is not None and row["ends"] <= ends:
                raise BadValue("ends", f"must be before the end it has, {row['ends']}")
            await connection.execute("UPDATE terms SET ends = $2 WHERE id = $1", term, ends)
            return _term(await connection.fetchrow(f"{_SELECT} WHERE id = $1", term))

    async def _check_account(self, account: str) -> None:
        if not is_name(account) or not await self._pool.fetchval(
            "SELECT true FROM accounts WHERE id = $1", account
        ):
            raise AccountNotFound(f"no account has the id {account!r}")

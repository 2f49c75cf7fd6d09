"""The price book: what requests cost, from when on, for whom and where."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from forebay.store.accounts import check_account_id
from forebay.store.currency import check_currency
from forebay.store.errors import BadValue, PriceNotFound
from forebay.store.limits import check_name
from forebay.store.money import from_numeric, text

if TYPE_CHECKING:
    from forebay.store.database import Database

MAX_AMOUNT = 1_000_000
"""The largest price for 10^6 tokens, for a request, or for a second."""
AMOUNTS = ("input", "cached", "cache_write", "output", "reasoning", "request", "second")
"""The fields of a price that are money, in the order of statements."""
SUBJECT = ("model", "upstream", "account")
"""The fields that say what a price is for."""

Amount = Annotated[str, Meta(description="Money, a decimal number with at most 6 places.")]
Moment = Annotated[float, Meta(description="Unix seconds.")]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(2200, 1, 1, tzinfo=UTC)
_AMOUNT = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]{1,40}))?")


class NewPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price to set.

    model: by its own name. upstream: null for wherever no price of an upstream's own holds.
    account: null for everyone without a price of their own. input, cached, cache_write, output,
    reasoning: money for 10^6 tokens; null costs what it is a part of, input or output. request:
    money for a request. second: money for a second of a request's duration. effective_from:
    null for now. effective_to: null for good.
    """

    model: str
    upstream: str | None = None
    account: str | None = None
    currency: str = "USD"
    input: Amount
    cached: Amount | None = None
    cache_write: Amount | None = None
    output: Amount
    reasoning: Amount | None = None
    request: Amount = "0"
    second: Amount = "0"
    effective_from: Moment | None = None
    effective_to: Moment | None = None


class Correction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to correct of a price; what is not given stays.

    effective_from, effective_to: the part of the price's time that was wrong; null for all of it.
    """

    currency: str | UnsetType = UNSET
    input: Amount | UnsetType = UNSET
    cached: Amount | UnsetType = UNSET
    cache_write: Amount | UnsetType = UNSET
    output: Amount | UnsetType = UNSET
    reasoning: Amount | UnsetType = UNSET
    request: Amount | UnsetType = UNSET
    second: Amount | UnsetType = UNSET
    effective_from: Moment | None = None
    effective_to: Moment | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a price, as `NewPrice` has it, completed.

    superseded_at: when it was corrected, Unix seconds; null if it never was. supersedes: the id
    of the price that this one corrects. created_by: who set it.
    """

    id: int
    model: str
    upstream: str | None
    account: str | None
    currency: str
    input: Amount
    cached: Amount
    cache_write: Amount
    output: Amount
    reasoning: Amount
    request: Amount
    second: Amount
    effective_from: Moment
    effective_to: Moment | None
    superseded_at: Moment | None
    supersedes: int | None
    created_at: Moment
    created_by: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which prices to list: those of a model, an upstream, an account; None for any.

    at: those that hold then, Unix seconds. history: past and superseded ones too.
    """

    model: str | None = None
    upstream: str | None = None
    account: str | None = None
    at: float | None = None
    history: bool = False


_COLUMNS = ", ".join((*SUBJECT, "currency", *AMOUNTS, "effective_from", "effective_to"))
_INSERT = (
    f"INSERT INTO prices ({_COLUMNS}, supersedes, created_by) VALUES"
    f" ({', '.join(f'${i + 1}' for i in range(14))},"
    " coalesce($15, nullif(current_setting('forebay.actor', true), ''), session_user))"
    " RETURNING *"
)
_TURN = "SELECT version FROM prices_version FOR UPDATE"
_OF_SUBJECT = (
    "SELECT * FROM prices WHERE superseded_at IS NULL AND model = $1"
    " AND upstream IS NOT DISTINCT FROM $2 AND account IS NOT DISTINCT FROM $3"
)
_OPEN = f"{_OF_SUBJECT} AND effective_to IS NULL AND effective_from < $4"
_OVERLAPPING = (
    f"{_OF_SUBJECT} AND tstzrange(effective_from, effective_to) && tstzrange($4, $5)"
    " ORDER BY effective_from LIMIT 1"
)
_END = "UPDATE prices SET effective_to = $2 WHERE id = $1"
ALL_PRICES = "SELECT * FROM prices WHERE superseded_at IS NULL ORDER BY id"
"""Every version that holds at some time."""


def to_price(row: Any) -> Price:
    """One row of the table."""
    values: dict[str, Any] = {name: row[name] for name in Price.__struct_fields__}
    values |= {name: text(from_numeric(row[name])) for name in AMOUNTS}
    for name in ("effective_from", "effective_to", "superseded_at", "created_at"):
        values[name] = None if row[name] is None else row[name].timestamp()
    return Price(**values)


def encode_prices(prices: Iterable[Price]) -> bytes:
    """Encode for the core: a JSON list of objects.

    Each has id, model, upstream, account, from_us and to_us (Unix microseconds), tokens' prices in
    pico-dollars a token, request in pico-dollars, second in pico-dollars a microsecond.
    """
    return msgspec.json.encode(
        [
            {
                "id": price.id,
                **{name: getattr(price, name) for name in SUBJECT},
                "from_us": _micros(price.effective_from),
                "to_us": None if price.effective_to is None else _micros(price.effective_to),
                **{
                    # 10^-6 of a currency's unit for 10^6 tokens are 10^-12 for one.
                    name: int(Decimal(getattr(price, name)).scaleb(12 if name == "request" else 6))
                    for name in AMOUNTS
                },
            }
            for price in prices
        ]
    )


Prices = list[Price]
"""Named, because `PriceStore.list` hides the type's name inside the class."""


class PriceStore:
    """The table of prices. Every change reaches watchers by NOTIFY and by version."""

    def __init__(self, database: "Database"):
        self._pool = database.pool

    async def list(
        self, select: Selection | None = None, *, after: int = 0, limit: int | None = None
    ) -> Prices:
        """Prices by id, up to `limit`, from the one after `after`.

        Without `history`, those that hold now or will; with `at`, those that hold then.

        Raises: BadValue.
        """
        select = Selection() if select is None else select
        rows = await self._pool.fetch(
            "SELECT * FROM prices WHERE id > $1 AND ($2::text IS NULL OR model = $2)"
            " AND ($3::text IS NULL OR upstream = $3) AND ($4::text IS NULL OR account = $4)"
            " AND ($5::timestamptz IS NULL OR superseded_at IS NULL AND effective_from <= $5"
            " AND (effective_to IS NULL OR $5 < effective_to))"
            " AND ($6 OR $5 IS NOT NULL OR superseded_at IS NULL"
            " AND (effective_to IS NULL OR now() < effective_to)) ORDER BY id LIMIT $7",
            after,
            select.model,
            select.upstream,
            select.account,
            None if select.at is None else _moment("at", select.at),
            select.history,
            limit,
        )
        return [to_price(row) for row in rows]

    async def get(self, price_id: int) -> Price:
        """One price by id.

        Raises: PriceNotFound.
        """
        return to_price(await _one(self._pool, price_id))

    async def set(self, new: NewPrice) -> Price:
        """Set the price of a subject from a time on; the one that holds until then ends there.

        Where the new one has an end, that other one holds again from there on.

        Raises: BadValue, also where another price begins before the new one ends.
        """
        values = _checked(new)
        async with self._pool.acquire() as connection, connection.transaction():
            return to_price(await _set(connection, values, await take_turn(connection)))

    async def import_(self, prices: Sequence[NewPrice]) -> Prices:
        """Set many prices, all or none, in the order of their times. Returns them as given.

        Raises: BadValue, its field as ``prices[2].input``, counted from 0.
        """
        done: dict[int, Price] = {}
        checked = []
        for number, new in enumerate(prices):
            with _blaming(number):
                checked.append(_checked(new))
        async with self._pool.acquire() as connection, connection.transaction():
            now = await take_turn(connection)
            order = sorted(range(len(checked)), key=lambda n: checked[n]["effective_from"] or now)
            for number in order:
                with _blaming(number):
                    done[number] = to_price(await _set(connection, checked[number], now))
        return [done[number] for number in range(len(checked))]

    async def end(self, price_id: int, at: float | None = None) -> Price:
        """End a price that holds for good, `at` a time in Unix seconds or now, with none after it.

        Raises: PriceNotFound; BadValue.
        """
        end = None if at is None else _moment("effective_to", at)
        async with self._pool.acquire() as connection, connection.transaction():
            now = await take_turn(connection)
            row = await _one(connection, price_id)
            _check_current(row)
            if row["effective_to"] is not None:
                raise BadValue("price_id", f"{price_id} ends at {_spelled(row['effective_to'])}")
            end = now if end is None else end
            if end <= row["effective_from"]:
                raise BadValue("effective_to", "must be after effective_from")
            await connection.execute(_END, price_id, end)
            return to_price(await _one(connection, price_id))

    async def correct(self, price_id: int, correction: Correction) -> Prices:
        """Put another price in the place of one, for all of its time or for a part of it.

        Returns what holds in its place, in the order of time; where a part was corrected, the rest
        goes on as a price of its own.

        Raises: PriceNotFound; BadValue.
        """
        given = {
            name: value
            for name in ("currency", *AMOUNTS)
            if (value := getattr(correction, name)) is not UNSET
        }
        async with self._pool.acquire() as connection, connection.transaction():
            now = await take_turn(connection)
            old = dict(await _one(connection, price_id))
            _check_current(old)
            new = old | {name: _value(name, value, old["account"]) for name, value in given.items()}
            if new == old:
                raise BadValue("input", "is as before, like all the others: give what changes")
            start, end = _part(old, correction)
            await connection.execute(
                "UPDATE prices SET superseded_at = $2 WHERE id = $1", price_id, now
            )
            pieces = (
                (old, old["effective_from"], start),
                (new, start, end),
                (old, end, old["effective_to"]),
            )
            return [
                to_price(
                    await insert_price(
                        connection,
                        values | {"effective_from": begins, "effective_to": ends},
                        supersedes=price_id,
                    )
                )
                for values, begins, ends in pieces
                if begins is not None and begins != ends
            ]


async def take_turn(connection: Any) -> datetime:
    """Wait for the writers before, so as to see what they have left; the time after that."""
    await connection.execute(_TURN)
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now


async def _one(connection: Any, price_id: int) -> Any:
    row = None
    if 0 < price_id < 1 << 63:
        row = await connection.fetchrow("SELECT * FROM prices WHERE id = $1", price_id)
    if row is None:
        raise PriceNotFound(f"no price has the id {price_id}")
    return row


def _check_current(row: Mapping[str, Any]) -> None:
    if row["superseded_at"] is not None:
        raise BadValue("price_id", f"{row['id']} has been corrected already")


async def _set(connection: Any, values: Mapping[str, Any], now: datetime) -> Any:
    """Set one price, in the caller's turn."""
    start, end = values["effective_from"] or now, values["effective_to"]
    if end is not None and end <= start:
        raise BadValue("effective_to", "must be after effective_from")
    subject = [values[name] for name in SUBJECT]
    held = await connection.fetchrow(_OPEN, *subject, start)
    if held is not None:
        await connection.execute(_END, held["id"], start)
    other = await connection.fetchrow(_OVERLAPPING, *subject, start, end)
    if other is not None:
        raise BadValue(
            "effective_from",
            f"overlaps price {other['id']}, which holds from {_spelled(other['effective_from'])}"
            f" until {_spelled(other['effective_to'])}: correct that one, or end this one before",
        )
    row = await insert_price(connection, {**values, "effective_from": start})
    if held is not None and end is not None:
        await insert_price(connection, dict(held) | {"effective_from": end, "effective_to": None})
    return row


async def insert_price(
    connection: Any,
    values: Mapping[str, Any],
    *,
    supersedes: int | None = None,
    created_by: str | None = None,
) -> Any:
    """Add one row, in the caller's turn; returns it.

    Raises: BadValue on an unknown account.
    """
    names = (*SUBJECT, "currency", *AMOUNTS, "effective_from", "effective_to")
    try:
        return await connection.fetchrow(
            _INSERT, *(values[name] for name in names), supersedes, created_by
        )
    except asyncpg.ForeignKeyViolationError:
        raise BadValue("account", f"is unknown: {values['account']!r}") from None


@contextlib.contextmanager
def _blaming(number: int) -> Iterator[None]:
    """Have errors name the price's place in a list."""
    try:
        yield
    except BadValue as error:
        raise BadValue(f"prices[{number}].{error.field}", error.reason) from None


def _checked(new: NewPrice) -> dict[str, Any]:
    """The columns of a new price.

    Raises: BadValue.
    """
    check_name("model", new.model)
    if new.upstream is not None:
        check_name("upstream", new.upstream)
    if new.account is not None:
        check_account_id("account", new.account)
    values: dict[str, Any] = {name: getattr(new, name) for name in SUBJECT}
    for name in ("currency", *AMOUNTS):
        given = getattr(new, name)
        values[name] = None if given is None else _value(name, given, new.account)
    for name in ("effective_from", "effective_to"):
        moment = getattr(new, name)
        values[name] = None if moment is None else _moment(name, moment)
    return values


def _value(name: str, given: str, account: str | None) -> Any:
    if name == "currency":
        check_currency("currency", given)
        if given != "USD" and account is None:
            raise BadValue("currency", "must be USD where the price is not an account's own")
        return given
    match = _AMOUNT.fullmatch(given)
    if match is None:
        raise BadValue(name, f"is no amount of money such as 0.15: {given!r}")
    sign, _, places = match.groups(default="")
    value = Decimal(given)
    if sign and value:
        raise BadValue(name, "must not be negative")
    if len(places.rstrip("0")) > 6:
        raise BadValue(name, "must not have more than 6 decimal places")
    if value > MAX_AMOUNT:
        raise BadValue(name, f"must be at most {MAX_AMOUNT}")
    return abs(value)


def _moment(field: str, unix_s: float) -> datetime:
    if not 0 <= unix_s <= _LAST.timestamp():
        raise BadValue(field, "must be a time from 1970 to 2199, in Unix seconds")
    return _EPOCH + timedelta(microseconds=_micros(unix_s))


def _micros(unix_s: float) -> int:
    # Exact: up to the year 2200 a float tells microseconds apart.
    return round(unix_s * 1e6)


def _part(old: Mapping[str, Any], correction: Correction) -> tuple[datetime, datetime | None]:
    start, end = old["effective_from"], old["effective_to"]
    if correction.effective_from is not None:
        start = _moment("effective_from", correction.effective_from)
    if correction.effective_to is not None:
        end = _moment("effective_to", correction.effective_to)
    if start < old["effective_from"]:
        raise BadValue(
            "effective_from", f"is before the price's own, {_spelled(old['effective_from'])}"
        )
    if old["effective_to"] is not None and (end is None or end > old["effective_to"]):
        raise BadValue("effective_to", f"is after the price's own, {_spelled(old['effective_to'])}")
    if end is not None and end <= start:
        raise BadValue("effective_to", "must be after effective_from")
    return start, end


def _spelled(moment: datetime | None) -> str:
    return "further notice" if moment is None else moment.isoformat()

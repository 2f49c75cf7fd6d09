"""The price book: what requests cost, from when on, for whom and where."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg
from msgspec import UNSET

from forebay.store.errors import BadValue, PriceNotFound
from forebay.store.limits import check_name
from forebay.store.price_records import (
    AMOUNTS,
    SUBJECT,
    Correction,
    NewPrice,
    Price,
    Selection,
    checked_moment,
    checked_price,
    checked_value,
    spelled,
    to_price,
)

if TYPE_CHECKING:
    from forebay.store.database import Database

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
        for name in SUBJECT:
            if (given := getattr(select, name)) is not None:
                check_name(name, given)
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
            None if select.at is None else checked_moment("at", select.at),
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
        values = checked_price(new)
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
                checked.append(checked_price(new))
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
        end = None if at is None else checked_moment("effective_to", at)
        async with self._pool.acquire() as connection, connection.transaction():
            now = await take_turn(connection)
            row = await _one(connection, price_id)
            _check_current(row)
            if row["effective_to"] is not None:
                raise BadValue("price_id", f"{price_id} ends at {spelled(row['effective_to'])}")
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
            new = old | {
                name: checked_value(name, value, old["account"]) for name, value in given.items()
            }
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
            f"overlaps price {other['id']}, which holds from {spelled(other['effective_from'])}"
            f" until {spelled(other['effective_to'])}: correct that one, or end this one before",
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


def _part(old: Mapping[str, Any], correction: Correction) -> tuple[datetime, datetime | None]:
    start, end = old["effective_from"], old["effective_to"]
    if correction.effective_from is not None:
        start = checked_moment("effective_from", correction.effective_from)
    if correction.effective_to is not None:
        end = checked_moment("effective_to", correction.effective_to)
    if start < old["effective_from"]:
        raise BadValue(
            "effective_from", f"is before the price's own, {spelled(old['effective_from'])}"
        )
    if old["effective_to"] is not None and (end is None or end > old["effective_to"]):
        raise BadValue("effective_to", f"is after the price's own, {spelled(old['effective_to'])}")
    if end is not None and end <= start:
        raise BadValue("effective_to", "must be after effective_from")
    return start, end

"""Prices of the configuration: they begin the book, and then the book is the truth."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from forebay.config.schema import Price as Configured
from forebay.store.money import from_numeric, text
from forebay.store.price_records import AMOUNTS
from forebay.store.prices import insert_price, take_turn

if TYPE_CHECKING:
    from forebay.store.database import Database

CREATED_BY = "config"
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_HELD = (
    "SELECT DISTINCT ON (model) * FROM prices WHERE model = ANY ($1)"
    " AND upstream IS NULL AND account IS NULL"
    # What holds now goes first, then whatever there is.
    " ORDER BY model, superseded_at IS NOT NULL,"
    " tstzrange(effective_from, effective_to) @> now() DESC, id DESC"
)


class Difference(NamedTuple):
    """A model whose price is another one in the book: the amounts that differ, as text."""

    model: str
    price_id: int
    configured: dict[str, str]
    book: dict[str, str]


async def seed_prices(
    database: "Database", configured: Mapping[str, Configured]
) -> list[Difference]:
    """Give each model that has no price of its own in the book the one of the configuration.

    It holds from 1970 on, for everyone, wherever the model is served.

    Returns where the book has another price than the configuration.
    """
    if not configured:
        return []
    wanted = {model: _amounts(price) for model, price in configured.items()}
    held = await _held(database.pool, list(wanted))
    if len(held) < len(wanted):
        async with database.pool.acquire() as connection, connection.transaction():
            # Others may start at the same time.
            await take_turn(connection)
            held = await _held(connection, list(wanted))
            for model in wanted.keys() - held.keys():
                held[model] = await insert_price(
                    connection,
                    {
                        "model": model,
                        "upstream": None,
                        "account": None,
                        "currency": "USD",
                        **wanted[model],
                        "effective_from": _BEGINNING,
                        "effective_to": None,
                    },
                    created_by=CREATED_BY,
                )
    return [
        difference
        for model, amounts in wanted.items()
        if (difference := _difference(model, amounts, held[model])).book
    ]


async def _held(connection: Any, models: list[str]) -> dict[str, Any]:
    return {row["model"]: row for row in await connection.fetch(_HELD, models)}


def _amounts(price: Configured) -> dict[str, Decimal]:
    cached = price.input if price.cached is None else price.cached
    return {
        "input": price.input,
        "cached": cached,
        "cache_write": price.input,
        "output": price.output,
        "reasoning": price.output,
        "request": Decimal(0),
        "second": Decimal(0),
    }


def _difference(model: str, amounts: dict[str, Decimal], row: Any) -> Difference:
    names = [name for name in AMOUNTS if amounts[name] != row[name]]
    return Difference(
        model,
        row["id"],
        {name: text(from_numeric(amounts[name])) for name in names},
        {name: text(from_numeric(row[name])) for name in names},
    )

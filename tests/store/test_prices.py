"""The price book in the database: one price at a time, and every price kept."""

import asyncio
import itertools
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from forebay.config import Price as Configured
from forebay.store import (
    AccountStore,
    BadValue,
    Correction,
    Database,
    NewPrice,
    Price,
    PriceNotFound,
    PriceStore,
    Selection,
    seed_prices,
)


def at(*date: int) -> float:
    """Midnight of a day, UTC."""
    return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]


JAN, FEB, MAR, APR = at(2026, 1, 1), at(2026, 2, 1), at(2026, 3, 1), at(2026, 4, 1)


def price(**fields: Any) -> NewPrice:
    return NewPrice(**{"model": "m", "input": "1", "output": "2", "effective_from": JAN, **fields})


async def refused(work: Any) -> tuple[str, str]:
    with pytest.raises(BadValue) as caught:
        await work
    return caught.value.field, caught.value.reason


async def times(store: PriceStore) -> list[tuple[str, float, float | None]]:
    """Input, beginning and end of all that is not superseded, by time."""
    found = await store.list(Selection(history=True))
    kept = [p for p in found if p.superseded_at is None]
    return sorted(((p.input, p.effective_from, p.effective_to) for p in kept), key=lambda p: p[1])


async def test_a_price_is_stored_complete(database: Database) -> None:
    await AccountStore(database).create("acme")
    store = PriceStore(database)
    made = await store.set(
        price(account="acme", upstream="gpu", currency="EUR", request="0.0001", second="0.000001")
    )
    assert made == await store.get(made.id)
    assert made == (await store.list())[0]
    assert (made.model, made.upstream, made.account, made.currency) == ("m", "gpu", "acme", "EUR")
    assert (made.input, made.cached, made.cache_write) == ("1.00", "1.00", "1.00")
    assert (made.output, made.reasoning) == ("2.00", "2.00")
    assert (made.request, made.second) == ("0.0001", "0.000001")
    assert (made.effective_from, made.effective_to) == (JAN, None)
    assert (made.supersedes, made.superseded_at) == (None, None)
    assert made.created_by
    full = await store.set(price(model="n", cached="0", cache_write="1.25", reasoning="3.999999"))
    assert (full.cached, full.cache_write, full.reasoning) == ("0.00", "1.25", "3.999999")


async def test_the_default_time_is_now(database: Database) -> None:
    before = datetime.now(UTC).timestamp()
    made = await PriceStore(database).set(price(effective_from=None))
    assert before - 1 < made.effective_from < before + 5


async def test_a_later_price_ends_the_one_before(database: Database) -> None:
    store = PriceStore(database)
    first = await store.set(price())
    second = await store.set(price(input="3", effective_from=MAR))
    assert (await store.get(first.id)).effective_to == MAR
    assert [p.id for p in await store.list()] == [second.id], "what is past is not listed"
    assert len(await store.list(Selection(history=True))) == 2
    assert [p.id for p in await store.list(Selection(at=FEB))] == [first.id]
    assert [p.id for p in await store.list(Selection(at=MAR))] == [second.id]
    assert await store.list(Selection(at=JAN - 1)) == []
    # Other subjects are not touched.
    await store.set(price(upstream="gpu", effective_from=APR))
    assert await times(store) == [("1.00", JAN, MAR), ("3.00", MAR, None), ("1.00", APR, None)]


async def test_after_a_price_with_an_end_the_one_before_holds_again(database: Database) -> None:
    store = PriceStore(database)
    await store.set(price())
    await store.set(price(input="0.5", effective_from=FEB, effective_to=MAR))
    assert await times(store) == [("1.00", JAN, FEB), ("0.50", FEB, MAR), ("1.00", MAR, None)]


async def test_prices_do_not_overlap(database: Database) -> None:
    store = PriceStore(database)
    first = await store.set(price(effective_from=FEB, effective_to=MAR))
    later = await store.set(price(input="9", effective_from=APR))
    for start, end, other in (
        (JAN, None, first),
        (FEB, None, first),
        (JAN, MAR, first),
        (at(2026, 2, 10), at(2026, 2, 20), first),
        (MAR, None, later),
        (APR, None, later),
        (APR, at(2026, 5, 1), later),
    ):
        new = price(effective_from=start, effective_to=end)
        field, reason = await refused(store.set(new))
        assert field == "effective_from"
        assert f"overlaps price {other.id}," in reason
    await store.set(price(effective_from=JAN, effective_to=FEB))
    await store.set(price(effective_from=MAR, effective_to=APR))
    assert [entry[1] for entry in await times(store)] == [JAN, FEB, MAR, APR]


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"input": "-1"}, "input", "must not be negative"),
        ({"output": "0.0000001"}, "output", "must not have more than 6 decimal places"),
        ({"cached": "1000000.000001"}, "cached", "must be at most 1000000"),
        ({"cache_write": "1e3"}, "cache_write", "is no amount of money such as 0.15: '1e3'"),
        ({"reasoning": "NaN"}, "reasoning", "is no amount of money such as 0.15: 'NaN'"),
        ({"request": ""}, "request", "is no amount of money such as 0.15: ''"),
        ({"second": "\u0661"}, "second", "is no amount of money such as 0.15: '\u0661'"),
        ({"model": ""}, "model", "must have 1 to 200 printable characters"),
        ({"upstream": "\n"}, "upstream", "must have 1 to 200 printable characters"),
        ({"account": "a/b"}, "account", "must not contain /"),
        ({"account": "nobody"}, "account", "is unknown: 'nobody'"),
        (
            {"currency": "XXZ", "account": "acme"},
            "currency",
            "must be a currency of ISO 4217 such as USD",
        ),
        (
            {"currency": "EUR"},
            "currency",
            "must be USD where the price is not an account's own",
        ),
        ({"effective_to": JAN}, "effective_to", "must be after effective_from"),
        ({"effective_to": JAN - 1}, "effective_to", "must be after effective_from"),
        (
            {"effective_from": -1.0},
            "effective_from",
            "must be a time from 1970 to 2199, in Unix seconds",
        ),
        (
            {"effective_to": 1e12},
            "effective_to",
            "must be a time from 1970 to 2199, in Unix seconds",
        ),
    ],
)
async def test_what_is_refused(
    database: Database, fields: dict[str, Any], field: str, reason: str
) -> None:
    await AccountStore(database).create("acme")
    store = PriceStore(database)
    assert await refused(store.set(price(**fields))) == (field, reason)
    many = [price(model="fine"), price(**fields)]
    assert await refused(store.import_(many)) == (f"prices[1].{field}", reason)
    assert await store.list(Selection(history=True)) == []


async def test_trailing_zeros_and_a_negative_zero_are_fine(database: Database) -> None:
    made = await PriceStore(database).set(price(input="1.500000000", output="-0"))
    assert (made.input, made.output) == ("1.50", "0.00")


async def test_many_at_once_in_the_order_of_their_times(database: Database) -> None:
    store = PriceStore(database)
    given = [
        price(input="3", effective_from=MAR),
        price(input="1"),
        price(input="2", effective_from=FEB),
        price(model="n"),
    ]
    done = await store.import_(given)
    assert [p.input for p in done] == ["3.00", "1.00", "2.00", "1.00"]
    assert [entry for entry in await times(store) if entry[0] != "1.00" or entry[2]] == [
        ("1.00", JAN, FEB),
        ("2.00", FEB, MAR),
        ("3.00", MAR, None),
    ]
    # One that overlaps takes all others with it.
    field, _ = await refused(store.import_([price(model="o"), price(model="n")]))
    assert field == "prices[1].effective_from"
    assert await store.list(Selection(model="o", history=True)) == []


async def test_a_correction_of_all_of_a_price(database: Database) -> None:
    store = PriceStore(database)
    wrong = await store.set(price(input="10", cached="5"))
    await store.set(price(effective_from=MAR))
    (right,) = await store.correct(wrong.id, Correction(input="1.5"))
    assert (right.supersedes, right.input, right.cached) == (wrong.id, "1.50", "5.00")
    assert (right.effective_from, right.effective_to) == (JAN, MAR)
    old = await store.get(wrong.id)
    assert old.superseded_at is not None
    assert (old.input, old.effective_to) == ("10.00", MAR), "it stays as it was"
    assert await refused(store.correct(wrong.id, Correction(input="2"))) == (
        "price_id",
        f"{wrong.id} has been corrected already",
    )
    # And what corrects may be corrected.
    (again,) = await store.correct(right.id, Correction(output="7"))
    assert (again.input, again.output) == ("1.50", "7.00")


async def test_a_correction_of_a_part(database: Database) -> None:
    store = PriceStore(database)
    wrong = await store.set(price(input="10"))
    pieces = await store.correct(
        wrong.id, Correction(input="1", effective_from=FEB, effective_to=MAR)
    )
    assert [(p.input, p.effective_from, p.effective_to) for p in pieces] == [
        ("10.00", JAN, FEB),
        ("1.00", FEB, MAR),
        ("10.00", MAR, None),
    ]
    assert {p.supersedes for p in pieces} == {wrong.id}
    assert [p.id for p in await store.list(Selection(at=FEB))] == [pieces[1].id]
    head, tail = await store.correct(pieces[2].id, Correction(input="2", effective_from=APR))
    assert (head.effective_to, tail.effective_from, tail.effective_to) == (APR, APR, None)


async def test_corrections_that_are_refused(database: Database) -> None:
    store = PriceStore(database)
    made = await store.set(price(effective_from=FEB))
    await store.set(price(effective_from=MAR))
    for correction, field, reason in (
        (Correction(), "input", "is as before, like all the others: give what changes"),
        (Correction(input="1.0"), "input", "is as before, like all the others: give what changes"),
        (Correction(input="-2"), "input", "must not be negative"),
        (
            Correction(input="2", effective_from=JAN),
            "effective_from",
            "is before the price's own, 2026-02-01T00:00:00+00:00",
        ),
        (
            Correction(input="2", effective_to=APR),
            "effective_to",
            "is after the price's own, 2026-03-01T00:00:00+00:00",
        ),
        (
            Correction(input="2", effective_from=MAR),
            "effective_to",
            "must be after effective_from",
        ),
    ):
        assert await refused(store.correct(made.id, correction)) == (field, reason)
    for unknown in (0, -1, 999, 1 << 70):
        with pytest.raises(PriceNotFound, match=f"no price has the id {unknown}"):
            await store.correct(unknown, Correction(input="2"))
        with pytest.raises(PriceNotFound):
            await store.get(unknown)
    assert (await store.get(made.id)).superseded_at is None


async def test_a_price_is_ended(database: Database) -> None:
    store = PriceStore(database)
    made = await store.set(price())
    assert await refused(store.end(made.id, JAN)) == (
        "effective_to",
        "must be after effective_from",
    )
    ended = await store.end(made.id, MAR)
    assert (ended.id, ended.effective_to) == (made.id, MAR)
    assert await store.list(Selection(at=MAR)) == []
    assert await refused(store.end(made.id)) == (
        "price_id",
        f"{made.id} ends at 2026-03-01T00:00:00+00:00",
    )
    later = await store.set(price(effective_from=APR))
    (right,) = await store.correct(later.id, Correction(input="3"))
    assert (await refused(store.end(later.id)))[0] == "price_id"
    now = datetime.now(UTC).timestamp()
    assert (await store.end(right.id)).effective_to == pytest.approx(now, abs=60)
    with pytest.raises(PriceNotFound):
        await store.end(999)


async def test_the_database_keeps_every_row_and_lets_none_overlap(database: Database) -> None:
    made = await PriceStore(database).set(price())
    for statement in (
        "UPDATE prices SET input = 9",
        "UPDATE prices SET effective_from = effective_from + interval '1 s'",
        "DELETE FROM prices",
    ):
        with pytest.raises(asyncpg.RaiseError, match=f"price {made.id} stays as it is"):
            await database.pool.execute(statement)
    await database.pool.execute("UPDATE prices SET effective_to = '2026-03-01Z'")
    with pytest.raises(asyncpg.RaiseError):
        await database.pool.execute("UPDATE prices SET effective_to = '2026-04-01Z'")
    insert = (
        "INSERT INTO prices (model, input, output, effective_from) VALUES ('m', 1, 2, $1::text::"
        "timestamptz) RETURNING cached = 1 AND cache_write = 1 AND reasoning = 2"
    )
    with pytest.raises(asyncpg.ExclusionViolationError):
        await database.pool.fetchval(insert, "2026-02-28Z")
    assert await database.pool.fetchval(insert, "2026-03-01Z")
    for bad in ("'-0.1'", "'NaN'", "1000000.1"):
        with pytest.raises(asyncpg.CheckViolationError):
            await database.pool.execute(
                "INSERT INTO prices (model, input, output, effective_from)"
                f" VALUES ('other', {bad}, 1, now())"
            )


async def test_who_set_it_is_kept(database: Database) -> None:
    async with database.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT set_config('forebay.actor', 'key:abc', true)")
        who = await connection.fetchval(
            "INSERT INTO prices (model, input, output, effective_from) VALUES ('m', 1, 2, now())"
            " RETURNING created_by"
        )
    assert who == "key:abc"


async def test_writers_at_once_leave_one_line_of_prices(database: Database) -> None:
    store = PriceStore(database)
    await asyncio.gather(*(store.set(price(input=str(n), effective_from=None)) for n in range(20)))
    found = await store.list(Selection(history=True))
    assert len(found) == 20
    line = sorted(found, key=lambda p: p.effective_from)
    for before, after in itertools.pairwise(line):
        assert before.effective_to == after.effective_from
    assert line[-1].effective_to is None


async def test_listing_by_subject_and_in_pages(database: Database) -> None:
    await AccountStore(database).create("acme")
    store = PriceStore(database)
    await store.import_(
        [
            price(),
            price(upstream="gpu"),
            price(account="acme"),
            price(account="acme", upstream="gpu"),
            price(model="n"),
        ]
    )
    assert len(await store.list(Selection(model="m"))) == 4
    assert len(await store.list(Selection(account="acme"))) == 2
    assert len(await store.list(Selection(upstream="gpu"))) == 2
    assert len(await store.list(Selection(model="m", account="acme", upstream="gpu"))) == 1
    pages: list[list[Price]] = [await store.list(limit=2)]
    while pages[-1]:
        pages.append(await store.list(after=pages[-1][-1].id, limit=2))
    assert [len(page) for page in pages] == [2, 2, 1, 0]


def configured(**fields: str) -> Configured:
    return Configured(**{name: Decimal(value) for name, value in fields.items()})


async def test_the_configuration_begins_the_book(database: Database) -> None:
    store = PriceStore(database)
    await store.set(price(model="known", input="0.2"))
    prices = {
        "new": configured(input="0.15", output="0.6", cached="0.075"),
        "known": configured(input="0.15", output="2"),
    }
    (difference,) = await seed_prices(database, prices)
    (made,) = await store.list(Selection(model="new"))
    assert (made.input, made.cached, made.cache_write) == ("0.15", "0.075", "0.15")
    assert (made.output, made.reasoning, made.request) == ("0.60", "0.60", "0.00")
    assert (made.effective_from, made.created_by) == (0.0, "config")
    assert difference.model == "known"
    assert difference.configured == {"input": "0.15", "cached": "0.15", "cache_write": "0.15"}
    assert difference.book == {"input": "0.20", "cached": "0.20", "cache_write": "0.20"}
    (kept,) = await store.list(Selection(model="known"))
    assert (kept.id, kept.input) == (difference.price_id, "0.20"), "the book is the truth"
    # The next start finds what the last one has left.
    assert await seed_prices(database, prices) == [difference]
    assert len(await store.list(Selection(history=True))) == 2
    # A later price is compared with, not the first one.
    await store.set(price(model="new", input="7", effective_from=None))
    assert [d.model for d in await seed_prices(database, prices)] == ["new", "known"]
    assert await seed_prices(database, {}) == []


async def test_a_price_of_an_account_is_none_of_the_model(database: Database) -> None:
    await AccountStore(database).create("acme")
    store = PriceStore(database)
    await store.set(price(account="acme"))
    assert await seed_prices(database, {"m": configured(input="1", output="2")}) == []
    assert len(await store.list(Selection(model="m"))) == 2


async def test_starts_at_once_make_one_price(database: Database) -> None:
    prices = {f"m{n}": configured(input="1", output="2") for n in range(5)}
    assert await asyncio.gather(*(seed_prices(database, prices) for _ in range(6))) == [[]] * 6
    assert len(await PriceStore(database).list()) == 5

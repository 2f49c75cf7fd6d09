"""Two who rate a request, the core and SQL, agree to the last pico-dollar."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
from forebay._core import PriceBook
from forebay.store import (
    AccountStore,
    BadValue,
    Database,
    NewPrice,
    PriceStore,
    Selection,
    encode_prices,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.databases import run_apart

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PICO = (1 << 63) - 1
ACCOUNTS, UPSTREAMS = (None, "acme", "other"), (None, "gpu", "cpu")
COUNTS = ("prompt", "cached", "cache_write", "completion", "reasoning", "duration_us")
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

amounts = st.one_of(
    st.sampled_from(["0", "0.000001", "0.15", "1000000", "999999.999999"]),
    st.integers(0, 10**12).map(lambda micro: f"{Decimal(micro).scaleb(-6):f}"),
)
tokens = st.one_of(st.integers(0, 1000), st.integers(0, (1 << 40) - 1))
usages = st.fixed_dictionaries(
    {
        "prompt": tokens,
        "cached": tokens,
        "cache_write": tokens,
        "completion": tokens,
        "reasoning": tokens,
        "duration_us": st.integers(0, 10**11),
    }
)
seconds = st.integers(0, 100).map(float)
prices = st.builds(
    NewPrice,
    model=st.just("m"),
    upstream=st.sampled_from(UPSTREAMS),
    account=st.sampled_from(ACCOUNTS[:2]),
    input=amounts,
    cached=st.none() | amounts,
    cache_write=st.none() | amounts,
    output=amounts,
    reasoning=st.none() | amounts,
    request=amounts,
    second=amounts,
    effective_from=seconds,
    effective_to=st.none() | seconds,
)


async def truncate(database: Database) -> None:
    # Triggers keep prices and invoices from being emptied like this.
    await database.pool.execute(
        "SET session_replication_role = replica; TRUNCATE prices CASCADE;"
        " SET session_replication_role = origin"
    )


async def cost_by_sql(connection: Any, price_id: int, usage: dict[str, int]) -> Decimal:
    cost: Decimal = await connection.fetchval(
        "SELECT price_cost(p, $2, $3, $4, $5, $6, $7) FROM prices p WHERE id = $1",
        price_id,
        *(usage[name] for name in COUNTS),
    )
    return cost


@QUICK
@given(price=prices, usages=st.lists(usages, min_size=1, max_size=20))
def test_costs_agree(database_url: str, price: NewPrice, usages: list[dict[str, int]]) -> None:
    async def run() -> None:
        async with await Database.connect(database_url, max_size=1) as database:
            await truncate(database)
            always = NewPrice(
                **{name: getattr(price, name) for name in price.__struct_fields__}
                | {"account": None, "effective_from": 0.0, "effective_to": None}
            )
            made = await PriceStore(database).set(always)
            book = PriceBook(encode_prices([made]))
            for usage in usages:
                by_sql = await cost_by_sql(database.pool, made.id, usage)
                rated = book.rate("m", "acme", made.upstream or "gpu", 0, **usage)
                assert rated is not None
                assert rated == (made.id, min(int(by_sql.scaleb(12)), MAX_PICO))
                assert by_sql == by_sql.quantize(Decimal("1e-12")), "nothing is left to round"

    run_apart(run)


@QUICK
@given(
    rows=st.lists(prices, min_size=1, max_size=12),
    asked=st.lists(
        st.tuples(
            st.sampled_from(UPSTREAMS[1:]), st.sampled_from(ACCOUNTS[1:]), st.integers(-1, 101)
        ),
        min_size=1,
        max_size=20,
    ),
)
def test_the_same_price_holds(
    database_url: str, rows: list[NewPrice], asked: list[tuple[str, str, int]]
) -> None:
    async def run() -> None:
        async with await Database.connect(database_url, max_size=1) as database:
            await truncate(database)
            await database.pool.execute(
                "INSERT INTO accounts (id, name) VALUES ('acme', '') ON CONFLICT DO NOTHING"
            )
            store = PriceStore(database)
            for row in rows:
                # Those that overlap or end before they begin are refused.
                with contextlib.suppress(BadValue):
                    await store.set(row)
            found = await store.list(Selection(history=True))
            book = PriceBook(encode_prices([p for p in found if p.superseded_at is None]))
            for upstream, account, second in asked:
                by_sql = await database.pool.fetchval(
                    "SELECT price_at('m', $1, $2, $3)",
                    upstream,
                    account,
                    EPOCH + timedelta(seconds=second),
                )
                rated = book.rate("m", account, upstream, second * 1_000_000)
                assert (None if rated is None else rated[0]) == by_sql

    run_apart(run)


async def test_times_are_told_apart_to_the_microsecond(database: Database) -> None:
    await AccountStore(database).create("acme")
    store = PriceStore(database)
    start = 1_790_000_000.123457
    first = await store.set(NewPrice(model="m", input="1", output="1", effective_from=1.0))
    second = await store.set(NewPrice(model="m", input="2", output="2", effective_from=start))
    records = encode_prices(await store.list(Selection(history=True)))
    begins = [record["from_us"] for record in json.loads(records)]
    assert begins == [1_000_000, 1_790_000_000_123_457]
    book = PriceBook(records)
    for micros, price in ((begins[1] - 1, first), (begins[1], second)):
        rated = book.rate("m", "acme", "gpu", micros, prompt=1)
        assert rated is not None
        assert rated[0] == price.id
        moment = EPOCH + timedelta(microseconds=micros)
        by_sql = await database.pool.fetchval("SELECT price_at('m', 'gpu', 'acme', $1)", moment)
        assert by_sql == price.id


async def test_no_price_and_no_book(database: Database) -> None:
    assert PriceBook(b"[]").rate("m", "acme", "gpu", 0) is None
    connection = await asyncpg.connect(database.url)
    try:
        assert await connection.fetchval("SELECT price_at('m', NULL, NULL, now())") is None
    finally:
        await connection.close()

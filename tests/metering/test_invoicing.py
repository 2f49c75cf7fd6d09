"""Drafts, finalising, late usage and re-rating, on a real database."""

import asyncio
import json
from collections.abc import Coroutine
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from forebay.metering.invoicing import Books
from forebay.metering.lines import rounded
from forebay.metering.rerating import Adjustment, NotAllRated, rerate
from forebay.metering.upkeep import apply_retention
from forebay.store import AccountNotFound, BadValue, Database, StoreUnavailable
from forebay.store.billing import BillingChanges, BillingStore, Seller, Tax
from forebay.store.errors import InvoiceNotFound, NotBillable
from forebay.store.terms import NewTerm, TermStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.invoices import Event, Ledger, utc

LATER = utc(2026, 12, 15)
OCTOBER = utc(2026, 10, 10)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def books(database: Database) -> Books:
    return Books(database)


async def finalized(books: Books, account: str, month: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await books.finalize(account, month, now=LATER)).document)
    return found


async def corrected(database: Database, **given: Any) -> list[Adjustment]:
    values: dict[str, Any] = {"since": utc(2026, 1, 1), "until": utc(2027, 1, 1), **given}
    return await rerate(database, **values)


def lines(document: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (line["kind"], line["month"], line["token_kind"] or line["description"], line["amount"])
        for line in document["lines"]
    ]


async def test_a_month_of_usage(database: Database, ledger: Ledger, books: Books) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="0.5", cached="0.05", output="1.5")
    await ledger.ship(
        [
            Event("acme", "m", OCTOBER, prompt=3_000_000, cached=1_000_000, rate=rate),
            Event("acme", "m", OCTOBER, completion=2_000_000, reasoning=500_000, rate=rate),
        ]
    )
    store = BillingStore(database)
    await store.set_seller(Seller(name="Forebay Ltd", address=("1 Way",), bank=("IBAN 1",)))
    await store.update(
        "acme", BillingChanges(legal_name="Acme & Söhne", taxes=(Tax(name="VAT", rate="19"),))
    )
    draft = json.loads(await books.draft("acme", "2026-10", now=LATER))
    assert (draft["status"], draft["number"], draft["total"]) == ("draft", None, "4.82")
    found = await finalized(books, "acme", "2026-10")
    assert lines(found) == [
        ("usage", "2026-10", "input", "1.00"),
        ("usage", "2026-10", "cached", "0.05"),
        ("usage", "2026-10", "output", "3.00"),
    ]
    assert (found["number"], found["kind"], found["status"]) == ("INV-000001", "invoice", "final")
    assert (found["net"], found["total"]) == ("4.05", "4.82")
    assert found["taxes"] == [
        {"name": "VAT", "rate": "19", "on": "all", "net": "4.05", "amount": "0.77"}
    ]
    assert found["customer"]["name"] == "Acme & Söhne"
    assert found["seller"]["name"] == "Forebay Ltd"
    assert (found["issued_on"], found["due_on"]) == ("2026-12-15", "2027-01-14")
    assert found["period"] == {
        "start": "2026-10-01T00:00:00+00:00",
        "end": "2026-11-01T00:00:00+00:00",
        "time_zone": "UTC",
    }
    assert [(p["id"], p["input"], p["reasoning"]) for p in found["prices"]] == [
        (rate.id, "0.50", "1.50")
    ]
    assert found["lines"][0]["unit_price"] == "0.50"


async def test_finalising_twice_is_finalising_once(ledger: Ledger, books: Books) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)])
    first = await books.finalize("acme", "2026-10", now=LATER)
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)])
    second = await books.finalize("acme", "2026-10", now=LATER + timedelta(days=1))
    assert (first.new, second.new) == (True, False)
    assert first.document == second.document
    assert await books.draft("acme", "2026-10") == first.document
    assert await books.get("INV-000001") == first.document


async def test_numbers_have_no_gap_when_many_finalise_at_once(ledger: Ledger, books: Books) -> None:
    names = [f"a{n}" for n in range(20)]
    await ledger.account(*names)
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event(n, "m", OCTOBER, prompt=10**6, rate=rate) for n in names])
    # Some fail after others have taken numbers; some come twice.
    await ledger.ship([Event("a3", "dear", OCTOBER, prompt=1)])
    found = await asyncio.gather(
        *(books.finalize(name, "2026-10", now=LATER) for name in (*names, *names)),
        return_exceptions=True,
    )
    refused = [x for x in found if isinstance(x, BaseException)]
    assert all(isinstance(x, NotBillable) for x in refused)
    assert len(refused) == 2
    kept = [x for x in found if not isinstance(x, BaseException)]
    assert sum(x.new for x in kept) == 19
    numbers = sorted({json.loads(x.document)["number"] for x in kept})
    assert numbers == [f"INV-{n:06d}" for n in range(1, 20)]
    assert [i.number for i in await books.list()] == numbers


async def test_months_are_those_of_the_time_zone(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    await BillingStore(database).update("acme", BillingChanges(time_zone="America/New_York"))
    rate = await ledger.price("m", input="1", output="1")
    edge = utc(2026, 11, 1, 4)  # midnight there, daylight saving
    step = timedelta(microseconds=1)
    await ledger.ship(
        [
            Event("acme", "m", edge - step, prompt=10**6, rate=rate),
            Event("acme", "m", edge, prompt=2 * 10**6, rate=rate),
            Event("acme", "m", utc(2026, 12, 1, 5) - step, prompt=4 * 10**6, rate=rate),
            Event("acme", "m", utc(2026, 12, 1, 5), prompt=8 * 10**6, rate=rate),
        ]
    )
    assert (await finalized(books, "acme", "2026-10"))["total"] == "1.00"
    november = await finalized(books, "acme", "2026-11")
    assert november["total"] == "6.00"
    assert november["period"]["start"] == "2026-11-01T00:00:00-04:00"
    assert november["period"]["end"] == "2026-12-01T00:00:00-05:00"


async def test_late_usage_comes_with_the_next_invoice(ledger: Ledger, books: Books) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    november = OCTOBER + timedelta(days=31)
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)])
    first = await finalized(books, "acme", "2026-10")
    await ledger.ship(
        [
            Event("acme", "m", OCTOBER, prompt=2 * 10**6, rate=rate),
            Event("acme", "m", november, prompt=5 * 10**6, rate=rate),
        ]
    )
    second = await finalized(books, "acme", "2026-11")
    assert lines(second) == [
        ("usage", "2026-11", "input", "5.00"),
        ("late", "2026-10", "input", "2.00"),
    ]
    assert second["watermark"] > first["watermark"]
    # Once: what came late is not late again, whatever the order of months.
    await ledger.ship([Event("acme", "m", november, prompt=7 * 10**6, rate=rate)])
    assert lines(await finalized(books, "acme", "2026-09")) == [
        ("late", "2026-11", "input", "7.00"),
    ]
    assert lines(await finalized(books, "acme", "2026-08")) == []
    assert json.loads(await books.get("INV-000001")) == first


async def test_a_transaction_that_is_not_through_is_waited_for(
    database_url: str, ledger: Ledger, books: Books
) -> None:
    """An event cannot get an ingest number below the watermark and show after it."""
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)])
    shipping = await asyncpg.connect(database_url)
    try:
        transaction = shipping.transaction()
        await transaction.start()
        await shipping.execute("LOCK TABLE usage_events IN ROW EXCLUSIVE MODE")
        await shipping.fetchval("SELECT nextval('usage_batches')")
        running = asyncio.create_task(books.finalize("acme", "2026-10", now=LATER))
        waiting = False
        while not waiting:
            waiting = await shipping.fetchval(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'ShareLock')"
            )
            await asyncio.sleep(0)
        assert not running.done()
        await transaction.commit()
        found = json.loads((await running).document)
    finally:
        await shipping.close()
    assert found["watermark"] == 2


async def test_a_table_that_stays_locked_is_one_clear_error(
    database_url: str, ledger: Ledger, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.store.invoices._LOCK_WAIT", "50ms")
    await ledger.account("acme")
    other = await asyncpg.connect(database_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE usage_events IN ROW EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable, match="usage_events stays locked"):
                await books.finalize("acme", "2026-10", now=LATER)
    finally:
        await other.close()
    assert (await finalized(books, "acme", "2026-10"))["number"] == "INV-000001"


async def test_usage_without_a_price_blocks_until_it_has_one(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship(
        [
            Event("acme", "m", OCTOBER, prompt=10**6, rate=rate),
            *(Event("acme", "new", OCTOBER, prompt=10**6) for _ in range(3)),
            Event("acme", "other", OCTOBER, completion=1),
            # Nothing was read or said: nothing to price.
            Event("acme", "down", OCTOBER, outcome="error"),
        ]
    )
    draft = json.loads(await books.draft("acme", "2026-10", now=LATER))
    assert draft["problems"] == [
        "3 requests of new in 2026-10 have no price",
        "1 request of other in 2026-10 has no price",
    ]
    with pytest.raises(NotBillable, match="3 requests of new in 2026-10 have no price"):
        await finalized(books, "acme", "2026-10")
    late = await ledger.price("new", input="2", output="2", request="0.5")
    assert [(a.token_kind, a.amount, a.old_price) for a in await corrected(database)] == [
        ("input", "6.00", None),
        ("requests", "1.50", None),
    ]
    with pytest.raises(NotBillable, match=r"invoiced for 2026-10: 1 request of other"):
        await finalized(books, "acme", "2026-10")
    await ledger.price("other", input="2", output="2")
    await corrected(database)
    found = await finalized(books, "acme", "2026-10")
    assert lines(found) == [
        ("usage", "2026-10", "input", "1.00"),
        ("adjustment", "2026-10", "input", "6.00"),
        ("adjustment", "2026-10", "requests", "1.50"),
        ("adjustment", "2026-10", "output", "0.00"),
    ]
    assert late.id in {price["id"] for price in found["prices"]}


async def test_usage_in_another_currency_blocks(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    await BillingStore(database).update("acme", BillingChanges(currency="JPY"))
    dollars = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=dollars)])
    with pytest.raises(NotBillable, match="1 request of m in 2026-10 is rated in USD, not JPY"):
        await finalized(books, "acme", "2026-10")
    await ledger.price("m", account="acme", currency="JPY", input="150.5", output="1")
    assert [a.amount for a in await corrected(database)] == ["150.50"]
    found = await finalized(books, "acme", "2026-10")
    assert (found["total"], found["currency"]) == ("151", "JPY")


async def test_a_price_correction_is_billed_once(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme", "else")
    rate = await ledger.price("m", input="2", output="4")
    await ledger.ship(
        [
            Event("acme", "m", OCTOBER, prompt=10**6, completion=10**6, rate=rate),
            Event("else", "m", OCTOBER, prompt=10**6, rate=rate),
        ]
    )
    first = await finalized(books, "acme", "2026-10")
    assert first["total"] == "6.00"
    second_rate = await ledger.correct(rate, input="1.5", cached="1.5")
    done = await corrected(database, account="acme", model="m")
    assert [(a.account, a.month, a.token_kind, a.old_price, a.new_price, a.quantity, a.amount)
            for a in done] == [
        ("acme", "2026-10", "input", rate.id, second_rate.id, "1000000", "-0.50")
    ]  # fmt: skip
    assert await corrected(database, account="acme") == []
    # Usage that came by the old price meanwhile, and a second correction.
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)])
    await ledger.correct(second_rate, input="1")
    again = await corrected(database, account="acme", since=OCTOBER, until=utc(2026, 10, 11))
    assert sorted(Decimal(a.amount) for a in again) == [Decimal("-1.00"), Decimal("-0.50")]
    found = await finalized(books, "acme", "2026-11")
    assert sum(Decimal(line["amount"]) for line in found["lines"]) == 2 - Decimal("2.00")
    assert (await finalized(books, "acme", "2026-09"))["lines"] == []
    # An account whose month is open has the correction in the month's own invoice.
    await corrected(database)
    assert lines(await finalized(books, "else", "2026-11")) == []
    assert lines(await finalized(books, "else", "2026-10")) == [
        ("usage", "2026-10", "input", "2.00"),
        ("adjustment", "2026-10", "input", "-1.00"),
    ]
    assert json.loads(await books.get(first["number"])) == first


async def test_a_negative_month_is_a_credit_note(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    await BillingStore(database).update("acme", BillingChanges(taxes=(Tax(name="VAT", rate="20"),)))
    rate = await ledger.price("m", input="2", output="4")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**7, rate=rate)])
    await finalized(books, "acme", "2026-10")
    await ledger.correct(rate, input="1")
    await corrected(database)
    found = await finalized(books, "acme", "2026-11")
    assert (found["kind"], found["number"], found["total"]) == (
        "credit_note",
        "CN-000001",
        "-12.00",
    )
    assert found["due_on"] is None
    assert await finalized(books, "acme", "2026-11") == found
    assert [(i.number, i.total) for i in await books.list(account="acme")] == [
        ("INV-000001", "24.00"),
        ("CN-000001", "-12.00"),
    ]


async def test_terms_are_applied(database: Database, ledger: Ledger, books: Books) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**7, rate=rate)])
    store = TermStore(database)
    start = OCTOBER.date().replace(day=1)
    await store.add(
        "acme", NewTerm(kind="free_tokens", description="Free", tokens=10**6, starts=start)
    )
    await store.add(
        "acme",
        NewTerm(kind="fee", description="Plan", amount="31", starts=OCTOBER.date()),
    )
    found = await finalized(books, "acme", "2026-10")
    assert [line["amount"] for line in found["lines"]] == ["10.00", "-1.00", "22.00"]
    assert (found["subtotal"], found["deductions"]) == ("32.00", "-1.00")
    with pytest.raises(BadValue, match="starts must be after 2026-10, which is invoiced"):
        await store.add(
            "acme", NewTerm(kind="discount", description="x", percent="5", starts=start)
        )


async def test_what_is_refused(database: Database, ledger: Ledger, books: Books) -> None:
    await ledger.account("acme")
    for month in ("2026-13", "2026", "november", "2026-11-01", ""):
        with pytest.raises(BadValue, match="month must be a month such as 2026-11"):
            await books.finalize("acme", month)
        with pytest.raises(BadValue, match="month must be a month such as 2026-11"):
            await books.draft("acme", month)
    for account in ("nobody", "", "a\nb"):
        with pytest.raises(AccountNotFound, match="no account has the id"):
            await books.finalize(account, "2026-10", now=LATER)
        with pytest.raises(AccountNotFound, match="no account has the id"):
            await books.draft(account, "2026-10", now=LATER)
        with pytest.raises(AccountNotFound, match="no account has the id"):
            await corrected(database, account=account)
        with pytest.raises(AccountNotFound, match="no account has the id"):
            await books.list(account=account)
    with pytest.raises(NotBillable, match=r"2026-12 is not over before 2027-01-01 00:00 in UTC"):
        await books.finalize("acme", "2026-12", now=LATER)
    with pytest.raises(BadValue, match="month must not lie in the future"):
        await books.draft("acme", "2027-01", now=LATER)
    with pytest.raises(InvoiceNotFound, match="'INV-1'"):
        await books.get("INV-1")
    with pytest.raises(BadValue, match="until must be after since"):
        await corrected(database, until=utc(2026, 1, 1))
    with pytest.raises(BadValue, match="model must have"):
        await corrected(database, model="")
    assert json.loads(await books.draft("acme", "2026-12", now=LATER))["total"] == "0.00"


async def test_a_month_whose_events_are_gone_is_not_invoiced(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)] * 2)
    await database.pool.execute(
        "DELETE FROM usage_events WHERE event_id = (SELECT min(event_id::text)::uuid"
        " FROM usage_events)"
    )
    with pytest.raises(NotBillable, match="1 of its events are no longer in usage_events"):
        await finalized(books, "acme", "2026-10")
    with pytest.raises(NotBillable, match="2026-10 of acme cannot be re-rated"):
        await corrected(database)


async def test_a_ledger_that_does_not_balance_is_not_invoiced(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", OCTOBER, prompt=10**6, rate=rate)])
    await database.pool.execute("UPDATE usage_events SET cost = 1.000000000001")
    with pytest.raises(NotBillable, match=r"cost 1\.000000000001 USD event by event, but 1"):
        await finalized(books, "acme", "2026-10")


sizes = st.integers(0, 2**31)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_random_ledgers_balance_to_the_last_digit(
    postgres: Any, database_url: str, data: Any
) -> None:
    """Lines before rounding = daily sums = events."""
    asyncio.run(_random_ledger(database_url, data))


async def _random_ledger(database_url: str, data: Any) -> None:
    async with await Database.connect(database_url, max_size=2) as database:
        ledger, books = Ledger(database, None), Books(database)
        account = f"a{uuid4()}"
        await ledger.account(account)
        money = st.decimals(0, 100, places=6).map(str)
        names = ("input", "cached", "cache_write", "output", "reasoning", "request", "second")
        rates = [
            await ledger.price(f"{account}-{n % 2}", account=account,
                               **{name: data.draw(money) for name in names},
                               start=utc(2026, 9 + n // 2, 1), stop=utc(2026, 10 + n // 2, 1))
            for n in range(4)
        ]  # fmt: skip
        for _ in range(data.draw(st.integers(1, 3))):
            events = []
            for _ in range(data.draw(st.integers(0, 12))):
                rate = data.draw(st.sampled_from(rates))
                at = rate.start + timedelta(
                    microseconds=data.draw(st.integers(0, 28 * 86_400 * 10**6))
                )
                cached, write, reasoning = (data.draw(sizes) for _ in range(3))
                events.append(
                    Event(account, rate.model, at, prompt=cached + write + data.draw(sizes),
                          completion=reasoning + data.draw(sizes), cached=cached,
                          cache_write=write, reasoning=reasoning,
                          duration_us=data.draw(st.integers(0, 10**9)), rate=rate)
                )  # fmt: skip
            await ledger.ship(events)
        for month, start, stop in (("2026-09", "2026-09-01", "2026-10-01"),
                                   ("2026-10", "2026-10-01", "2026-11-01")):  # fmt: skip
            document = await finalized(books, account, month)
            exact = sum(
                (Decimal(x["quantity"]) * Decimal(x["unit_price"]) / x["per"]
                 for x in document["lines"] if x["month"] == month), Decimal(0)
            )  # fmt: skip
            daily, events_sum = await database.pool.fetchrow(
                "SELECT (SELECT coalesce(sum(cost), 0) FROM usage_daily WHERE account = $1"
                f" AND day >= '{start}' AND day < '{stop}'), (SELECT coalesce(sum(cost), 0)"
                f" FROM usage_events WHERE account = $1 AND event_id >= event_floor('{start}Z')"
                f" AND event_id < event_floor('{stop}Z'))",
                account,
            )
            assert exact == daily == events_sum
            by_row = await database.pool.fetch(
                "SELECT price_id, sum(cost) AS cost FROM usage_daily WHERE account = $1"
                f" AND day >= '{start}' AND day < '{stop}' GROUP BY 1",
                account,
            )
            for row in by_row:
                assert row["cost"] == sum(
                    (Decimal(x["quantity"]) * Decimal(x["unit_price"]) / x["per"]
                     for x in document["lines"] if x["price_id"] == row["price_id"]), Decimal(0)
                )  # fmt: skip
            for line in document["lines"]:
                assert Decimal(line["amount"]) == rounded(
                    Decimal(line["quantity"]) * Decimal(line["unit_price"]) / line["per"], 2
                )
            assert Decimal(document["total"]) == sum(
                (Decimal(line["amount"]) for line in document["lines"]), Decimal(0)
            )


async def test_what_cost_something_before_the_price_book_is_rated_before_it_is_invoiced(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship(
        [
            Event("acme", "m", OCTOBER, prompt=2 * 10**6, rate=rate),
            Event("acme", "m", OCTOBER, outcome="error", rate=rate),
        ]
    )
    # As the third migration leaves them: the configured prices of then were no rows.
    await database.pool.execute("UPDATE usage_events SET price_id = NULL, batch = 0")
    await ledger.correct(rate, input="1.5")
    with pytest.raises(NotBillable, match="1 request of m in 2026-10"):
        await finalized(books, "acme", "2026-10")
    found = await corrected(database)
    # No invoice has what they cost, so all of the new price is due.
    assert [(a.token_kind, a.old_price, a.amount) for a in found] == [("input", None, "3.00")]
    assert await corrected(database) == []
    assert (await finalized(books, "acme", "2026-10"))["total"] == "3.00"


async def test_a_month_of_which_retention_took_a_part_is_not_invoiced(
    database: Database, ledger: Ledger, books: Books
) -> None:
    await ledger.account("acme", "new")
    rate = await ledger.price("m", input="1", output="1")
    await BillingStore(database).update("acme", BillingChanges(time_zone="Asia/Tokyo"))
    # The first hours of October in Tokyo are on a day of September in UTC.
    await ledger.ship(
        [
            Event("acme", "m", utc(2026, 9, 30, 16), prompt=10**6, rate=rate),
            Event("acme", "m", OCTOBER, prompt=10**6, rate=rate),
            Event("new", "m", OCTOBER, prompt=10**6, rate=rate),
        ]
    )
    gone = await apply_retention_to(database, utc(2026, 10, 12), 10)
    assert "2026-09" in gone
    with pytest.raises(NotBillable, match="retention has taken events from before 2026-10-01"):
        await finalized(books, "acme", "2026-10")
    with pytest.raises(NotBillable, match="cannot be re-rated"):
        await corrected(database, account="acme", since=OCTOBER)
    # Who used nothing then misses nothing.
    assert (await finalized(books, "new", "2026-10"))["total"] == "1.00"
    assert await corrected(database, account="new") == []


async def apply_retention_to(database: Database, now: datetime, usage_days: int) -> list[str]:
    async with database.pool.acquire() as connection:
        await connection.fetch(
            "SELECT usage_partition('2026-09-01'), usage_partition('2026-10-01')"
        )
        done = await apply_retention(connection, now, usage_days=usage_days)
    dropped: list[str] = done["dropped"]
    return dropped


async def waiting(database: Database, number: int) -> None:
    """Return once so many statements wait for a lock of another."""
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    for _ in range(1000):
        if await database.pool.fetchval(query) >= number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")


@pytest.mark.parametrize("change", ["add", "end"])
async def test_terms_change_before_a_month_is_finalised_or_not_at_all(
    database: Database, ledger: Ledger, books: Books, change: str
) -> None:
    await ledger.account("acme")
    terms = TermStore(database)
    fee = NewTerm(kind="fee", description="Plan", amount="10", starts=date(2026, 10, 1))
    held = await terms.add("acme", fee)
    async with asyncio.TaskGroup() as tasks:
        async with database.pool.acquire() as other, other.transaction():
            # Finalising has read the terms by the time it waits for its number.
            await other.execute("SELECT * FROM invoice_series FOR UPDATE")
            final = tasks.create_task(finalized(books, "acme", "2026-10"))
            await waiting(database, 1)
            work: Coroutine[Any, Any, Any] = (
                terms.add("acme", fee)
                if change == "add"
                else terms.end(held.id, date(2026, 10, 15))
            )
            changed = tasks.create_task(told(work))
            await waiting(database, 2)
        assert "2026-10, which is invoiced already" in str(await changed)
        assert (await final)["total"] == "10.00"


async def told(work: Coroutine[Any, Any, Any]) -> BadValue | None:
    try:
        await work
    except BadValue as error:
        return error
    return None


async def test_rating_all_anew_takes_who_used_something_in_the_months(
    database: Database, ledger: Ledger
) -> None:
    await ledger.account("early", "late", "far")
    rate = await ledger.price("m", input="1", output="1")
    await BillingStore(database).update("far", BillingChanges(time_zone="Pacific/Kiritimati"))
    at = {"early": utc(2026, 10, 1), "late": utc(2026, 10, 31, 23), "far": utc(2026, 9, 30, 11)}
    await ledger.ship([Event(name, "m", t, prompt=10**6, rate=rate) for name, t in at.items()])
    await ledger.correct(rate, input="2")
    range_ = {"since": utc(2026, 10, 14), "until": utc(2026, 10, 15)}
    found = await corrected(database, **range_)
    assert sorted(a.account for a in found) == ["early", "far", "late"]
    assert await corrected(database, **range_) == []


async def test_who_cannot_be_rated_anew_does_not_keep_others_from_it(
    database: Database, ledger: Ledger
) -> None:
    await ledger.account("a", "b", "c")
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event(name, "m", OCTOBER, prompt=10**6, rate=rate) for name in "abc"] * 2)
    await database.pool.execute(
        "DELETE FROM usage_events WHERE event_id IN (SELECT DISTINCT ON (account) event_id"
        " FROM usage_events WHERE account <> 'c')"
    )
    await ledger.correct(rate, input="2")
    with pytest.raises(NotAllRated) as caught:
        await corrected(database)
    assert [a.account for a in caught.value.adjustments] == ["c"]
    assert "2026-10 of a cannot be re-rated" in str(caught.value)
    assert "2026-10 of b cannot be re-rated" in str(caught.value)
    with pytest.raises(NotBillable) as alone:
        await corrected(database, account="a")
    assert not isinstance(alone.value, NotAllRated)
    assert await corrected(database, account="c") == []

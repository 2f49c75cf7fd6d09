"""Two months of 200 accounts with all that happens to them: the books balance to the cent."""

import asyncio
import json
import random
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from forebay.metering.credit import credit
from forebay.metering.invoicing import Books
from forebay.metering.lines import rounded
from forebay.metering.period import month_of
from forebay.metering.rerating import rerate
from forebay.store import Database
from forebay.store.billing import BillingChanges, BillingStore, Tax
from forebay.store.currency import MINOR_DIGITS
from forebay.store.terms import NewTerm, TermStore

from tests.support.invoices import Event, Ledger, Rate, utc

ACCOUNTS = 200
MONTHS = ("2026-09", "2026-10")
AFTER_SEPTEMBER, AFTER_OCTOBER = utc(2026, 10, 3), utc(2026, 11, 3)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo")
CURRENCIES = ("USD", "USD", "EUR", "JPY", "KWD")


class World:
    """What was used and what it should cost, kept apart from the database."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.random = random.Random(7)
        self.events: list[Event] = []
        self.rates: dict[str, list[Rate]] = {}
        self.currency: dict[str, str] = {}
        self.zone: dict[str, ZoneInfo] = {}
        self.taxed: set[str] = set()

    async def settle(self, database: Database) -> None:
        """Accounts of several zones and currencies, a price change in each month."""
        names = [f"account-{n:03d}" for n in range(ACCOUNTS)]
        await self.ledger.account(*names)
        changes = (utc(2026, 1, 1), utc(2026, 9, 15), utc(2026, 10, 20), None)
        base = [
            await self.ledger.price(
                "m", input=f"0.{n}5", output="1.5", cached="0.02", start=a, stop=b
            )
            for n, (a, b) in enumerate(pairwise(changes), 1)
            if a is not None
        ]
        billing = BillingStore(database)
        for n, name in enumerate(names):
            currency = self.currency[name] = CURRENCIES[n % len(CURRENCIES)]
            self.zone[name] = ZoneInfo(ZONES[n % len(ZONES)])
            taxes = (Tax(name="VAT", rate="19"),) if n % 3 == 0 else ()
            if taxes:
                self.taxed.add(name)
            await billing.update(
                name,
                BillingChanges(currency=currency, time_zone=str(self.zone[name]), taxes=taxes),
            )
            self.rates[name] = base
            if currency != "USD" or n % 7 == 0:
                self.rates[name] = [
                    await self.ledger.price(
                        "m", account=name, currency=currency, input="70.123456",
                        output="99.000001", request="0.0001", second="0.01", start=a, stop=b,
                    )
                    for a, b in ((utc(2026, 1, 1), utc(2026, 10, 5)), (utc(2026, 10, 5), None))
                ]  # fmt: skip

    def rate(self, account: str, at: Any) -> Rate:
        return next(
            r for r in self.rates[account] if r.start <= at and (r.stop is None or at < r.stop)
        )

    def use(self, account: str, month: int) -> Event:
        # In no other month than that, whatever the time zone.
        at = utc(2026, month, 2) + timedelta(
            microseconds=self.random.randrange(28 * 86_400 * 10**6)
        )
        cached = self.random.randrange(10**5)
        return Event(
            account,
            "m",
            at,
            prompt=cached + self.random.randrange(10**6),
            cached=cached,
            completion=self.random.randrange(10**6),
            duration_us=self.random.randrange(10**8),
            rate=self.rate(account, at),
        )

    async def ship(self, events: list[Event]) -> None:
        self.events += events
        await self.ledger.ship(events)

    def owed(self, corrected: dict[int, Rate]) -> dict[tuple[str, str], Decimal]:
        """What each month of each account costs, exactly, by the rates that hold now."""
        found: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        for event in self.events:
            assert event.rate is not None
            month = str(month_of(event.at, self.zone[event.account]))
            found[event.account, month] += corrected.get(event.rate.id, event.rate).cost(event)
        return found


async def test_two_months_of_two_hundred_accounts(database: Database) -> None:
    world = World(Ledger(database, 7))
    await world.settle(database)
    books = Books(database)
    accounts = list(world.rates)
    await TermStore(database).add(
        accounts[1],
        NewTerm(kind="discount", description="D", percent="10", starts=utc(2026, 9, 1).date()),
    )
    for _ in range(4):
        await world.ship([world.use(name, 9) for name in accounts for _ in range(2)])
    kept: dict[str, bytes] = {}

    async def finalize(month: str, now: Any) -> None:
        found = await asyncio.gather(*(books.finalize(name, month, now=now) for name in accounts))
        for document, _ in found:
            kept[json.loads(document)["number"]] = document

    await finalize("2026-09", AFTER_SEPTEMBER)
    # October, and some of September that comes late.
    for _ in range(4):
        await world.ship([world.use(name, 10) for name in accounts])
    await world.ship([world.use(name, 9) for name in accounts[::3]])
    # A correction of the base price of early September, twice; and of one account's.
    base = world.rates[next(n for n in accounts if len(world.rates[n]) == 3)]
    own = world.rates[next(n for n in accounts if world.currency[n] == "JPY")]
    first = await world.ledger.correct(base[0], input="0.125", cached="0.01")
    whole = {"since": utc(2026, 9, 2), "until": utc(2026, 10, 30)}
    assert await rerate(database, **whole)
    assert await rerate(database, **whole) == []
    corrected = {
        base[0].id: await world.ledger.correct(first, output="1.25", reasoning="1.25"),
        own[0].id: await world.ledger.correct(own[0], input="80", request="1"),
    }
    assert await rerate(database, **whole)
    assert await rerate(database, **whole) == []
    before = dict(kept)
    number = next(n for n, d in kept.items() if json.loads(d)["account"] == accounts[0])
    note = await credit(database, number, reason="Outage", line=1, now=AFTER_OCTOBER)
    kept[json.loads(note)["number"]] = note
    await finalize("2026-10", AFTER_OCTOBER)
    # What came after that, in a third month.
    await world.ship([world.use(name, 10) for name in accounts[::5]])
    await finalize("2026-11", utc(2026, 12, 3))

    for old, document in {**before, **kept}.items():
        assert await books.get(old) == document
    await _check_numbers(books)
    _check_sums(world, [json.loads(document) for document in kept.values()], corrected)


async def _check_numbers(books: Books) -> None:
    numbers = [i.number for i in await books.list()]
    for prefix in ("INV", "CN"):
        of_series = sorted(n for n in numbers if n.startswith(prefix))
        assert of_series == [f"{prefix}-{n:06d}" for n in range(1, len(of_series) + 1)]


def _check_sums(world: World, documents: list[Any], corrected: dict[int, Rate]) -> None:
    exact: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for document in documents:
        digits = MINOR_DIGITS[document["currency"]]
        net = Decimal(0)
        for line in document["lines"]:
            net += Decimal(line["amount"])
            if line["quantity"] is None:
                continue
            product = Decimal(line["quantity"]) * Decimal(line["unit_price"]) / line["per"]
            assert Decimal(line["amount"]) == rounded(product, digits)
            exact[document["account"], line["month"]] += product
        assert Decimal(document["net"]) == net
        tax = sum((Decimal(t["amount"]) for t in document["taxes"]), Decimal(0))
        if document["refers_to"] is None:
            vat = "0.19" if document["account"] in world.taxed else "0"
            assert tax == rounded(net * Decimal(vat), digits)
        assert Decimal(document["total"]) == net + tax
        assert document["kind"] == ("credit_note" if net + tax < 0 else "invoice")
    owed = world.owed(corrected)
    assert {key: value for key, value in exact.items() if value} == owed
    kinds = {line["kind"] for d in documents for line in d["lines"]}
    assert kinds == {"usage", "late", "adjustment", "discount", "credit"}

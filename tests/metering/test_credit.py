"""Credit notes."""

import asyncio
import json
import re
from decimal import Decimal
from typing import Any

import pytest
from forebay.metering.credit import credit
from forebay.metering.invoicing import Books
from forebay.store import BadValue, Database
from forebay.store.billing import BillingChanges, BillingStore, Tax
from forebay.store.errors import InvoiceNotFound, NotBillable
from forebay.store.terms import NewTerm, TermStore

from tests.support.invoices import Event, Ledger, utc

LATER = utc(2026, 12, 15)
NUMBER = "INV-000001"


@pytest.fixture
async def invoiced(database: Database) -> Database:
    """Usage of 10.01 and 20.02, a discount of 3.00, a fee of 5.00; VAT of 19 % on all."""
    ledger = Ledger(database)
    await ledger.account("acme")
    await BillingStore(database).update(
        "acme",
        BillingChanges(taxes=(Tax(name="VAT", rate="19"), Tax(name="Fee", rate="10", on="fees"))),
    )
    rate = await ledger.price("m", input="1", output="2")
    start = utc(2026, 10, 1).date()
    terms = TermStore(database)
    await terms.add("acme", NewTerm(kind="discount", description="D", percent="10", starts=start))
    await terms.add("acme", NewTerm(kind="fee", description="F", amount="5", starts=start))
    event = Event(
        "acme", "m", utc(2026, 10, 5), prompt=10_010_000, completion=10_010_000, rate=rate
    )
    await ledger.ship([event])
    await Books(database).finalize("acme", "2026-10", now=LATER)
    return database


async def credited(database: Database, number: str = NUMBER, **given: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        await credit(database, number, **{"reason": "Outage", "now": LATER, **given})
    )
    return found


async def left(database: Database) -> Decimal:
    found = await Books(database).list()
    return sum((Decimal(i.total) for i in found), Decimal(0))


async def test_a_line_is_taken_back_with_its_taxes(invoiced: Database) -> None:
    original = json.loads(await Books(invoiced).get(NUMBER))
    assert [line["amount"] for line in original["lines"]] == ["10.01", "20.02", "-3.00", "5.00"]
    assert original["total"] == "38.62"
    note = await credited(invoiced, line=2)
    assert (note["number"], note["kind"], note["refers_to"]) == ("CN-000001", "credit_note", NUMBER)
    assert note["reason"] == "Outage"
    assert note["lines"][0]["description"] == "Outage (m: Output tokens)"
    assert (note["net"], note["taxes"][0]["amount"], note["total"]) == ("-20.02", "-3.80", "-23.82")
    assert len(note["taxes"]) == 1
    fee = await credited(invoiced, line=4)
    assert [t["amount"] for t in fee["taxes"]] == ["-0.95", "-0.50"]
    assert json.loads(await Books(invoiced).get(NUMBER)) == original
    with pytest.raises(NotBillable, match=f"line 2 of {NUMBER} is credited already"):
        await credited(invoiced, line=2)
    # 10.01 are charged, but with the discount less than that is left.
    with pytest.raises(NotBillable, match=f"only 8.35 USD of {NUMBER} are not credited yet"):
        await credited(invoiced, line=1)
    rest = await credited(invoiced, amount="8.35")
    assert rest["total"] == "-8.35"
    assert await left(invoiced) == 0


async def test_an_amount_is_split_as_the_invoice_is(invoiced: Database) -> None:
    note = await credited(invoiced, amount="10")
    assert note["total"] == "-10.00"
    assert Decimal(note["net"]) + sum(Decimal(t["amount"]) for t in note["taxes"]) == -10
    assert [t["amount"] for t in note["taxes"]] == ["-1.58", "-0.13"]
    for _ in range(2):
        await credited(invoiced, amount="10.00")
    with pytest.raises(NotBillable, match=f"only 8.62 USD of {NUMBER} are not credited yet"):
        await credited(invoiced, amount="8.63")
    await credited(invoiced, amount="8.62")
    with pytest.raises(NotBillable, match=r"only 0\.00 USD"):
        await credited(invoiced, amount="0.01")
    notes = [json.loads(await Books(invoiced).get(i.number)) for i in await Books(invoiced).list()]
    for tax in ("VAT", "Fee"):
        taken = [Decimal(t["amount"]) for n in notes for t in n["taxes"] if t["name"] == tax]
        assert sum(taken) == 0
    assert [n["number"] for n in notes[1:]] == [f"CN-00000{n}" for n in range(1, 5)]


async def test_many_at_once_never_credit_more_than_is_invoiced(invoiced: Database) -> None:
    found = await asyncio.gather(
        *(credited(invoiced, amount="7.00") for _ in range(12)), return_exceptions=True
    )
    kept = [x for x in found if isinstance(x, dict)]
    assert len(kept) == 5
    assert all(isinstance(x, NotBillable) for x in found if x not in kept)
    assert sorted(x["number"] for x in kept) == [f"CN-00000{n}" for n in range(1, 6)]
    assert await left(invoiced) == Decimal("3.62")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "amount or a line must be given"),
        ({"line": 1, "amount": "1"}, "amount or a line must be given"),
        ({"line": 0}, "line must be 1 to 4"),
        ({"line": 5}, "line must be 1 to 4"),
        ({"line": 3}, "line 3 charges nothing"),
        ({"amount": "0"}, "amount must be above 0"),
        ({"amount": "-1"}, "amount must be an amount of USD"),
        ({"amount": "1.001"}, "amount must be an amount of USD, 2 decimals"),
        ({"amount": "1."}, "amount must be an amount of USD"),
        ({"amount": "1e1"}, "amount must be an amount of USD"),
        ({"amount": "NaN"}, "amount must be an amount of USD"),
        ({"amount": ""}, "amount must be an amount of USD"),
        ({"amount": "1", "reason": ""}, "reason must have 1 to 200"),
    ],
)
async def test_bad_credits(invoiced: Database, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadValue, match=re.escape(reason)):
        await credited(invoiced, **given)


async def test_what_cannot_be_credited(invoiced: Database) -> None:
    with pytest.raises(InvoiceNotFound, match="'INV-000009'"):
        await credited(invoiced, "INV-000009", amount="1")
    await credited(invoiced, amount="1")
    with pytest.raises(NotBillable, match="CN-000001 is a credit note"):
        await credited(invoiced, "CN-000001", amount="1")

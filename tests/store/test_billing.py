"""Billing settings, terms, and what the tables of invoices refuse."""

import re
from datetime import date
from typing import Any

import asyncpg
import pytest
from forebay.metering.invoicing import Books
from forebay.store import AccountNotFound, AccountStore, BadValue, Database
from forebay.store.billing import Billing, BillingChanges, BillingStore, Seller, Tax
from forebay.store.currency import MINOR_DIGITS
from forebay.store.errors import TermNotFound
from forebay.store.terms import NewTerm, TermStore

from tests.support.invoices import Event, Ledger, utc

LATER = utc(2026, 12, 15)
START = date(2026, 11, 1)


@pytest.fixture
async def store(database: Database) -> BillingStore:
    await AccountStore(database).create("acme")
    return BillingStore(database)


async def test_an_account_begins_with_defaults_and_keeps_what_is_set(store: BillingStore) -> None:
    assert await store.get("acme") == Billing()
    changes = BillingChanges(
        currency="EUR",
        time_zone="Europe/Berlin",
        taxes=(Tax(name="USt", rate="19"),),
        tax_id="DE1",
        legal_name="Acme GmbH",
        address=("Weg 1", "Ort"),
        email="a@b.example",
        payment_days=14,
    )
    after = await store.update("acme", changes)
    assert after == await store.get("acme")
    assert after.taxes == (Tax(name="USt", rate="19", on="all"),)
    second = await store.update("acme", BillingChanges(tax_id=None, taxes=()))
    assert (second.tax_id, second.taxes, second.legal_name) == (None, (), "Acme GmbH")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"currency": "usd"}, "currency must be a currency of ISO 4217"),
    ({"currency": "XXX"}, "currency must be a currency of ISO 4217"),
    ({"time_zone": "Mars/Olympus"}, "time_zone must be a name of IANA"),
    ({"time_zone": "../etc/passwd"}, "time_zone must be a name of IANA"),
    ({"taxes": (Tax(name="VAT", rate="-1"),)}, "taxes must have rates"),
    ({"taxes": (Tax(name="VAT", rate="100.5"),)}, "taxes must have rates"),
    ({"taxes": (Tax(name="", rate="1"),)}, "taxes must have 1 to 200"),
    ({"taxes": (Tax(name="a", rate="1"),) * 2}, "taxes must not name the same rate twice"),
    ({"taxes": tuple(Tax(name=f"{n}", rate="1") for n in range(9))}, "taxes must be at most 8"),
    ({"tax_id": "a\nb"}, "tax_id must have 1 to 200"),
    ({"legal_name": ""}, "legal_name must have 1 to 200"),
    ({"address": ("x",) * 9}, "address must have at most 8 lines"),
    ({"address": ("x\ty",)}, "address must have 1 to 200"),
    ({"email": "nobody"}, "email must look like"),
    ({"payment_days": 366}, "payment_days must be 0 to 365"),
    ({"payment_days": -1}, "payment_days must be 0 to 365"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD)
async def test_bad_settings(store: BillingStore, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadValue, match=re.escape(reason)):
        await store.update("acme", BillingChanges(**changes))
    assert await store.get("acme") == Billing()


async def test_nobodys_settings(store: BillingStore) -> None:
    for account in ("nobody", "", "\n"):
        with pytest.raises(AccountNotFound):
            await store.get(account)
        with pytest.raises(AccountNotFound):
            await store.update(account, BillingChanges(payment_days=1))


async def test_the_seller(store: BillingStore) -> None:
    assert await store.seller() is None
    await store.set_seller(Seller(name="A", address=("1",), bank=("2", "3"), footer="f"))
    second = Seller(name="B", email="b@c.example", tax_id="7")
    await store.set_seller(second)
    assert await store.seller() == second
    for bad in (Seller(name=""), Seller(name="x", bank=("y",) * 9), Seller(name="x", email="y")):
        with pytest.raises(BadValue):
            await store.set_seller(bad)


def test_minor_digits() -> None:
    assert {c: MINOR_DIGITS[c] for c in ("JPY", "USD", "EUR", "KWD", "CLF")} == {
        "JPY": 0,
        "USD": 2,
        "EUR": 2,
        "KWD": 3,
        "CLF": 4,
    }
    assert len(MINOR_DIGITS) > 150
    assert all(re.fullmatch(r"[A-Z]{3}", code) for code in MINOR_DIGITS)


async def test_terms(store: BillingStore, database: Database) -> None:
    terms = TermStore(database)
    new = NewTerm(
        kind="discount", description="Loyal", percent="12.50", above="100", model="m", starts=START
    )
    term = await terms.add("acme", new)
    assert (term.percent, term.above, term.account, term.ends) == ("12.5", "100", "acme", None)
    assert await terms.list() == await terms.list("acme") == [term]
    ended = await terms.end(term.id, date(2027, 1, 1))
    assert ended.ends == date(2027, 1, 1)
    with pytest.raises(BadValue, match="ends must be before the end it has, 2027-01-01"):
        await terms.end(term.id, date(2027, 2, 1))
    with pytest.raises(BadValue, match="ends must be after starts"):
        await terms.end(term.id, date(2026, 11, 1))
    with pytest.raises(TermNotFound, match="no term has the id 99"):
        await terms.end(99, date(2027, 1, 1))
    with pytest.raises(AccountNotFound):
        await terms.list("nobody")
    with pytest.raises(AccountNotFound):
        await terms.add("nobody", new)


BAD_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "fee"}, "amount is needed for fee"),
    ({"kind": "free_tokens"}, "tokens is needed for free_tokens"),
    ({"kind": "discount"}, "percent is needed for discount"),
    ({"kind": "gift"}, "kind must be one of"),
    ({"kind": "fee", "amount": "0"}, "amount must be above 0"),
    ({"kind": "fee", "amount": "-5"}, "amount must be a decimal number"),
    ({"kind": "fee", "amount": "1e3"}, "amount must be a decimal number"),
    ({"kind": "fee", "amount": "5", "percent": "5"}, "percent does not go with fee"),
    ({"kind": "free_money", "amount": "5", "model": "m"}, "model does not go with free_money"),
    ({"kind": "discount", "percent": "101"}, "percent must be at most 100"),
    ({"kind": "discount", "percent": "0"}, "percent must be above 0"),
    ({"kind": "free_tokens", "tokens": 0}, "tokens must be 1 to"),
    ({"kind": "free_tokens", "tokens": 5, "token_kind": "x"}, "token_kind must be one of"),
    ({"kind": "free_tokens", "tokens": 5, "model": ""}, "model must have 1 to 200"),
    ({"kind": "fee", "amount": "5", "description": ""}, "description must have 1 to 200"),
    ({"kind": "discount", "percent": "5", "starts": date(2026, 11, 2)}, "the first of a month"),
    ({"kind": "fee", "amount": "5", "ends": START}, "ends must be after starts"),
]


@pytest.mark.parametrize(("given", "reason"), BAD_TERMS)
async def test_bad_terms(
    store: BillingStore, database: Database, given: dict[str, Any], reason: str
) -> None:
    values = {"description": "x", "starts": START, **given}
    with pytest.raises(BadValue, match=re.escape(reason)):
        await TermStore(database).add("acme", NewTerm(**values))
    assert await TermStore(database).list() == []


@pytest.fixture
async def invoiced(store: BillingStore, database: Database) -> Database:
    ledger = Ledger(database)
    rate = await ledger.price("m", input="1", output="1")
    await ledger.ship([Event("acme", "m", utc(2026, 10, 5), prompt=10**6, rate=rate)])
    await Books(database).finalize("acme", "2026-10", now=LATER)
    await database.pool.execute(
        "INSERT INTO adjustments (account, month, model, new_price, token_kind, quantity,"
        " currency, amount, watermark)"
        " VALUES ('acme', '2026-10', 'm', $1, 'input', 1, 'USD', 0, 1)",
        rate.id,
    )
    return database


CHANGES = [
    "UPDATE invoices SET total = 0",
    "UPDATE invoices SET document = document",
    "DELETE FROM invoices",
    "TRUNCATE invoices CASCADE",
    "UPDATE invoice_lines SET amount = 0",
    "DELETE FROM invoice_lines",
    "TRUNCATE invoice_lines",
    "INSERT INTO invoice_lines (invoice, position, kind, month, description, amount)"
    " SELECT id, 99, 'fee', '2026-10', 'x', 1 FROM invoices",
    "UPDATE adjustments SET amount = 1",
    "UPDATE adjustments SET amount = 1, invoice = (SELECT id FROM invoices)",
    "DELETE FROM adjustments",
    "TRUNCATE adjustments",
    "UPDATE invoice_series SET next = 1",
    "UPDATE invoice_series SET next = next + 2",
    "DELETE FROM invoice_series",
]


@pytest.mark.parametrize("statement", CHANGES)
async def test_what_is_final_cannot_be_changed(invoiced: Database, statement: str) -> None:
    before = await _everything(invoiced)
    with pytest.raises(asyncpg.RestrictViolationError):
        await invoiced.pool.execute(statement)
    assert await _everything(invoiced) == before


async def _everything(database: Database) -> list[Any]:
    return [
        await database.pool.fetch(f"SELECT * FROM {table}")
        for table in ("invoices", "invoice_lines", "adjustments", "invoice_series")
    ]


async def test_an_adjustment_is_taken_up_once(invoiced: Database) -> None:
    take = "UPDATE adjustments SET invoice = (SELECT id FROM invoices)"
    await invoiced.pool.execute(take)
    with pytest.raises(asyncpg.RestrictViolationError):
        await invoiced.pool.execute(take)


@pytest.mark.parametrize("change", [{"currency": "EUR"}, {"time_zone": "Europe/Berlin"}])
async def test_what_was_invoiced_fixes_currency_and_time_zone(
    invoiced: Database, change: dict[str, Any]
) -> None:
    store = BillingStore(invoiced)
    with pytest.raises(BadValue, match=rf"{next(iter(change))} cannot change"):
        await store.update("acme", BillingChanges(**change))
    await store.update("acme", BillingChanges(currency="USD", time_zone="UTC", payment_days=3))

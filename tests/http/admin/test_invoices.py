"""Invoices, billing settings and terms by the admin API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from forebay.store import Database

from tests.http.admin.conftest import Admin
from tests.support.invoices import Event, Ledger, utc


@pytest.fixture
async def used(admin: Admin, database: Database) -> Admin:
    ledger = Ledger(database)
    await ledger.account("acme", "other")
    rate = await ledger.price("m", input="1", output="2", start=utc(2025, 1, 1))
    await ledger.ship(
        [
            Event("acme", "m", utc(2025, 10, 5), prompt=10**6, rate=rate),
            Event("acme", "new", utc(2025, 5, 5), prompt=1),
        ]
    )
    await ledger.correct(rate, input="0.5")
    return admin


async def test_the_life_of_an_invoice(used: Admin) -> None:
    assert await used.get("/seller") is None
    seller = await used.send("PUT", "/seller", {"name": "Forebay Ltd", "bank": ["IBAN 1"]})
    assert await used.get("/seller") == seller
    changes = {"time_zone": "Europe/Berlin", "taxes": [{"name": "VAT", "rate": "19"}]}
    billing = await used.send("PATCH", "/accounts/acme/billing", changes)
    assert await used.get("/accounts/acme/billing") == billing
    assert billing["currency"] == "USD"
    term = {"kind": "fee", "description": "Plan", "amount": "10", "starts": "2025-10-01"}
    made = await used.send("POST", "/accounts/acme/terms", term, status=201)
    ended = await used.send("POST", f"/terms/{made['id']}/end", {"ends": "2025-11-01"})
    assert (await used.get("/accounts/acme/terms"))["data"] == [ended]

    draft = await used.get("/accounts/acme/invoices/2025-10")
    assert (draft["status"], draft["total"]) == ("draft", "13.09")
    rerate = {
        "account": "acme",
        "since": "2025-10-01T00:00:00Z",
        "until": "2025-11-01T00:00:00+01:00",
    }
    done = (await used.send("POST", "/rerate", rerate))["data"]
    assert [(a["token_kind"], a["amount"]) for a in done] == [("input", "-0.50")]
    assert (await used.send("POST", "/rerate", rerate))["data"] == []
    wanted = {"account": "acme", "month": "2025-10"}
    final = await used.send("POST", "/invoices", wanted)
    assert (final["number"], final["total"]) == ("INV-000001", "12.50")
    assert await used.send("POST", "/invoices", wanted) == final
    assert await used.get("/invoices/INV-000001") == final
    assert await used.get("/accounts/acme/invoices/2025-10") == final
    pdf = await used.call("GET", "/invoices/INV-000001/pdf")
    assert pdf.headers["content-type"] == "application/pdf"
    assert pdf.headers["content-disposition"] == 'attachment; filename="INV-000001.pdf"'
    assert pdf.content.startswith(b"%PDF-")
    credit = {"reason": "Outage", "amount": "2.50"}
    note = await used.send("POST", "/invoices/INV-000001/credit", credit, status=201)
    assert (note["number"], note["total"]) == ("CN-000001", "-2.50")
    page = await used.get("/invoices?account=acme&limit=1")
    assert [i["number"] for i in page["data"]] == ["INV-000001"]
    page = await used.get(f"/invoices?after={page['next']}")
    assert ([i["number"] for i in page["data"]], page["next"]) == (["CN-000001"], None)
    assert (await used.get("/invoices?account=other"))["data"] == []


async def test_what_is_refused(used: Admin) -> None:
    invalid, missing = "invalid_value", "missing_required_parameter"
    nobody = (404, "account_not_found", None)
    no_invoice = (404, "invoice_not_found", None)
    month = {"account": "acme", "month": "2025-10"}
    rerate = {"account": "acme", "since": "2025-10-01T00:00:00Z", "until": "2025-10-02T00:00:00Z"}
    term = {"kind": "fee", "description": "x", "starts": "2025-10-01"}
    fee = {**term, "amount": "5"}
    for method, path, body, expected in (
        ("POST", "/invoices", {**month, "month": "2025-13"}, (400, invalid, "month")),
        ("POST", "/invoices", {"account": "acme"}, (400, missing, "month")),
        ("POST", "/invoices", {**month, "account": "nobody"}, nobody),
        ("POST", "/invoices", {**month, "month": "2025-05"}, (400, "not_billable", None)),
        ("POST", "/invoices", {**month, "month": "2999-05"}, (400, "not_billable", None)),
        ("GET", "/invoices/X", None, no_invoice),
        ("GET", "/invoices/X/pdf", None, no_invoice),
        ("GET", "/invoices?account=nobody", None, nobody),
        ("POST", "/invoices/X/credit", {"reason": "x", "line": 1}, no_invoice),
        ("POST", "/invoices/X/credit", {"reason": "x"}, (400, invalid, "amount")),
        ("GET", "/accounts/acme/invoices/x", None, (400, invalid, "month")),
        ("POST", "/rerate", {**rerate, "until": "2025-09-01T00:00:00Z"}, (400, invalid, "until")),
        ("POST", "/rerate", {**rerate, "since": "2025-10-01T00:00:00"}, (400, invalid, "since")),
        ("POST", "/accounts/acme/terms", term, (400, invalid, "amount")),
        ("POST", "/accounts/nobody/terms", {**term, "amount": "5"}, nobody),
        ("POST", "/terms/9/end", {"ends": "2025-11-01"}, (404, "term_not_found", None)),
        ("POST", "/terms/x/end", {"ends": "2025-11-01"}, (404, "term_not_found", None)),
        ("PATCH", "/accounts/acme/billing", {"currency": "x"}, (400, invalid, "currency")),
        ("PATCH", "/accounts/acme/billing", {"payment_days": 999}, (400, invalid, "payment_days")),
        ("PUT", "/seller", {"name": ""}, (400, invalid, "name")),
        ("GET", "/invoices?after=99999999999999999999", None, (400, invalid, "after")),
        ("GET", "/invoices?after=-1", None, (400, invalid, "after")),
        ("GET", "/invoices/%00", None, no_invoice),
        ("GET", "/invoices/%00/pdf", None, no_invoice),
        ("POST", "/invoices/%00/credit", {"reason": "x", "line": 1}, no_invoice),
        ("GET", "/usage?account=%00", None, (400, invalid, "account")),
        ("GET", "/accounts/%00/invoices/2025-10", None, nobody),
        ("PATCH", "/accounts/%00/billing", {}, nobody),
        ("POST", "/accounts/%00/terms", {**term, "amount": "5"}, nobody),
        ("POST", "/accounts/acme/terms", {**fee, "starts": "0001-01-01"}, (400, invalid, "starts")),
        ("POST", "/accounts/acme/terms", {**fee, "starts": "9999-01-01"}, (400, invalid, "starts")),
        ("POST", "/accounts/acme/terms", {**fee, "ends": "9999-12-31"}, (400, invalid, "ends")),
        ("POST", "/rerate", {**rerate, "since": "0001-01-01T00:00:00Z"}, (400, invalid, "since")),
        ("POST", "/rerate", {**rerate, "until": "9999-12-31T23:59:59Z"}, (400, invalid, "until")),
    ):  # fmt: skip
        assert await used.refused(method, path, body) == expected, (method, path)


@asynccontextmanager
async def events_locked(database: Database, seconds: float) -> AsyncIterator[None]:
    """For so long nobody can read events."""

    async def hold() -> None:
        async with database.pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE")
            held.set()
            await asyncio.sleep(seconds)

    held = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold())
        await held.wait()
        yield


async def test_what_sums_up_events_has_longer_than_the_rest(
    used: Admin, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.http.admin.operation.WORK_S", 0.2)
    rerate = {"account": "acme", "since": "2025-10-01T00:00:00Z", "until": "2025-10-02T00:00:00Z"}
    for method, path, body in (
        ("GET", "/accounts/acme/invoices/2025-10", None),
        ("POST", "/rerate", rerate),
        ("POST", "/invoices", {"account": "acme", "month": "2025-10"}),
    ):
        async with events_locked(database, 0.5):
            answer = await used.call(method, path, body)
            assert answer.status_code == 200, answer.text
    async with events_locked(database, 0.5):
        answer = await used.call("GET", "/usage")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert message == "This took longer than 0.2 s and was given up. Please try again."

"""`forebay invoice`, `terms`, `seller` and `accounts billing`."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from forebay.store import Database

from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url
from tests.support.databases import run_apart
from tests.support.invoices import Event, Ledger, utc

__all__ = ["elsewhere", "forebay", "with_url"]


@pytest.fixture
def used(with_url: Forebay, database_url: str) -> Forebay:
    """An account that has used a model in October 2025 and another one without a price in May."""

    async def fill() -> None:
        async with await Database.connect(database_url, max_size=1) as database:
            ledger = Ledger(database)
            await ledger.account("acme")
            rate = await ledger.price("m", input="1", output="2", start=utc(2025, 1, 1))
            await ledger.ship(
                [
                    Event("acme", "m", utc(2025, 10, 5), prompt=10**6, rate=rate),
                    Event("acme", "m", utc(2025, 10, 6), completion=2 * 10**6, rate=rate),
                    Event("acme", "new", utc(2025, 5, 5), prompt=10**6),
                ]
            )

    run_apart(fill)
    return with_url


def test_the_life_of_an_invoice(used: Forebay, elsewhere: Path) -> None:
    billed = used(
        "accounts", "billing", "acme", "--currency", "USD", "--time-zone", "Europe/Berlin",
        "--tax-rate", "VAT=19", "--legal-name", "Åcme GmbH", "--address", "Weg 1", "--address",
        "Ort", "--email", "a@b.example", "--payment-days", "14", "--tax-id", "DE1", "--json",
    ).json()  # fmt: skip
    assert billed["taxes"] == [{"name": "VAT", "rate": "19", "on": "all"}]
    assert (billed["account"], billed["address"]) == ("acme", ["Weg 1", "Ort"])
    assert "VAT 19 %" in used("accounts", "billing", "acme").out
    seller = used("seller", "set", "--name", "Forebay Ltd", "--bank", "IBAN 1", "--json").json()
    assert seller == used("seller", "show", "--json").json()
    fee = used(
        "terms", "add", "acme", "fee", "--amount", "31", "--from", "2025-10-16", "--json"
    ).json()
    used("terms", "add", "acme", "discount", "--percent", "10", "--from", "2025-10")
    listed = used("terms", "list", "acme", "--json").json()
    assert [t["kind"] for t in listed] == ["fee", "discount"]
    assert listed[1]["starts"] == "2025-10-01"
    ended = used("terms", "end", str(fee["id"]), "--to", "2025-11", "--json").json()
    assert ended["ends"] == "2025-11-01"

    month = ("invoice", "--account", "acme", "--month", "2025-10")
    draft = used(*month)
    assert draft.code == 0
    assert "draft invoice" in draft.out
    assert "Input tokens" in draft.out
    final = used(*month, "--finalize", "--json").json()
    assert (final["number"], final["net"], final["status"]) == ("INV-000001", "20.52", "final")
    assert used(*month, "--finalize", "--format", "json").json() == final
    assert used("invoice", "show", "INV-000001", "--json").json() == final
    rows = list(csv.DictReader(io.StringIO(used(*month, "--format", "csv").out)))
    assert [(r["kind"], r["amount"]) for r in rows] == [
        ("usage", "1.00"),
        ("usage", "4.00"),
        ("discount", "-0.50"),
        ("fee", "16.02"),
        ("tax", "3.90"),
        ("total", "24.42"),
    ]
    out = elsewhere / "invoice.pdf"
    assert used(*month, "--format", "pdf", "--out", str(out)).out == ""
    assert out.read_bytes().startswith(b"%PDF-")
    (listed,) = used("invoice", "list", "--json").json()
    assert (listed["number"], listed["total"]) == ("INV-000001", "24.42")
    assert "INV-000001" in used("invoice", "list").out

    note = used("invoice", "credit", "INV-000001", "--line", "1", "--reason", "Outage", "--json")
    assert note.json()["total"] == "-1.19"
    refused = used("invoice", "credit", "INV-000001", "--amount", "99", "--reason", "x")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "only 23.23 USD" in refused.err


def test_a_price_that_comes_late(used: Forebay, database_url: str) -> None:
    month = ("invoice", "--account", "acme", "--month", "2025-05")
    draft = used(*month, "--json")
    assert draft.json()["problems"] == ["1 request of new in 2025-05 has no price"]
    assert "cannot be finalised: 1 request of new" in draft.err
    refused = used(*month, "--finalize")
    assert (refused.code, refused.out) == (1, "")
    assert "1 request of new in 2025-05 has no price" in refused.err

    async def add() -> None:
        async with await Database.connect(database_url, max_size=1) as database:
            await Ledger(database).price("new", input="3", output="3", start=utc(2025, 1, 1))

    run_apart(add)
    rerate = ("invoice", "rerate", "--since", "2025-05-01", "--until", "2025-06-01")
    (done,) = used(*rerate, "--json").json()
    assert (done["model"], done["amount"], done["month"]) == ("new", "3.00", "2025-05")
    assert used(*rerate).out == "nothing to correct\n"
    final = used(*month, "--finalize", "--json")
    assert final.json()["total"] == "3.00"
    assert "names no seller" in final.err


def test_rating_anew_goes_on_after_an_account_that_cannot_be(
    used: Forebay, database_url: str
) -> None:
    async def lose() -> None:
        async with await Database.connect(database_url, max_size=1) as database:
            ledger = Ledger(database)
            await ledger.account("zeta")
            await ledger.ship([Event("zeta", "new", utc(2025, 5, 5), prompt=10**6)])
            await ledger.price("new", input="3", output="3", start=utc(2025, 1, 1))
            await database.pool.execute(
                "DELETE FROM usage_events WHERE account = 'acme' AND model_asked = 'new'"
            )

    run_apart(lose)
    rerate = ("invoice", "rerate", "--since", "2025-05-01", "--until", "2025-11-01")
    done = used(*rerate, "--json")
    assert [(a["account"], a["amount"]) for a in json.loads(done.out)] == [("zeta", "3.00")]
    assert done.code == 1
    assert "2025-05 of acme cannot be re-rated" in done.err
    assert used(*rerate).out == "nothing to correct\n"


MISUSE = [
    ("invoice", "--account"),
    ("invoice --account acme", "--month"),
    ("invoice --account acme --month 2025-10 --format xml", "--format"),
    ("invoice rerate --since x --until 2025-01-01", "'x' is no day"),
    ("invoice rerate --since 2025-01-01T00:00:00 --until 2025-01-01", "no instant such as"),
    ("invoice rerate --since 2025-01-01", "--until"),
    ("invoice credit X --reason y", "--line or --amount"),
    ("invoice credit X --line 1", "--reason"),
    ("terms add acme fee --amount 5", "--from"),
    ("terms add acme gift --from 2025-01", "free-tokens"),
    ("terms end 1 --to soon", "no day such as"),
    ("accounts billing acme --tax-rate =19", "no tax such as"),
    ("accounts billing acme --tax-rate VAT=19:cars", "no tax such as"),
    ("accounts billing acme --no-tax --tax-rate 19", "--no-tax"),
    ("seller set", "--name"),
]


@pytest.mark.parametrize(("arguments", "reason"), MISUSE)
def test_misuse_is_one_line(used: Forebay, arguments: str, reason: str) -> None:
    result = used(*arguments.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert reason in result.err


REFUSED = [
    ("invoice --account nobody --month 2025-10", "no account has the id 'nobody'"),
    ("invoice --account acme --month 2025-13", "month must be a month such as 2026-11"),
    ("invoice --account acme --month 2999-01", "month must not lie in the future"),
    ("invoice --account acme --month 2999-01 --finalize", "2999-01 is not over before"),
    ("invoice show INV-9", "no invoice has the number 'INV-9'"),
    ("invoice list --account nobody", "no account has the id 'nobody'"),
    ("invoice credit INV-9 --line 1 --reason x", "no invoice has the number 'INV-9'"),
    ("invoice rerate --since 2025-02-01 --until 2025-01-01", "until must be after since"),
    ("accounts billing nobody", "no account has the id 'nobody'"),
    ("accounts billing acme --currency EURO", "currency must be"),
    ("accounts billing acme --tax-rate VAT=1900", "taxes must have rates"),
    ("terms add nobody fee --amount 5 --from 2025-01", "no account has the id 'nobody'"),
    ("terms add acme fee --from 2025-01", "amount is needed for fee"),
    ("terms list nobody", "no account has the id 'nobody'"),
    ("terms end 77 --to 2025-01", "no term has the id 77"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_what_is_refused_is_one_line(used: Forebay, arguments: str, reason: str) -> None:
    result = used(*arguments.split())
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert reason in result.err


def test_a_pdf_whose_font_lacks_a_character(used: Forebay, elsewhere: Path) -> None:
    used("accounts", "billing", "acme", "--legal-name", "株式会社")
    arguments = ["invoice", "--account", "acme", "--month", "2025-10", "--format", "pdf"]
    result = used(*arguments, "--out", "x.pdf")
    assert result.code == 1
    assert "U+" in result.err
    assert "--font FILE" in result.err
    assert used(*arguments, "--out", "x.pdf", "--font", "none.ttf").code == 2
    assert not (elsewhere / "x.pdf").exists()


def test_json_is_the_same_text_each_time(used: Forebay) -> None:
    arguments = ("invoice", "--account", "acme", "--month", "2025-10", "--json")
    used(*arguments, "--finalize")
    first: Any = used(*arguments)
    assert first == used(*arguments)
    assert json.loads(first.out)["number"] == "INV-000001"

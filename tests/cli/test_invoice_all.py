"""`forebay invoice --all`: every account's month, as a monthly job makes it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from forebay.metering.invoice_run import Billed, bill_all
from forebay.store import Database

from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url
from tests.support.databases import run_apart
from tests.support.invoices import Event, Ledger, utc

__all__ = ["elsewhere", "forebay", "with_url"]


@pytest.fixture
def used(with_url: Forebay, database_url: str) -> Forebay:
    """In October 2025: acme with usage, bad without a price, idle without anything."""

    async def fill() -> None:
        async with await Database.connect(database_url, max_size=1) as database:
            ledger = Ledger(database)
            await ledger.account("acme", "bad", "idle")
            rate = await ledger.price("m", input="1", output="2", start=utc(2025, 1, 1))
            await ledger.ship(
                [
                    Event("acme", "m", utc(2025, 10, 5), prompt=10**6, rate=rate),
                    Event("bad", "new", utc(2025, 10, 5), prompt=10**6),
                    Event("zoe", "m", utc(2025, 10, 6), completion=10**6, rate=rate),
                ]
            )

    with_url("accounts", "create", "zoe")
    run_apart(fill)
    return with_url


def test_one_that_is_refused_holds_up_no_other(used: Forebay) -> None:
    month = ("invoice", "--all", "--month", "2025-10")
    drafts = used(*month, "--json")
    assert drafts.code == 0
    assert [(b["account"], b["result"], b["total"]) for b in drafts.json()] == [
        ("acme", "draft", "1.00"),
        ("bad", "draft", "0.00"),
        ("idle", "empty", None),
        ("zoe", "draft", "2.00"),
    ]
    assert "has no price" in drafts.json()[1]["reason"]

    final = used(*month, "--finalize", "--json")
    assert final.code == 1
    assert [(b["account"], b["result"], b["number"]) for b in json.loads(final.out)] == [
        ("acme", "finalised", "INV-000001"),
        ("bad", "refused", None),
        ("idle", "empty", None),
        ("zoe", "finalised", "INV-000002"),
    ]

    again = used(*month, "--finalize")
    assert again.code == 1
    assert "bad cannot be invoiced for 2025-10" in again.out
    assert len(used("invoice", "list", "--json").json()) == 2


def test_last_is_what_is_over_in_the_accounts_own_time_zone(
    used: Forebay, database_url: str
) -> None:
    used("accounts", "billing", "zoe", "--time-zone", "America/New_York")

    async def at(now: datetime) -> list[Billed]:
        async with await Database.connect(database_url, max_size=2) as database:
            return await bill_all(database, "last", finalize=True, now=now)

    # At 02:00 UTC on the first, New York is still in the old month, and bills the one before.
    done: list[list[Billed]] = []

    async def both() -> None:
        done.append(await at(datetime(2025, 11, 1, 2, tzinfo=UTC)))
        done.append(await at(datetime(2025, 11, 2, 2, tzinfo=UTC)))

    run_apart(both)
    first, second = ({b.account: b for b in each} for each in done)
    assert (first["acme"].month, first["acme"].result) == ("2025-10", "finalised")
    assert (first["zoe"].month, first["zoe"].result) == ("2025-09", "empty")
    assert second["acme"].result == "final"
    assert (second["zoe"].month, second["zoe"].result) == ("2025-10", "finalised")


def test_january_follows_december(used: Forebay, database_url: str) -> None:
    months: list[str] = []

    async def in_january() -> None:
        async with await Database.connect(database_url, max_size=2) as database:
            now = datetime(2026, 1, 15, tzinfo=UTC)
            months.extend(
                b.month for b in await bill_all(database, "last", finalize=False, now=now)
            )

    run_apart(in_january)
    assert set(months) == {"2025-12"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("invoice --all", "--month"),
        ("invoice --all --account acme --month last", "--all"),
        ("invoice --all --month last --out x", "--all"),
        ("invoice --all --month last --format pdf", "--all"),
    ],
)
def test_misuse_is_one_line(used: Forebay, arguments: str, reason: str) -> None:
    result = used(*arguments.split())
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert reason in result.err


def test_what_is_no_month_is_refused(used: Forebay, elsewhere: Path) -> None:
    result = used("invoice", "--all", "--month", "next")
    assert result.code == 1
    assert "month must be a month such as 2026-11" in result.err

"""`forebay invoice --all`: the invoices of every account, by hand or by cron."""

from typing import TYPE_CHECKING

import typer

from forebay.cli.common import plain, print_json, print_table, with_database

if TYPE_CHECKING:
    from forebay.metering.invoice_run import Billed
    from forebay.store.database import Database


def bill_everyone(month: str, *, finalize: bool, database_url: str | None, json: bool) -> None:
    """Draft or finalise every account's month and list them.

    Raises: typer.Exit with 1 when one was refused; StoreError.
    """

    async def work(database: "Database") -> "list[Billed]":
        from forebay.metering.invoice_run import bill_all

        return await bill_all(database, month, finalize=finalize)

    done = with_database(database_url, work)
    if json:
        print_json(plain(done))
    elif not done:
        typer.echo("there is no account")
    else:
        print_table(
            ("ACCOUNT", "MONTH", "RESULT", "NUMBER", "NET", "TOTAL", "CURRENCY", "REASON"),
            [
                (
                    *(b.account, b.month, b.result, b.number),
                    *(b.net, b.total, b.currency, b.reason),
                )
                for b in done
            ],
            {"NET", "TOTAL"},
        )
    if any(b.result == "refused" for b in done):
        raise typer.Exit(1)

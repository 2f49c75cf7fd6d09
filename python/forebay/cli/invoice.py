"""`forebay invoice`: drafts, finalising, lists, credit notes, re-rating."""

import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from forebay.cli.common import (
    DatabaseOption,
    JsonOption,
    plain,
    print_json,
    print_table,
    with_database,
)

if TYPE_CHECKING:
    from forebay.metering.document import Document
    from forebay.metering.invoicing import Finalized, InvoiceSummary
    from forebay.metering.rerating import Adjustment
    from forebay.store.database import Database

app = typer.Typer(help="Invoices: draft, finalise, show, credit, re-rate.")

Format = Literal["text", "json", "csv", "pdf"]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Where to write; default stdout.")
]
FontOption = Annotated[
    Path | None,
    typer.Option(
        "--font",
        metavar="FILE",
        help="TrueType font for what the PDF's own lacks, such as Chinese.",
    ),
]


@app.callback(invoke_without_command=True)
def invoice(
    context: typer.Context,
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Whose invoice.")
    ] = None,
    month: Annotated[
        str | None,
        typer.Option("--month", metavar="YYYY-MM", help="Of which month, in its time zone."),
    ] = None,
    everyone: Annotated[
        bool,
        typer.Option("--all", help="Every account's; --month may be last, the one that is over."),
    ] = False,
    format: FormatOption = "text",
    finalize: Annotated[
        bool, typer.Option("--finalize", help="Number it and close it for good.")
    ] = False,
    out: OutOption = None,
    font: FontOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Draft an account's invoice of a month, or finalise it; or all accounts'."""
    if context.invoked_subcommand is not None:
        return
    if account is None and not everyone:
        raise typer.BadParameter("is needed", param_hint="--account")
    if month is None:
        raise typer.BadParameter("is needed", param_hint="--month")
    if everyone or account is None:
        if account is not None or out is not None or font is not None or format != "text":
            raise typer.BadParameter("goes with --month, --finalize and --json alone: --all")
        from forebay.cli.invoice_all import bill_everyone

        bill_everyone(month, finalize=finalize, database_url=database_url, json=json)
        return

    async def draft(database: "Database") -> "Finalized":
        from forebay.metering.invoicing import Books, Finalized

        if finalize:
            return await Books(database).finalize(account, month)
        return Finalized(await Books(database).draft(account, month), False)

    found = with_database(database_url, draft)
    document = _write(found.document, "json" if json else format, out, font)
    if document.problems:
        print(f"forebay: cannot be finalised: {'; '.join(document.problems)}", file=sys.stderr)
    if found.new and document.seller is None:
        print("forebay: it names no seller: see forebay seller set", file=sys.stderr)


def _write(data: bytes, format: Format, out: Path | None, font: Path | None) -> "Document":
    import msgspec

    from forebay.metering import document as documents

    document = documents.decode(data)
    if format == "pdf":
        content = _pdf(document, font)
    elif format == "json":
        content = msgspec.json.format(data, indent=2) + b"\n"
    elif format == "csv":
        content = documents.to_csv(document).encode()
    else:
        from forebay.metering.plain_text import to_text

        content = to_text(document).encode()
    if out is not None:
        out.write_bytes(content)
    elif format == "pdf" and sys.stdout.isatty():
        raise typer.BadParameter("is needed for a PDF on a terminal", param_hint="--out")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    return document


def _pdf(document: "Document", font: Path | None) -> bytes:
    from forebay.metering.pdf import MissingGlyph, to_pdf
    from forebay.store.errors import StoreError

    try:
        return to_pdf(document, font=font)
    except MissingGlyph as error:
        raise StoreError(str(error)) from None
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--font") from None


@app.command(name="list")
def list_invoices(
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Only this account's.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """List finalised invoices and credit notes, oldest first."""

    async def work(database: "Database") -> "list[InvoiceSummary]":
        from forebay.metering.invoicing import Books

        return await Books(database).list(account=account)

    found = with_database(database_url, work)
    if json:
        print_json(plain(found))
        return
    print_table(
        ("NUMBER", "KIND", "ACCOUNT", "MONTH", "ISSUED", "NET", "TAX", "TOTAL", "CURRENCY", "TO"),
        [
            (
                *(i.number, i.kind.replace("_", " "), i.account, i.month, i.issued_on),
                *(i.net, i.tax, i.total, i.currency, i.refers_to),
            )
            for i in found
        ],
        {"NET", "TAX", "TOTAL"},
    )


NumberArgument = Annotated[str, typer.Argument(metavar="NUMBER", help="The invoice's number.")]


@app.command()
def show(
    number: NumberArgument,
    format: FormatOption = "text",
    out: OutOption = None,
    font: FontOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show a finalised invoice or credit note."""

    async def work(database: "Database") -> bytes:
        from forebay.metering.invoicing import Books

        return await Books(database).get(number)

    _write(with_database(database_url, work), "json" if json else format, out, font)


@app.command()
def credit(
    number: NumberArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; stands on the credit note.")],
    line: Annotated[
        int | None, typer.Option("--line", metavar="N", help="Take back this line, with its taxes.")
    ] = None,
    amount: Annotated[
        str | None,
        typer.Option("--amount", metavar="X", help="Take back so much, taxes included."),
    ] = None,
    format: FormatOption = "text",
    out: OutOption = None,
    font: FontOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Write a credit note to an invoice."""
    if (line is None) == (amount is None):
        raise typer.BadParameter("give --line or --amount, one of them")

    async def work(database: "Database") -> bytes:
        from forebay.metering.credit import credit as write

        return await write(database, number, reason=reason, line=line, amount=amount)

    _write(with_database(database_url, work), "json" if json else format, out, font)


def read_instant(option: str, text: str) -> datetime:
    """A day (its midnight UTC) or an instant with an offset.

    Raises: typer.BadParameter.
    """
    try:
        if len(text) == 10:
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no day such as 2026-11-01 and no instant such as 2026-11-01T00:00:00Z",
            param_hint=option,
        ) from None
    return instant


@app.command()
def rerate(
    since: Annotated[
        str, typer.Option("--since", metavar="DAY", help="From this day (UTC) or instant.")
    ],
    until: Annotated[
        str, typer.Option("--until", metavar="DAY", help="To before this day (UTC) or instant.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only this model.")
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Only this account.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Rate usage by the prices in force now; the difference goes to the next invoices.

    The months that the range touches are looked at whole. Accounts that cannot be rated are named,
    and the exit code is 1 then; the others are rated all the same.
    """
    first, last = read_instant("--since", since), read_instant("--until", until)

    async def work(database: "Database") -> "list[Adjustment]":
        from forebay.metering.rerating import rerate as run

        return await run(database, since=first, until=last, model=model, account=account)

    from forebay.metering.rerating import NotAllRated

    try:
        found = with_database(database_url, work)
    except NotAllRated as error:
        _show_adjustments(error.adjustments, json)
        raise
    _show_adjustments(found, json)


def _show_adjustments(found: "list[Adjustment]", json: bool) -> None:
    if json:
        print_json(plain(found))
        return
    if not found:
        typer.echo("nothing to correct")
        return
    print_table(
        (
            "ACCOUNT",
            "MONTH",
            "MODEL",
            "KIND",
            "PRICE",
            "NEW PRICE",
            "QUANTITY",
            "AMOUNT",
            "CURRENCY",
        ),
        [
            (
                *(a.account, a.month, a.model, a.token_kind, a.old_price, a.new_price),
                *(a.quantity, a.amount, a.currency),
            )
            for a in found
        ],
        {"PRICE", "NEW PRICE", "QUANTITY", "AMOUNT"},
    )

"""`forebay accounts billing`, `forebay terms`, `forebay seller`: what invoices are made by."""

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from forebay.store.billing import Billing, Seller, Tax
    from forebay.store.database import Database
    from forebay.store.terms import Term

terms = typer.Typer(
    help="Allowances, discounts and fees agreed with accounts.", no_args_is_help=True
)
seller = typer.Typer(help="Who writes the invoices.", no_args_is_help=True)

AddressOption = Annotated[
    list[str] | None, typer.Option("--address", help="A line of the address; repeat.")
]
TaxIdOption = Annotated[str | None, typer.Option("--tax-id", help="Number for the tax office.")]
EmailOption = Annotated[str | None, typer.Option("--email")]


def read_tax(text: str) -> "Tax":
    """Read ``VAT=19``, ``19``, or ``GST=5:usage`` (of usage or fees alone).

    Raises: typer.BadParameter.
    """
    from forebay.store.billing import Tax

    named, equals, rest = text.rpartition("=")
    rate, colon, on = rest.partition(":")
    if (equals and not named) or (colon and on not in ("all", "usage", "fees")):
        raise typer.BadParameter(
            f"{text!r} is no tax such as VAT=19 or GST=5:usage", param_hint="--tax-rate"
        )
    return Tax(name=named or "Tax", rate=rate, on=on if colon else "all")  # type: ignore[arg-type]


def billing(
    account: Annotated[str, typer.Argument(metavar="ID", help="The account's id.")],
    currency: Annotated[
        str | None, typer.Option("--currency", metavar="CODE", help="Of ISO 4217, such as EUR.")
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option("--time-zone", metavar="NAME", help="Of IANA, such as Europe/Berlin."),
    ] = None,
    tax_rate: Annotated[
        list[str] | None,
        typer.Option(
            "--tax-rate",
            metavar="[NAME=]PERCENT",
            help="A tax; repeat for several; :usage or :fees at the end for those alone.",
        ),
    ] = None,
    no_tax: Annotated[bool, typer.Option("--no-tax", help="No tax any more.")] = False,
    tax_id: TaxIdOption = None,
    legal_name: Annotated[
        str | None, typer.Option("--legal-name", help="On the invoice, instead of its name.")
    ] = None,
    address: AddressOption = None,
    email: EmailOption = None,
    payment_days: Annotated[
        int | None, typer.Option("--payment-days", help="Days until an invoice is due.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show how an account is billed, and change what is given."""
    if no_tax and tax_rate:
        raise typer.BadParameter("does not go with --tax-rate", param_hint="--no-tax")
    given: dict[str, Any] = {
        "currency": currency,
        "time_zone": time_zone,
        "taxes": () if no_tax else tuple(map(read_tax, tax_rate)) if tax_rate else None,
        "tax_id": tax_id,
        "legal_name": legal_name,
        "address": tuple(address) if address else None,
        "email": email,
        "payment_days": payment_days,
    }
    changes = {name: value for name, value in given.items() if value is not None}

    async def work(database: "Database") -> "Billing":
        from forebay.store.billing import BillingChanges, BillingStore

        store = BillingStore(database)
        if changes:
            return await store.update(account, BillingChanges(**changes))
        return await store.get(account)

    found = with_database(database_url, work)
    if json:
        print_json({"account": account, **plain(found)})
        return
    lines = [
        ("account", account),
        ("currency", found.currency),
        ("time zone", found.time_zone),
        ("taxes", ", ".join(map(_spelled_tax, found.taxes)) or "none"),
        ("tax id", found.tax_id or "-"),
        ("legal name", found.legal_name or "-"),
        ("address", ", ".join(found.address) or "-"),
        ("e-mail", found.email or "-"),
        ("payment", f"within {found.payment_days} days"),
    ]
    for label, value in lines:
        typer.echo(f"{label:<13}{value}")


def _spelled_tax(tax: "Tax") -> str:
    on = "" if tax.on == "all" else f" on {tax.on}"
    return f"{tax.name} {tax.rate} %{on}"


def read_day(option: str, text: str) -> date:
    """A day, or a month for its first.

    Raises: typer.BadParameter.
    """
    try:
        return date.fromisoformat(f"{text}-01" if len(text) == 7 else text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no day such as 2026-11-01 and no month such as 2026-11",
            param_hint=option,
        ) from None


def _print_terms(found: "list[Term]", json: bool) -> None:
    if json:
        print_json(plain(found))
        return
    print_table(
        ("ID", "ACCOUNT", "KIND", "WHAT", "MODEL", "TOKENS", "FROM", "TO", "DESCRIPTION"),
        [
            (
                *(t.id, t.account, t.kind.replace("_", " "), _what(t), t.model),
                *(t.token_kind, t.starts, t.ends, t.description),
            )
            for t in found
        ],
        {"ID", "WHAT"},
    )


def _what(term: "Term") -> str:
    if term.tokens is not None:
        return f"{term.tokens:,}"
    if term.percent is not None:
        return f"{term.percent} %" + (f" above {term.above}" if term.above else "")
    return term.amount or ""


@terms.command()
def add(
    account: Annotated[str, typer.Argument(metavar="ID", help="The account's id.")],
    kind: Annotated[
        Literal["free-tokens", "free-money", "discount", "fee"],
        typer.Argument(help="What is agreed."),
    ],
    since: Annotated[
        str, typer.Option("--from", metavar="DAY", help="First day, in the account's time zone.")
    ],
    until: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="First day that it holds no more.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="As the invoice says it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Of this model only.")
    ] = None,
    token_kind: Annotated[
        Literal["input", "cached", "cache_write", "output", "reasoning"] | None,
        typer.Option("--token-kind", help="Of these tokens only."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="free-tokens: so many a month.")
    ] = None,
    amount: Annotated[
        str | None, typer.Option("--amount", help="free-money, fee: so much a month.")
    ] = None,
    percent: Annotated[
        str | None, typer.Option("--percent", help="discount: so much of the month's usage.")
    ] = None,
    above: Annotated[
        str | None, typer.Option("--above", help="discount: of what is above this amount.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Agree on an allowance, a discount or a fee."""
    from forebay.store.terms import NewTerm, TermKind

    kinds: dict[str, TermKind] = {
        "free-tokens": "free_tokens",
        "free-money": "free_money",
        "discount": "discount",
        "fee": "fee",
    }
    names = {
        "free-tokens": "Free tokens",
        "free-money": "Free usage",
        "discount": f"Discount {percent} %" + (f" above {above}" if above else ""),
        "fee": "Monthly fee",
    }
    term = NewTerm(
        kind=kinds[kind],
        description=names[kind] if description is None else description,
        starts=read_day("--from", since),
        ends=None if until is None else read_day("--to", until),
        model=model,
        token_kind=token_kind,
        tokens=tokens,
        amount=amount,
        percent=percent,
        above=above,
    )

    async def work(database: "Database") -> "Term":
        from forebay.store.terms import TermStore

        return await TermStore(database).add(account, term)

    _print_term(with_database(database_url, work), json)


def _print_term(term: "Term", json: bool) -> None:
    if json:
        print_json(plain(term))
    else:
        _print_terms([term], False)


@terms.command(name="list")
def list_terms(
    account: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only this account's.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """List terms, those that have ended too."""

    async def work(database: "Database") -> "list[Term]":
        from forebay.store.terms import TermStore

        return await TermStore(database).list(account)

    _print_terms(with_database(database_url, work), json)


@terms.command()
def end(
    term: Annotated[int, typer.Argument(metavar="TERM", help="The term's id.")],
    until: Annotated[
        str, typer.Option("--to", metavar="DAY", help="First day that it holds no more.")
    ],
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Let a term hold until before a day."""
    day = read_day("--to", until)

    async def work(database: "Database") -> "Term":
        from forebay.store.terms import TermStore

        return await TermStore(database).end(term, day)

    _print_term(with_database(database_url, work), json)


def _print_seller(found: "Seller | None", json: bool) -> None:
    if json:
        print_json(plain(found))
        return
    if found is None:
        typer.echo("nobody: forebay seller set --name NAME")
        return
    lines = [
        ("name", found.name),
        ("address", ", ".join(found.address) or "-"),
        ("tax id", found.tax_id or "-"),
        ("e-mail", found.email or "-"),
        ("bank", ", ".join(found.bank) or "-"),
        ("footer", found.footer or "-"),
    ]
    for label, value in lines:
        typer.echo(f"{label:<13}{value}")


@seller.command(name="set")
def set_seller(
    name: Annotated[str, typer.Option("--name", help="Name of the firm.")],
    address: AddressOption = None,
    tax_id: TaxIdOption = None,
    email: EmailOption = None,
    bank: Annotated[
        list[str] | None, typer.Option("--bank", help="A line on where to pay; repeat.")
    ] = None,
    footer: Annotated[
        str | None, typer.Option("--footer", help="A line at the foot of each page.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Say who writes the invoices; what is not given is empty."""

    async def work(database: "Database") -> "Seller":
        from forebay.store.billing import BillingStore, Seller

        return await BillingStore(database).set_seller(
            Seller(
                name=name,
                address=tuple(address or ()),
                tax_id=tax_id,
                email=email,
                bank=tuple(bank or ()),
                footer=footer,
            )
        )

    _print_seller(with_database(database_url, work), json)


@seller.command(name="show")
def show_seller(database_url: DatabaseOption = None, json: JsonOption = False) -> None:
    """Show who writes the invoices."""

    async def work(database: "Database") -> "Seller | None":
        from forebay.store.billing import BillingStore

        return await BillingStore(database).seller()

    _print_seller(with_database(database_url, work), json)

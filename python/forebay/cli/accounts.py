"""`forebay accounts`: create, list, show and change accounts."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from forebay.cli.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    plain,
    print_json,
    print_table,
    with_database,
)
from forebay.cli.limit_options import described
from forebay.cli.log_options import SampleOption, allow_level, described_logs

if TYPE_CHECKING:
    from forebay.store.accounts import Account
    from forebay.store.database import Database
    from forebay.store.limits import Limits

app = typer.Typer(help="Create and manage accounts.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The account's id.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="What people call it; default its id.")
]
WeightOption = Annotated[
    float | None,
    typer.Option("--weight", help="Its part of an engine that is full, beside the others'."),
]
LogOption = Annotated[
    Literal["off", "metadata", "full"] | None,
    typer.Option("--log", help="What is logged of its requests besides usage."),
]


@app.command()
def create(
    account: IdArgument,
    name: NameOption = None,
    weight: WeightOption = None,
    log: LogOption = None,
    log_sample: SampleOption = None,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Make an account; a key made in a new account makes it too."""
    allow_level(log, config)

    async def work(database: "Database") -> "Account":
        from forebay.store.accounts import AccountStore

        return await AccountStore(database).create(
            account,
            name=name,
            weight=1.0 if weight is None else weight,
            log_level=log or "off",
            log_sample=1.0 if log_sample is None else log_sample,
        )

    _print(with_database(database_url, work), json)


def _print(account: "Account", json: bool, limits: "Limits | None" = None) -> None:
    if json:
        extra = {} if limits is None else {"limits": plain(limits)}
        print_json({**plain(account), **extra})
        return
    lines: list[tuple[str, object]] = [
        ("id", account.id),
        ("name", account.name),
        ("weight", f"{account.weight:g}"),
        ("keys", account.keys),
        ("logs", described_logs(account.log_level, account.log_sample)),
        *([] if limits is None else described(limits)),
    ]
    for label, value in lines:
        typer.echo(f"{label:<13}{value}")


@app.command(name="list")
def list_accounts(database_url: DatabaseOption = None, json: JsonOption = False) -> None:
    """List accounts by id."""

    async def work(database: "Database") -> "list[Account]":
        from forebay.store.accounts import AccountStore

        return await AccountStore(database).list()

    accounts = with_database(database_url, work)
    if json:
        print_json(plain(accounts))
        return
    print_table(
        ("ID", "NAME", "WEIGHT", "KEYS"),
        [(a.id, a.name, f"{a.weight:g}", a.keys) for a in accounts],
        {"WEIGHT", "KEYS"},
    )


@app.command()
def show(
    account: IdArgument, database_url: DatabaseOption = None, json: JsonOption = False
) -> None:
    """Show one account and its limits."""

    async def work(database: "Database") -> "tuple[Account, Limits]":
        from forebay.store.accounts import AccountStore
        from forebay.store.limits import LimitStore, Subject

        found = await AccountStore(database).get(account)
        return found, await LimitStore(database).get(Subject("account", account))

    found, limits = with_database(database_url, work)
    _print(found, json, limits)


@app.command(name="set")
def set_account(
    account: IdArgument,
    name: NameOption = None,
    weight: WeightOption = None,
    log: LogOption = None,
    log_sample: SampleOption = None,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Change an account's name, weight or logs; its limits: forebay limits set account:ID."""
    allow_level(log, config)
    given: dict[str, Any] = {
        "name": name,
        "weight": weight,
        "log_level": log,
        "log_sample": log_sample,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter("give at least one change")

    async def work(database: "Database") -> "Account":
        from forebay.store.accounts import AccountChanges, AccountStore

        return await AccountStore(database).update(account, AccountChanges(**changes))

    _print(with_database(database_url, work), json)

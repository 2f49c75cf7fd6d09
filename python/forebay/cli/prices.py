"""`forebay prices`: the price book."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli.common import (
    DatabaseOption,
    JsonOption,
    plain,
    print_json,
    print_table,
    with_database,
)
from forebay.cli.price_files import read_prices, time_option
from forebay.store.errors import BadValue, StoreError

if TYPE_CHECKING:
    from forebay.store.database import Database
    from forebay.store.price_records import Price

app = typer.Typer(help="Set and show what requests cost.", no_args_is_help=True)

IdArgument = Annotated[int, typer.Argument(metavar="ID", help="The price's id.")]
UpstreamOption = Annotated[
    str | None, typer.Option("--upstream", metavar="NAME", help="Where it is served.")
]
AccountOption = Annotated[
    str | None, typer.Option("--account", metavar="ID", help="Whose price it is.")
]


def _amount(name: str, help_text: str) -> Any:
    return typer.Option(f"--{name}", metavar="MONEY", help=help_text)


InputOption = Annotated[str | None, _amount("input", "For 10^6 tokens of input.")]
CachedOption = Annotated[
    str | None, _amount("cached", "For 10^6 of those that were cached; default as --input.")
]
CacheWriteOption = Annotated[
    str | None,
    _amount("cache-write", "For 10^6 of those written to a cache; default as --input."),
]
OutputOption = Annotated[str | None, _amount("output", "For 10^6 tokens of output.")]
ReasoningOption = Annotated[
    str | None, _amount("reasoning", "For 10^6 of those spent on reasoning; default as --output.")
]
RequestOption = Annotated[str | None, _amount("request", "For a request.")]
SecondOption = Annotated[str | None, _amount("second", "For a second of a request's duration.")]
CurrencyOption = Annotated[
    str | None,
    typer.Option("--currency", metavar="CODE", help="Such as EUR; only of an account's price."),
]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="Such as 2026-11-01 or 2026-11-01T09:30Z."),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="When it ends, itself excluded.")
]


def _given(**values: str | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@app.command(name="set")
def set_price(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's own name.")],
    input: InputOption = None,
    output: OutputOption = None,
    cached: CachedOption = None,
    cache_write: CacheWriteOption = None,
    reasoning: ReasoningOption = None,
    request: RequestOption = None,
    second: SecondOption = None,
    upstream: UpstreamOption = None,
    account: AccountOption = None,
    currency: CurrencyOption = None,
    start: FromOption = None,
    end: UntilOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Set a price from a time on, by default now; the one until then ends there.

    With --until, what held before holds again afterwards. Running gateways follow within a second.
    """
    amounts = _given(
        input=input,
        output=output,
        cached=cached,
        cache_write=cache_write,
        reasoning=reasoning,
        request=request,
        second=second,
        currency=currency,
    )
    for name in ("input", "output"):
        if name not in amounts:
            raise typer.BadParameter("is required", param_hint=f"--{name}")
    begins, ends = time_option(start, "--from"), time_option(end, "--until")

    async def work(database: "Database") -> "Price":
        from forebay.store.price_records import NewPrice
        from forebay.store.prices import PriceStore

        new = NewPrice(
            model=model,
            upstream=upstream,
            account=account,
            effective_from=begins,
            effective_to=ends,
            **amounts,
        )
        return await PriceStore(database).set(new)

    _print_one(with_database(database_url, work), json)


@app.command()
def correct(
    price_id: IdArgument,
    input: InputOption = None,
    output: OutputOption = None,
    cached: CachedOption = None,
    cache_write: CacheWriteOption = None,
    reasoning: ReasoningOption = None,
    request: RequestOption = None,
    second: SecondOption = None,
    currency: CurrencyOption = None,
    start: FromOption = None,
    end: UntilOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Put right what a price was; amounts not given stay.

    With --from or --until, for a part of its time. Requests that were rated already keep their
    cost until they are rated anew.
    """
    amounts = _given(
        input=input,
        output=output,
        cached=cached,
        cache_write=cache_write,
        reasoning=reasoning,
        request=request,
        second=second,
        currency=currency,
    )
    begins, ends = time_option(start, "--from"), time_option(end, "--until")

    async def work(database: "Database") -> "list[Price]":
        from forebay.store.price_records import Correction
        from forebay.store.prices import PriceStore

        correction = Correction(effective_from=begins, effective_to=ends, **amounts)
        return await PriceStore(database).correct(price_id, correction)

    _print_many(with_database(database_url, work), json)


@app.command()
def end(
    price_id: IdArgument,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="When; default now.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """End a price without another after it: what is less specific holds from then on."""
    moment = time_option(at, "--at")

    async def work(database: "Database") -> "Price":
        from forebay.store.prices import PriceStore

        return await PriceStore(database).end(price_id, moment)

    _print_one(with_database(database_url, work), json)


@app.command(name="import")
def import_prices(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, or JSON.")],
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Set the prices in a file, all or none of them."""
    prices = read_prices(path)

    async def work(database: "Database") -> "list[Price]":
        from forebay.store.prices import PriceStore

        try:
            return await PriceStore(database).import_(prices)
        except BadValue as error:
            where = re.fullmatch(r"prices\[(\d+)\]\.(.*)", error.field)
            if where is None:
                raise
            row = int(where[1]) + 1
            raise StoreError(f"{path}: row {row}: {where[2]} {error.reason}") from None

    done = with_database(database_url, work)
    if json:
        print_json(plain(done))
    else:
        typer.echo(f"{len(done)} prices set")


@app.command(name="list")
def list_prices(
    model: Annotated[str | None, typer.Option("--model", metavar="NAME")] = None,
    upstream: UpstreamOption = None,
    account: AccountOption = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Those that hold then.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Past and corrected ones too.")] = False,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """List the prices that hold now or will."""
    moment = time_option(at, "--at")

    async def work(database: "Database") -> "list[Price]":
        from forebay.store.price_records import Selection
        from forebay.store.prices import PriceStore

        select = Selection(
            model=model, upstream=upstream, account=account, at=moment, history=everything
        )
        return await PriceStore(database).list(select)

    _print_many(with_database(database_url, work), json)


@app.command()
def show(
    price_id: IdArgument, database_url: DatabaseOption = None, json: JsonOption = False
) -> None:
    """Show one price."""

    async def work(database: "Database") -> "Price":
        from forebay.store.prices import PriceStore

        return await PriceStore(database).get(price_id)

    _print_one(with_database(database_url, work), json)


def _print_one(price: "Price", json: bool) -> None:
    if json:
        print_json(plain(price))
        return
    shown: dict[str, object] = {
        **plain(price),
        "effective_from": _spelled(price.effective_from),
        "effective_to": _spelled(price.effective_to),
        "created_at": _spelled(price.created_at),
        "superseded_at": _spelled(price.superseded_at),
    }
    for name, value in shown.items():
        if value is not None:
            typer.echo(f"{name:<16}{value}")


def _print_many(prices: "list[Price]", json: bool) -> None:
    if json:
        print_json(plain(prices))
        return
    amounts = ("input", "cached", "cache_write", "output", "reasoning", "request", "second")
    head = [name.replace("_", " ").upper() for name in amounts]
    print_table(
        ("ID", "MODEL", "UPSTREAM", "ACCOUNT", "CUR", *head, "FROM", "UNTIL", "CORRECTED"),
        [
            (
                *(price.id, price.model, price.upstream, price.account, price.currency),
                *(getattr(price, name) for name in amounts),
                *(_spelled(price.effective_from), _spelled(price.effective_to)),
                _spelled(price.superseded_at),
            )
            for price in prices
        ],
        {"ID", *head},
    )


def _spelled(unix_s: float | None) -> str | None:
    """A time as people read it, UTC; to the microsecond only where it has them."""
    if unix_s is None:
        return None
    moment = datetime.fromtimestamp(unix_s, UTC).replace(tzinfo=None)
    precise = "microseconds" if moment.microsecond else "seconds"
    return moment.isoformat(timespec=precise) + "Z"

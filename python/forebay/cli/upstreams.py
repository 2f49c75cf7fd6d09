"""`forebay upstreams`: how they stand in a running gateway, and taking one out."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from forebay.cli.common import JsonOption, print_json, print_table
from forebay.cli.live import GatewayError, ask

app = typer.Typer(
    help="Show, drain and undrain the upstreams of a running gateway.", no_args_is_help=True
)

GatewayOption = Annotated[
    str,
    typer.Option("--url", metavar="URL", envvar="FOREBAY_URL", help="The gateway to ask."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The upstream's name.")]
LOCAL = "http://127.0.0.1:8080"

_COLUMNS = ("NAME", "KIND", "STATE", "GETS REQUESTS", "IN FLIGHT", "WAITING", "FIRST TOKEN", "WHY")
_RIGHT = {"IN FLIGHT", "WAITING", "FIRST TOKEN"}


def _row(upstream: dict[str, Any]) -> tuple[Any, ...]:
    limit, first_ms = upstream["limit"], upstream["first_token_ms"]
    taken = f"{upstream['in_flight']}" if limit is None else f"{upstream['in_flight']}/{limit}"
    share = upstream["share"]
    available = upstream["availability"]
    return (
        upstream["name"],
        upstream["kind"],
        upstream["state"],
        f"{available}, {share:.0%}" if available == "open" and share < 1 else available,
        taken,
        upstream["waiting"],
        None if first_ms is None else f"{first_ms:.0f} ms",
        _why(upstream),
    )


def _why(upstream: dict[str, Any]) -> str | None:
    if upstream["ejection"] is not None:
        return f"ejected: {upstream['ejection']['reason']}"
    if upstream["backs_off_s"] is not None:
        return f"left alone for {upstream['backs_off_s']:.0f} s, as it asked"
    if upstream.get("agent") == "away":
        return "its agent is away"
    return None


@app.command(name="list")
def list_upstreams(url: GatewayOption = LOCAL, json: JsonOption = False) -> None:
    """Show all upstreams as one worker of the gateway knows them. Needs FOREBAY_ADMIN_KEY."""
    found = ask(url, "/upstreams")
    try:
        rows = [_row(upstream) for upstream in found["data"]]
    except (KeyError, TypeError) as error:
        raise GatewayError(f"the gateway's answer is not understood: {error!r}") from None
    if json:
        print_json(found["data"])
    elif rows:
        print_table(_COLUMNS, rows, _RIGHT)
    else:
        typer.echo("no upstreams")


@app.command()
def drain(name: NameArgument, url: GatewayOption = LOCAL, json: JsonOption = False) -> None:
    """Let an upstream take no new requests, in all workers of this gateway; what runs goes on."""
    _set(url, name, "drain", json)


@app.command()
def undrain(name: NameArgument, url: GatewayOption = LOCAL, json: JsonOption = False) -> None:
    """Let an upstream take requests again."""
    _set(url, name, "undrain", json)


def _set(url: str, name: str, deed: str, json: bool) -> None:
    found = ask(url, f"/upstreams/{quote(name, safe='')}/{deed}", "POST")
    if json:
        print_json(found)
        return
    try:
        text = f"{name}: {found['availability']}, {found['in_flight']} in flight"
    except KeyError as error:
        raise GatewayError(f"the gateway's answer is not understood: {error!r}") from None
    typer.echo(text)

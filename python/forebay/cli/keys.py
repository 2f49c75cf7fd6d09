"""`forebay keys`: create, list, show, rotate and revoke API keys."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from forebay.cli.common import (
    DatabaseOption,
    JsonOption,
    duration,
    print_json,
    print_table,
    with_database,
)

if TYPE_CHECKING:
    from forebay.store.database import Database
    from forebay.store.keys import KeyRecord

app = typer.Typer(help="Create and manage API keys.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for.")],
    account: Annotated[
        str, typer.Option("--account", help="Who pays; made if it is new.")
    ] = "default",
    kind: Annotated[
        Literal["inference", "admin"], typer.Option("--kind", help="What the key may do.")
    ] = "inference",
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests a minute.")] = None,
    rpm_burst: Annotated[
        int | None, typer.Option("--rpm-burst", min=1, help="Requests at once; default RPM/6.")
    ] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens a minute.")] = None,
    tpm_burst: Annotated[
        int | None, typer.Option("--tpm-burst", min=1, help="Tokens at once; default TPM.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Requests in flight.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="Models it may use; default all.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="90d", help="When it ends by itself.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once and cannot be read back."""
    if rpm_burst is not None and rpm is None:
        raise typer.BadParameter("needs --rpm", param_hint="--rpm-burst")
    if tpm_burst is not None and tpm is None:
        raise typer.BadParameter("needs --tpm", param_hint="--tpm-burst")
    expires_in_s = None if expires is None else duration(expires)
    allowed = None if models is None else [m.strip() for m in models.split(",") if m.strip()]

    async def work(database: "Database") -> "tuple[KeyRecord, str]":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).create(
            name=name,
            account=account,
            kind=kind,
            models=allowed,
            rpm=rpm,
            rpm_burst=rpm_burst,
            tpm=tpm,
            tpm_burst=tpm_burst,
            concurrency=concurrency,
            expires_in_s=expires_in_s,
        )

    record, key = with_database(database_url, work)
    _print_secret(record, key, json)


def _print_secret(record: "KeyRecord", key: str, json: bool) -> None:
    if json:
        print_json({"id": record.id, "key": key})
    else:
        typer.echo(f"id   {record.id}\nkey  {key}")
        typer.echo("Keep the key now: it is not shown again.", err=True)


@app.command(name="list")
def list_keys(
    account: Annotated[
        str | None, typer.Option("--account", help="Only this account's keys.")
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """List keys, revoked ones too, oldest first."""

    async def work(database: "Database") -> "list[KeyRecord]":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).list(account=account)

    records = with_database(database_url, work)
    if json:
        print_json([record.to_public() for record in records])
        return
    columns = ("ID", "NAME", "ACCOUNT", "KIND", "LAST 4", "RPM", "TPM", "IN FLIGHT", "STATE")
    print_table(
        columns,
        [
            (r.id, r.name, r.account, r.kind, r.last4, r.rpm, r.tpm, r.concurrency, _state(r))
            for r in records
        ],
        numeric={"RPM", "TPM", "IN FLIGHT"},
    )


def _state(record: "KeyRecord") -> str:
    if record.revoked:
        return "revoked"
    if record.expires_at is None:
        return "active"
    if record.expires_at <= time.time():
        return "expired"
    return f"until {_moment(record.expires_at)}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@app.command()
def show(key_id: IdArgument, database_url: DatabaseOption = None, json: JsonOption = False) -> None:
    """Show one key's settings; never its secret."""

    async def work(database: "Database") -> "KeyRecord":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).get(key_id)

    record = with_database(database_url, work)
    if json:
        print_json(record.to_public())
        return
    lines: list[tuple[str, object]] = [
        ("id", record.id),
        ("name", record.name),
        ("account", record.account),
        ("kind", record.kind),
        ("ends in", record.last4),
        ("state", _state(record)),
        ("created", _moment(record.created_at)),
        ("models", "all" if record.models is None else ", ".join(record.models)),
        ("requests", _rate(record.rpm, record.rpm_burst)),
        ("tokens", _rate(record.tpm, record.tpm_burst)),
        ("in flight", record.concurrency or "no limit"),
    ]
    if record.previous_expires_at is not None and record.previous_expires_at > time.time():
        lines.append(("old secret", f"good until {_moment(record.previous_expires_at)}"))
    for label, value in lines:
        typer.echo(f"{label:<11}{value}")


def _rate(rate: int | None, burst: int | None) -> str:
    return "no limit" if rate is None else f"{rate} a minute, {burst} at once"


@app.command()
def rotate(
    key_id: IdArgument,
    overlap: Annotated[
        str | None,
        typer.Option("--overlap", metavar="24h", help="How long the old secret stays good too."),
    ] = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Give a key a new secret under the same id."""
    overlap_s = 0.0 if overlap is None else duration(overlap)

    async def work(database: "Database") -> "tuple[KeyRecord, str]":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).rotate(key_id, overlap_s=overlap_s)

    record, key = with_database(database_url, work)
    _print_secret(record, key, json)


@app.command()
def revoke(
    key_id: IdArgument, database_url: DatabaseOption = None, json: JsonOption = False
) -> None:
    """End a key for good; running gateways refuse it within a second."""

    async def work(database: "Database") -> "KeyRecord":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).revoke(key_id)

    record = with_database(database_url, work)
    if json:
        print_json({"id": record.id, "revoked": True})
    else:
        typer.echo(f"revoked {record.id}")

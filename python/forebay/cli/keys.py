"""`forebay keys`: create, list, show, change, rotate and revoke API keys."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from forebay.cli.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    duration,
    plain,
    print_json,
    print_table,
    with_database,
)
from forebay.cli.limit_options import (
    BudgetOption,
    ConcurrencyOption,
    PriorityOption,
    RpmBurstOption,
    RpmOption,
    RpsBurstOption,
    RpsOption,
    StoreLossOption,
    TpmBurstOption,
    TpmOption,
    described,
    given_limits,
    spelled_budget,
)
from forebay.cli.live import UrlOption, live_limits, print_live
from forebay.cli.log_options import SampleOption, allow_level, described_logs

if TYPE_CHECKING:
    from forebay.store.database import Database
    from forebay.store.keys import KeyRecord

app = typer.Typer(help="Create and manage API keys.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]
LogOption = Annotated[
    Literal["off", "metadata", "full", "inherit"] | None,
    typer.Option("--log", help="What is logged of its requests; inherit: what its account has."),
]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for.")],
    account: Annotated[
        str, typer.Option("--account", help="Who pays; made if it is new.")
    ] = "default",
    kind: Annotated[
        Literal["inference", "admin"], typer.Option("--kind", help="What the key may do.")
    ] = "inference",
    rps: RpsOption = None,
    rps_burst: RpsBurstOption = None,
    rpm: RpmOption = None,
    rpm_burst: RpmBurstOption = None,
    tpm: TpmOption = None,
    tpm_burst: TpmBurstOption = None,
    concurrency: ConcurrencyOption = None,
    budget: BudgetOption = None,
    on_store_loss: StoreLossOption = None,
    priority: PriorityOption = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="Models it may use; default all.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="90d", help="When it ends by itself.")
    ] = None,
    log: LogOption = None,
    log_sample: SampleOption = None,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once and cannot be read back."""
    for option, burst, rate in (
        ("rps", rps_burst, rps),
        ("rpm", rpm_burst, rpm),
        ("tpm", tpm_burst, tpm),
    ):
        if burst is not None and rate is None:
            raise typer.BadParameter(f"needs --{option}", param_hint=f"--{option}-burst")
    settings = given_limits(
        rps=rps,
        rps_burst=rps_burst,
        rpm=rpm,
        rpm_burst=rpm_burst,
        tpm=tpm,
        tpm_burst=tpm_burst,
        concurrency=concurrency,
        budget_text=budget,
        on_store_loss=on_store_loss,
    )
    if priority is not None:
        settings["priority"] = priority
    expires_in_s = None if expires is None else duration(expires)
    allowed = None if models is None else _names(models)
    allow_level(log, config)
    settings |= {"log_level": None if log == "inherit" else log, "log_sample": log_sample}

    async def work(database: "Database") -> "tuple[KeyRecord, str]":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).create(
            name=name,
            account=account,
            kind=kind,
            models=allowed,
            expires_in_s=expires_in_s,
            **settings,
        )

    record, key = with_database(database_url, work)
    _print_secret(record, key, json)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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
        print_json([plain(record.to_public()) for record in records])
        return
    columns = ("ID", "NAME", "ACCOUNT", "KIND", "LAST 4", "RPM", "TPM", "IN FLIGHT", "BUDGET")
    print_table(
        (*columns, "STATE"),
        [
            (
                *(r.id, r.name, r.account, r.kind, r.last4, r.rpm, r.tpm, r.concurrency),
                *(spelled_budget(r), _state(r)),
            )
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
def show(
    key_id: IdArgument,
    url: UrlOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show one key's settings, never its secret.

    With --url, or FOREBAY_URL, also what remains of its limits in that running gateway, which
    FOREBAY_ADMIN_KEY opens.
    """

    async def work(database: "Database") -> "KeyRecord":
        from forebay.store.keys import KeyStore

        return await KeyStore(database).get(key_id)

    record = with_database(database_url, work)
    live = None if url is None else live_limits(url, key_id)
    if json:
        shown = plain(record.to_public())
        print_json(shown if live is None else {**shown, "live": live})
        return
    _print_key(record)
    if live is not None:
        typer.echo()
        print_live(live)


def _print_key(record: "KeyRecord") -> None:
    lines: list[tuple[str, object]] = [
        ("id", record.id),
        ("name", record.name),
        ("account", record.account),
        ("kind", record.kind),
        ("ends in", record.last4),
        ("state", _state(record)),
        ("created", _moment(record.created_at)),
        ("models", "all" if record.models is None else ", ".join(record.models)),
        ("priority", record.priority),
        ("logs", described_logs(record.log_level, record.log_sample)),
        *described(record),
    ]
    for model, limits in sorted(record.per_model.items()):
        lines += [("on model", model), *((f"  {label}", v) for label, v in described(limits))]
    if record.previous_expires_at is not None and record.previous_expires_at > time.time():
        lines.append(("old secret", f"good until {_moment(record.previous_expires_at)}"))
    for label, value in lines:
        typer.echo(f"{label:<13}{value}")


@app.command(name="set")
def set_key(
    key_id: IdArgument,
    name: Annotated[str | None, typer.Option("--name", help="What the key is for.")] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="Models it may use; or: all.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="90d", help="From now; or: never.")
    ] = None,
    priority: PriorityOption = None,
    log: LogOption = None,
    log_sample: SampleOption = None,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Change a key's name, models, expiry, priority or logs; limits: forebay limits set key:ID.

    --log inherit takes level and sample of the account again.
    """
    allow_level(log, config)
    changes: dict[str, Any] = {
        "name": name,
        "priority": priority,
        "log_level": log,
        "log_sample": log_sample,
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    if log == "inherit":
        changes |= {"log_level": None, "log_sample": log_sample}
    if models is not None:
        changes["models"] = None if models == "all" else tuple(_names(models))
    if expires is not None:
        never = expires == "never"
        changes["expires_at"] = None if never else time.time() + duration(expires)
    if not changes:
        raise typer.BadParameter("give at least one change")

    async def work(database: "Database") -> "KeyRecord":
        from forebay.store.keys import KeyChanges, KeyStore

        return await KeyStore(database).update(key_id, KeyChanges(**changes))

    record = with_database(database_url, work)
    if json:
        print_json(plain(record.to_public()))
    else:
        _print_key(record)


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

"""`forebay limits`: of keys, accounts, models, and keys on single models."""

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
from forebay.cli.limit_options import (
    BudgetOption,
    ConcurrencyOption,
    RpmBurstOption,
    RpmOption,
    RpsBurstOption,
    RpsOption,
    StoreLossOption,
    TpmBurstOption,
    TpmOption,
    changes_of,
    described,
    given_limits,
    spelled_budget,
)

if TYPE_CHECKING:
    from forebay.store.database import Database
    from forebay.store.limits import LimitChanges, Limits, SubjectLimits

app = typer.Typer(help="Set and show limits of keys, accounts and models.", no_args_is_help=True)

SubjectArgument = Annotated[
    str,
    typer.Argument(metavar="SUBJECT", help="Whose: key:ID, account:ID or model:NAME."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Of a key: its limits on this model.")
]
_CLEARED = {
    "rps": ("rps",),
    "rps_burst": ("rps_burst",),
    "rpm": ("rpm",),
    "rpm_burst": ("rpm_burst",),
    "tpm": ("tpm",),
    "tpm_burst": ("tpm_burst",),
    "concurrency": ("concurrency",),
    "budget": ("budget", "budget_period"),
    "on_store_loss": ("on_store_loss",),
}


def _parse(subject: str, model: str | None) -> tuple[str, str]:
    kind, colon, name = subject.partition(":")
    if not (colon and name) or kind not in ("key", "account", "model"):
        raise typer.BadParameter(f"{subject!r} is no key:ID, account:ID or model:NAME")
    if model is not None and kind != "key":
        raise typer.BadParameter("goes with key:ID only", param_hint="--model")
    return kind, name


async def _changed(
    database: "Database", kind: str, name: str, model: str | None, changes: "LimitChanges"
) -> "Limits":
    from forebay.store.keys import KeyChanges, KeyStore
    from forebay.store.limits import FIELDS, LimitStore, limits_of

    if kind == "key" and model is None:
        of_key = KeyChanges(**{field: getattr(changes, field) for field in FIELDS})
        return limits_of(await KeyStore(database).update(name, of_key))
    return await LimitStore(database).change(_subject(kind, name, model), changes)


def _subject(kind: str, name: str, model: str | None) -> Any:
    from forebay.store.limits import Subject

    if kind == "key":
        return Subject("key_model", name, model)
    return Subject("account" if kind == "account" else "model", name)


def _print(kind: str, name: str, model: str | None, limits: "Limits", json: bool) -> None:
    scope = kind if model is None else "key_model"
    if json:
        subject = {"scope": scope, "id": name, "model": model}
        print_json({**subject, **plain(limits)})
        return
    for label, value in [(kind, name), *([("model", model)] if model else []), *described(limits)]:
        typer.echo(f"{label:<13}{value}")


@app.command(name="set")
def set_limits(
    subject: SubjectArgument,
    model: ModelOption = None,
    rps: RpsOption = None,
    rps_burst: RpsBurstOption = None,
    rpm: RpmOption = None,
    rpm_burst: RpmBurstOption = None,
    tpm: TpmOption = None,
    tpm_burst: TpmBurstOption = None,
    concurrency: ConcurrencyOption = None,
    budget: BudgetOption = None,
    on_store_loss: StoreLossOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Set limits; those not given stay. Running gateways follow within a second."""
    kind, name = _parse(subject, model)
    changes = changes_of(
        given_limits(
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
    )

    async def work(database: "Database") -> "Limits":
        return await _changed(database, kind, name, model, changes)

    _print(kind, name, model, with_database(database_url, work), json)


@app.command()
def clear(
    subject: SubjectArgument,
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LIMIT]...", help=f"Which: {', '.join(_CLEARED)}; default all."),
    ] = None,
    model: ModelOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Take limits away, by name or all of them."""
    from forebay.store.limits import LimitChanges

    kind, name = _parse(subject, model)
    named = [field.replace("-", "_") for field in fields or _CLEARED]
    for field in named:
        if field not in _CLEARED:
            raise typer.BadParameter(f"{field!r} is no limit (choose from {', '.join(_CLEARED)})")
    changes = LimitChanges(**{column: None for field in named for column in _CLEARED[field]})

    async def work(database: "Database") -> "Limits":
        return await _changed(database, kind, name, model, changes)

    _print(kind, name, model, with_database(database_url, work), json)


@app.command()
def show(
    subject: SubjectArgument,
    model: ModelOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show the limits of one subject."""
    kind, name = _parse(subject, model)

    async def work(database: "Database") -> "Limits":
        from forebay.store.keys import KeyStore
        from forebay.store.limits import LimitStore, limits_of

        if kind == "key" and model is None:
            return limits_of(await KeyStore(database).get(name))
        return await LimitStore(database).get(_subject(kind, name, model))

    _print(kind, name, model, with_database(database_url, work), json)


@app.command(name="list")
def list_limits(database_url: DatabaseOption = None, json: JsonOption = False) -> None:
    """List the limits of accounts, models, and keys on single models (keys: forebay keys list)."""

    async def work(database: "Database") -> "list[SubjectLimits]":
        from forebay.store.limits import Limits, LimitStore

        found = await LimitStore(database).list()
        return [subject for subject in found if subject.limits != Limits()]

    found = with_database(database_url, work)
    if json:
        print_json(
            [{"scope": s.scope, "id": s.id, "model": s.model, **plain(s.limits)} for s in found]
        )
        return
    print_table(
        ("WHO", "NAME", "MODEL", "RPS", "RPM", "TPM", "IN FLIGHT", "BUDGET", "STORE LOST"),
        [
            (
                *(s.scope.replace("_", " on "), s.id, s.model),
                *(s.limits.rps, s.limits.rpm, s.limits.tpm, s.limits.concurrency),
                *(spelled_budget(s.limits), s.limits.on_store_loss),
            )
            for s in found
        ],
        {"RPS", "RPM", "TPM", "IN FLIGHT"},
    )

"""`forebay audit`: who changed what, and who looked into prompt logs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli.common import (
    DatabaseOption,
    JsonOption,
    duration,
    plain,
    print_json,
    print_table,
    spelled_moment,
    with_database,
)

if TYPE_CHECKING:
    from forebay.store.audit import AuditEntry
    from forebay.store.database import Database


def audit(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="7d", help="How far back; default as far as it goes."),
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option("--actor", help="Whose: key:ID, cli:USER@HOST, gateway; or key, cli, sql."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="KIND[:ID]", help="On what, such as account:acme."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Most entries to print.")
    ] = 100,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Print the audit log, the newest first."""
    since_s = None if since is None else duration(since)

    async def work(database: "Database") -> "list[AuditEntry]":
        from forebay.store.audit import AuditStore

        return await AuditStore(database).list(
            since_s=since_s, actor=actor, subject=subject, limit=limit
        )

    entries = with_database(database_url, work)
    if json:
        print_json(plain(entries))
        return
    print_table(
        ("WHEN UTC", "WHO", "FROM", "WHAT", "ON", "CHANGES"),
        [
            (
                *(spelled_moment(e.at), e.actor, e.remote, e.action),
                f"{e.subject_kind}:{e.subject_id}" if e.subject_id else e.subject_kind,
                _changes(e.before, e.after),
            )
            for e in entries
        ],
        set(),
    )


def _changes(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What differs; of what is new or gone, all that was set."""
    if before is None or after is None:
        fields = before or after or {}
        return ", ".join(f"{name}={_spelled(v)}" for name, v in fields.items() if v is not None)
    return ", ".join(
        f"{name} {_spelled(before.get(name))} -> {_spelled(value)}"
        for name, value in after.items()
        if value != before.get(name)
    )


def _spelled(value: Any) -> str:
    import json

    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""`forebay logs`: find and show logged prompts, and encrypt them anew."""

from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    moment,
    plain,
    print_json,
    print_table,
    prompt_log_settings,
    spelled_moment,
    with_database,
)

if TYPE_CHECKING:
    from pathlib import Path

    from forebay.store.database import Database
    from forebay.store.prompt_log_store import PromptLog, PromptLogContents, PromptLogStore

app = typer.Typer(
    help="Find and show logged prompts. Each look is written to the audit log.",
    no_args_is_help=True,
)


def _store(database: "Database", config: "Path | None") -> "PromptLogStore":
    from forebay.config.schema import PromptLogs
    from forebay.store.prompt_cipher import PromptCipher
    from forebay.store.prompt_log_store import PromptLogStore

    return PromptLogStore(database, PromptCipher(prompt_log_settings(config) or PromptLogs()))


@app.command()
def search(
    account: Annotated[str | None, typer.Option("--account", help="Only this account's.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Only this key's.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="From then on: 24h back, or a date (UTC)."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="Before then.")
    ] = None,
    status: Annotated[
        int | None, typer.Option("--status", help="Only answers with this status.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="Only this request.")
    ] = None,
    contains: Annotated[
        str | None,
        typer.Option("--contains", metavar="TEXT", help="Only with this text in them."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=10_000, help="Most logs to print.")
    ] = 100,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """List logs, the newest first, without what they say.

    --contains opens each log that fits otherwise: narrow it by the other options.
    """
    from forebay.store.prompt_log_store import MAX_PAGE, PromptLogFilter

    wanted = PromptLogFilter(
        account=account,
        key=key,
        model=model,
        since=None if since is None else moment(since),
        until=None if until is None else moment(until),
        status=status,
        request_id=request_id,
        contains=contains,
    )

    async def work(database: "Database") -> "tuple[list[PromptLog], int]":
        store = _store(database, config)
        found: list[PromptLog] = []
        unreadable, after = 0, None
        while True:
            most = min(limit - len(found), MAX_PAGE)
            page = await store.search(wanted, after=after, limit=most)
            found += page.data
            unreadable += page.unreadable
            after = page.next
            if after is None or len(found) >= limit:
                return found, unreadable

    logs, unreadable = with_database(database_url, work)
    if unreadable:
        typer.echo(
            f"forebay: {unreadable} logs could not be opened to look for the text"
            " (forebay logs show says why)",
            err=True,
        )
    if json:
        print_json(plain(logs))
        return
    columns = ("EVENT", "WHEN UTC", "ACCOUNT", "KEY", "MODEL", "STATUS", "LOGGED")
    print_table(
        (*columns, "REQUEST B", "ANSWER B"),
        [
            (
                *(log.event_id, spelled_moment(log.at), log.account, log.key_id, log.model),
                *(log.status, log.level, log.request_bytes, log.answer_bytes),
            )
            for log in logs
        ],
        {"STATUS", "REQUEST B", "ANSWER B"},
    )


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(metavar="EVENT", help="The log's id.")],
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show one log with what was said."""

    async def work(database: "Database") -> "PromptLogContents":
        return await _store(database, config).show(event_id)

    log = with_database(database_url, work)
    if json:
        print_json(plain(log))
        return
    lines: list[tuple[str, object]] = [
        ("event", log.event_id),
        ("when", f"{spelled_moment(log.at)} UTC"),
        ("request id", log.request_id),
        ("account", log.account),
        ("key", log.key_id),
        ("model", log.model),
        ("status", log.status),
        ("logged", log.level),
        ("blotted out", log.redactions),
    ]
    for label, value in lines:
        typer.echo(f"{label:<13}{'-' if value is None else value}")
    for part, body, size, cut in (
        ("request", log.request, log.request_bytes, log.request_truncated),
        ("answer", log.answer, log.answer_bytes, log.answer_truncated),
    ):
        typer.echo(f"\n{part}, {size} bytes{', of which the beginning' if cut else ''}:")
        typer.echo("not logged" if body is None else body)


@app.command()
def rotate(
    config: ConfigOption = None, database_url: DatabaseOption = None, json: JsonOption = False
) -> None:
    """Encrypt with the active key what older keys hold; it may be cut off and begun again."""

    async def work(database: "Database") -> "tuple[int, dict[str, int]]":
        store = _store(database, config)
        rotated, unreadable, after = 0, dict[str, int](), None
        while True:
            step = await store.rotate(after=after)
            rotated += step.rotated
            for name, count in step.unreadable.items():
                unreadable[name] = unreadable.get(name, 0) + count
            after = step.next
            if after is None:
                return rotated, unreadable

    rotated, unreadable = with_database(database_url, work)
    if json:
        print_json({"rotated": rotated, "unreadable": unreadable})
    else:
        typer.echo(f"rotated {rotated}")
    if unreadable:
        names = ", ".join(f"{count} under {name!r}" for name, count in sorted(unreadable.items()))
        typer.echo(f"forebay: logs that do not open stay as they are: {names}", err=True)
        raise typer.Exit(1)

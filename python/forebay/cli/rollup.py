"""`forebay rollup`: what the gateway's scheduler does for the ledger, by hand or by cron."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    config_path,
    duration,
    print_json,
    with_database,
)

if TYPE_CHECKING:
    from forebay.store.database import Database


def rollup(
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="7d",
            help="Recount every day from then on; default those with new events.",
        ),
    ] = None,
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Recount sums from events, make partitions ahead, and apply the file's retention.

    A running gateway does this by itself. Sums that differ from their events are replaced, and
    the exit code is 3.
    """
    import os

    now = datetime.now(UTC)
    first = None
    if since is not None:
        try:
            first = (now - timedelta(seconds=duration(since))).date()
        except OverflowError:
            raise typer.BadParameter("--since is too long ago") from None
    kept: dict[str, int | None] = {}
    path = config_path(config)
    if path is not None or os.environ.get("FOREBAY_CONFIG"):
        from forebay.config import load

        loaded = load(path, os.environ)
        retention = loaded.retention
        kept = {name: getattr(retention, name) for name in retention.__struct_fields__}
        kept["prompt_log_days"] = loaded.prompt_logs.retention_days

    async def work(database: "Database") -> dict[str, Any]:
        from forebay.metering.scheduler import by_hand

        async with database.pool.acquire() as connection:
            return await by_hand(connection, now, since=first, **kept)

    done = with_database(database_url, work)
    if json:
        print_json(done)
    else:
        found = done["recount"]
        typer.echo(f"recounted {found['days']} days: {found['differences']} sums replaced")
        for day in found["differing"]:
            typer.echo(f"  {day} differed from its events")
        for label, months in (
            ("made partitions", done["partitions"]["partitions"]),
            ("dropped months", done["retention"]["dropped"]),
        ):
            if months:
                typer.echo(f"{label}: {', '.join(months)}")
    if done["recount"]["differences"]:
        raise typer.Exit(3)

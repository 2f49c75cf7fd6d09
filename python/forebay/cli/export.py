"""`forebay export`: events and sums as files for others."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from forebay.cli.common import DatabaseOption, duration, with_database

if TYPE_CHECKING:
    from forebay.store.database import Database


def moment(text: str, now: datetime) -> datetime:
    """Read ``7d`` as so long before `now`, ``2026-11-01`` or ``2026-11-01T12:00Z`` as it is.

    A time without a zone is UTC. Raises: typer.BadParameter.
    """
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return now - timedelta(seconds=duration(text))
        except (typer.BadParameter, OverflowError):
            raise typer.BadParameter(
                f"{text!r} is neither a time such as 2026-11-01 or 2026-11-01T12:00Z"
                " nor a duration such as 7d"
            ) from None
    return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)


def export(
    what: Annotated[
        Literal["usage", "rollups"],
        typer.Argument(help="One row a request, or one for each hour, key, model and price."),
    ],
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="2026-11-01, or 7d for 7 days ago.")
    ],
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="Up to before this; default now."),
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Of this account alone.")
    ] = None,
    format: Annotated[
        Literal["parquet", "csv", "openmeter", "stripe"], typer.Option("--format", help="How.")
    ] = "csv",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; default the standard output."),
    ] = None,
    database_url: DatabaseOption = None,
) -> None:
    """Write usage, or its sums by hour, as Parquet, CSV, or events for OpenMeter or Stripe.

    Sums are of hours that had ended by then.
    """
    now = datetime.now(UTC)
    first, last = moment(since, now), now if until is None else moment(until, now)
    if what == "rollups":
        last = last.replace(minute=0, second=0, microsecond=0)
    if first > last:
        raise typer.BadParameter("--since is after --until")
    if format == "parquet" and out is None:
        raise typer.BadParameter("Parquet needs --out FILE")

    async def work(database: "Database") -> int:
        from forebay.metering.export import export as write
        from forebay.metering.export import whole_file

        async def to(target: IO[bytes]) -> int:
            return await write(
                database, what, format, target, since=first, until=last, account=account
            )

        if out is None:
            return await to(sys.stdout.buffer)
        with whole_file(out) as target:
            return await to(target)

    rows = with_database(database_url, work)
    if out is not None:
        typer.echo(f"{rows} rows in {out}")

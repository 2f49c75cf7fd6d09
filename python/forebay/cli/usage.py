"""`forebay usage`: what was used, by key, model, account, upstream, day or month."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from forebay.cli.common import (
    DatabaseOption,
    JsonOption,
    duration,
    plain,
    print_json,
    print_table,
    with_database,
)

if TYPE_CHECKING:
    from forebay.metering.report import UsageRow
    from forebay.store.database import Database


def usage(
    by: Annotated[
        Literal["key", "model", "account", "upstream", "day", "month"],
        typer.Option("--by", help="How to group."),
    ] = "key",
    since: Annotated[
        str, typer.Option("--since", metavar="7d", help="How far back, such as 24h or 30d.")
    ] = "7d",
    account: Annotated[
        str | None, typer.Option("--account", metavar="ID", help="Of this account alone.")
    ] = None,
    format: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="How to print.")
    ] = "table",
    database_url: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Sum up requests, tokens and cost, by whole hours."""
    since_s = duration(since)

    async def work(database: "Database") -> "list[UsageRow]":
        from forebay.metering.report import usage as report

        return await report(database, by=by, since_s=since_s, account=account)

    rows = with_database(database_url, work)
    if json or format == "json":
        print_json(plain(rows))
        return
    if format == "csv":
        import csv

        from forebay.metering.report import UsageRow

        fields = UsageRow.__struct_fields__
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows([getattr(row, field) for field in fields] for row in rows)
        return
    first = by.upper()
    sums = [
        "REQUESTS",
        "FAILED",
        "PROMPT",
        "CACHED",
        "CACHE WRITE",
        "COMPLETION",
        "REASONING",
        "COST USD",
        "TTFT P50 MS",
    ]
    columns = [first, *(["NAME"] if by == "key" else []), *sums]
    print_table(
        columns,
        [
            (
                row.group,
                *((row.label,) if by == "key" else ()),
                row.requests,
                row.failed,
                row.prompt_tokens,
                row.cached_tokens,
                row.cache_write_tokens,
                row.completion_tokens,
                row.reasoning_tokens,
                row.cost,
                None if row.ttft_ms_p50 is None else f"{row.ttft_ms_p50:.1f}",
            )
            for row in rows
        ],
        set(sums),
    )

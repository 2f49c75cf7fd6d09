"""`forebay migrate`: the database's schema, before anything needs it."""

import typer

from forebay.cli.common import DatabaseOption, JsonOption, database_url, print_json


def migrate(database_url_: DatabaseOption = None, json: JsonOption = False) -> None:
    """Bring the database's tables up to date.

    The gateway and every other command do so by themselves. This is for those who want it done
    before a roll-out begins, once, and to know that it is.
    """
    import asyncio

    from forebay.config.schema import check_database_url
    from forebay.store.database import Database
    from forebay.store.errors import StoreError

    url = database_url(database_url_)
    try:
        check_database_url(url)
    except ValueError as error:
        raise StoreError(f"the database URL {error}") from None

    async def work() -> tuple[list[int], int]:
        async with await Database.connect(url, max_size=1) as database:
            return await database.migrate(), await database.schema_version()

    applied, version = asyncio.run(work())
    if json:
        print_json({"applied": applied, "version": version})
    elif applied:
        typer.echo(f"applied {len(applied)} steps; the schema is at {version}")
    else:
        typer.echo(f"nothing to do; the schema is at {version}")

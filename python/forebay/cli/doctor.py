"""`forebay doctor`: is everything there that the gateway needs?"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from forebay.cli.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    bad_pattern,
    config_path,
    dev_state,
)
from forebay.cli.common import print_json as _print_json
from forebay.config.errors import ConfigError
from forebay.store.errors import StoreError

if TYPE_CHECKING:
    from forebay.config.schema import Config

_TIMEOUT_S = 3.0

ChatOption = Annotated[
    bool,
    typer.Option("--chat", help="Have each target write one token, which starts and costs."),
]


class Finding(NamedTuple):
    """One check's result, in a line.

    hint: what to do where it is not well. steps: what was looked at one after the other.
    """

    check: str
    ok: bool
    detail: str
    hint: str | None = None
    steps: Sequence[dict[str, Any]] = ()


def doctor(
    config: ConfigOption = None,
    database_url: DatabaseOption = None,
    chat: ChatOption = False,
    json: JsonOption = False,
) -> None:
    """Check configuration, database and upstreams; exit 1 if one is not well.

    Of each upstream: is it reachable, does it take its key, does it have the configured models,
    and is it ready?
    """
    import asyncio

    findings = asyncio.run(_examine(config_path(config), database_url, chat=chat))
    if json:
        _print_json([finding._asdict() for finding in findings])
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            mark = "ok  " if finding.ok else "FAIL"
            typer.echo(f"{mark}  {finding.check:<{width}}  {finding.detail}")
            if finding.hint is not None:
                typer.echo(f"      {'':<{width}}  -> {finding.hint}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


async def _examine(
    path: "os.PathLike[str] | None", database_url: str | None, *, chat: bool
) -> list[Finding]:
    from pathlib import Path

    from forebay.config import load

    findings = []
    state = dev_state()
    config: Config | None = None
    bare = path is None and not any(map(os.environ.get, ("FOREBAY_CONFIG", "INFERENCE_URL")))
    if bare and state is not None:
        # `forebay dev` makes its own configuration; ask the gateway itself.
        findings.append(await _http("gateway", f"{state.get('http')}/readyz"))
    else:
        try:
            config = load(None if path is None else Path(path), os.environ, bad_pattern=bad_pattern)
            detail = f"{len(config.upstreams)} upstreams, {len(config.models)} models"
            findings.append(Finding("configuration", True, detail))
        except ConfigError as error:
            findings.append(Finding("configuration", False, str(error)))
    url = database_url or (config.database_url if config else None)
    url = url or os.environ.get("DATABASE_URL") or (state or {}).get("database_url")
    database = await _database(url)
    findings.append(database)
    if database.ok and url:
        findings.append(await _ledger(url))
    if config is not None:
        findings += await _upstreams(config, chat=chat)
    return findings


async def _database(url: str | None) -> Finding:
    if not url:
        return Finding("database", False, "none: set DATABASE_URL or give --database-url")
    import asyncpg

    from forebay.store.database import Database, migrations

    try:
        async with await Database.connect(url, max_size=1) as database:
            server = await database.pool.fetchval("SHOW server_version")
            have, want = await database.schema_version(), migrations()[-1].version
    except (StoreError, ValueError, asyncpg.PostgresError) as error:
        return Finding("database", False, str(error))
    detail = f"PostgreSQL {str(server).split()[0]}, schema {have} of {want}"
    if have < want:
        return Finding("database", False, f"{detail}: forebay serve or any keys command migrates")
    return Finding("database", True, detail)


async def _ledger(url: str) -> Finding:
    import asyncpg

    from forebay.metering.scheduler import last_runs
    from forebay.store.database import Database

    try:
        async with await Database.connect(url, max_size=1) as database:
            runs = await last_runs(database)
    except (StoreError, asyncpg.PostgresError) as error:
        return Finding("ledger", False, str(error))
    failed = [f"{run.name} failed: {run.error}" for run in runs if run.error is not None]
    if failed:
        return Finding("ledger", False, "; ".join(failed))
    if not runs:
        return Finding("ledger", True, "no job has run yet: a gateway runs them, or forebay rollup")
    return Finding("ledger", True, ", ".join(f"{run.name} {run.ago} ago" for run in runs))


async def _upstreams(config: "Config", *, chat: bool) -> list[Finding]:
    from forebay.cli.doctor_upstreams import examine

    findings = []
    for name, steps in await examine(config, chat=chat):
        failed = [step for step in steps if not step.ok]
        said = [f"{step.step}: {step.detail}" for step in failed or steps]
        hints = [step.hint for step in failed if step.hint]
        findings.append(
            Finding(
                f"upstream {name}",
                not failed,
                "; ".join(said),
                "; ".join(hints) or None,
                [step._asdict() for step in steps],
            )
        )
    return findings


async def _http(check: str, url: str) -> Finding:
    import asyncio

    return await asyncio.to_thread(_get, check, url)


def _get(check: str, url: str) -> Finding:
    import time
    import urllib.error
    import urllib.request

    headers = {"user-agent": "forebay-doctor"}
    # The gateway dials upstreams itself, so no proxy of the environment here either.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    start = time.perf_counter()
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as reply:
            took_ms = (time.perf_counter() - start) * 1e3
            return Finding(check, True, f"{url} answered {reply.status} in {took_ms:.0f} ms")
    except urllib.error.HTTPError as error:
        return Finding(check, False, f"{url} answered {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Finding(check, False, f"{url}: {reason}")

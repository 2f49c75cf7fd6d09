"""What several commands share: options, the database to use, output."""

import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from forebay.store.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from forebay.config.schema import PromptLogs
    from forebay.store.database import Database

T = TypeVar("T")

DEV_STATE = Path(".forebay") / "dev.json"
"""Written by a running `forebay dev`: ``{"database_url", "http", "pid"}``."""

DEFAULT_CONFIG = Path("forebay.yaml")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration file."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="PostgreSQL address; default DATABASE_URL, then that of a running forebay dev.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|h|d|w)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def fail(message: str, code: int) -> int:
    """Print one line to stderr and return `code`."""
    print("forebay:", " ".join(message.split()), file=sys.stderr)
    return code


def duration(text: str) -> float:
    """Read ``90d``, ``12h``, ``30m``, ``45s`` or ``2w`` as seconds.

    Raises: typer.BadParameter.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no duration such as 90d, 12h, 30m or 45s")
    return float(match[1]) * _SECONDS[match[2]]


def moment(text: str) -> float:
    """Read a date such as 2026-11-26 or 2026-11-26T13:00 (UTC unless it says otherwise), or a
    duration such as 24h, counted back from now, as Unix seconds.

    Raises: typer.BadParameter.
    """
    import time
    from datetime import UTC, datetime

    if _DURATION.fullmatch(text.strip()):
        return time.time() - duration(text)
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a date such as 2026-11-26T13:00 nor a duration such as 24h"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def spelled_moment(seconds: float) -> str:
    """Unix seconds for people, UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def check_address(option: str, value: str | None) -> None:
    """Refuse a bad HOST:PORT before anything starts.

    Raises: typer.BadParameter.
    """
    from forebay.config.schema import parse_address

    if value is not None:
        try:
            parse_address(value)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None


def config_path(given: Path | None) -> Path | None:
    """The file to read: the option, FOREBAY_CONFIG, ./forebay.yaml if present, or none."""
    if given is None and not os.environ.get("FOREBAY_CONFIG") and DEFAULT_CONFIG.is_file():
        return DEFAULT_CONFIG
    return given


def dev_state() -> dict[str, Any] | None:
    """What a running `forebay dev` of this folder wrote; None when none runs."""
    try:
        state = json.loads(DEV_STATE.read_text())
        os.kill(int(state["pid"]), 0)
    except PermissionError:
        pass  # alive, as another user
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if isinstance(state, dict) else None


def database_url(given: str | None) -> str:
    """The database to use.

    Raises: StoreError when there is none.
    """
    if given or (given := os.environ.get("DATABASE_URL")):
        return given
    state = dev_state()
    if state is None or not state.get("database_url"):
        raise StoreError(
            "no database: give --database-url, set DATABASE_URL, or run this where forebay dev runs"
        )
    return str(state["database_url"])


def with_database(given: str | None, work: "Callable[[Database], Awaitable[T]]") -> T:
    """Run `work` on the database, its schema brought up to date first.

    Raises: StoreError.
    """
    import asyncio

    from forebay.config.schema import check_database_url
    from forebay.store.actor import Actor, acting
    from forebay.store.database import Database

    url = database_url(given)
    try:
        check_database_url(url)
    except ValueError as error:
        raise StoreError(f"the database URL {error}") from None

    async def run() -> T:
        with acting(Actor(_caller())):
            async with await Database.connect(url, max_size=1) as database:
                await database.migrate()
                return await work(database)

    return asyncio.run(run())


def _caller() -> str:
    """Who runs the command, as the audit log has it: the system's word, not the environment's."""
    import pwd
    import socket

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"cli:{user}@{socket.gethostname()}"


def bad_pattern(patterns: list[str]) -> tuple[int | None, str] | None:
    """What the core says of ``prompt_logs.patterns``, for `forebay.config.load`."""
    # Imported only where there are some: the core is large, and a supervisor does without it.
    from forebay import _core

    return _core.bad_pattern(patterns)


def prompt_log_settings(given: Path | None) -> "PromptLogs | None":
    """``prompt_logs`` of the configuration file; None where there is no file.

    Raises: ConfigError.
    """
    path = config_path(given)
    if path is None and not os.environ.get("FOREBAY_CONFIG"):
        return None
    from forebay.config import load

    return load(path, os.environ).prompt_logs


def plain(value: Any) -> Any:
    """Records as plain data, for JSON."""
    import msgspec

    return msgspec.to_builtins(value)


def print_json(value: Any) -> None:
    """Print indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> "Console":
    """A console on stdout; wide where nobody looks, so that a pipe gets whole rows."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=240, no_color=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: set[str]
) -> None:
    """Print rows under a header; columns in `numeric` are set to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    console().print(table)

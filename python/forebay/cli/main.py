"""The root of the command and what becomes of errors.

Everything heavy (the database driver, the server, tables) is imported inside the commands, so
that `forebay --help` and shell completion stay quick.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from forebay import __version__
from forebay.cli import accounts as account_commands
from forebay.cli import billing as billing_commands
from forebay.cli import config as config_commands
from forebay.cli import invoice as invoice_commands
from forebay.cli import keys as key_commands
from forebay.cli import limits as limit_commands
from forebay.cli import logs as log_commands
from forebay.cli import prices as price_commands
from forebay.cli import upstreams as upstream_commands
from forebay.cli.audit import audit
from forebay.cli.common import ConfigOption, check_address, config_path, fail
from forebay.cli.doctor import doctor
from forebay.cli.export import export
from forebay.cli.health import health
from forebay.cli.migrate import migrate
from forebay.cli.rollup import rollup
from forebay.cli.usage import usage
from forebay.config.errors import ConfigError
from forebay.store.errors import StoreError

app = typer.Typer(
    name="forebay",
    help="A gateway for LLM inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_commands.app, name="config")
app.add_typer(key_commands.app, name="keys")
app.add_typer(limit_commands.app, name="limits")
app.add_typer(account_commands.app, name="accounts")
app.add_typer(price_commands.app, name="prices")
app.add_typer(upstream_commands.app, name="upstreams")
account_commands.app.command()(billing_commands.billing)
app.add_typer(invoice_commands.app, name="invoice")
app.add_typer(billing_commands.terms, name="terms")
app.add_typer(billing_commands.seller, name="seller")
app.command()(usage)
app.command()(export)
app.command()(rollup)
app.add_typer(log_commands.app, name="logs")
app.command()(audit)
app.command()(doctor)
app.command()(migrate)
app.command()(health)

HttpOption = Annotated[
    str | None,
    typer.Option(
        "--http", metavar="HOST:PORT", help="Where to serve HTTP; port 0 takes a free one."
    ),
]
GrpcOption = Annotated[
    str | None,
    typer.Option(
        "--grpc", metavar="HOST:PORT", help="Where to serve gRPC; port 0 takes a free one."
    ),
]
ReadyFileOption = Annotated[
    Path | None,
    typer.Option("--ready-file", metavar="PATH", help="Written, as JSON, once requests are taken."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forebay {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigOption = None,
    http: HttpOption = None,
    grpc: GrpcOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, max=256, help="Processes that serve; default: the file's, or 1."
        ),
    ] = None,
    ready_file: ReadyFileOption = None,
) -> None:
    """Run the gateway.

    Without --config, FOREBAY_CONFIG names the file, else ./forebay.yaml is taken if it is there,
    else the environment alone (INFERENCE_URL, DATABASE_URL).
    """
    check_address("--http", http)
    check_address("--grpc", grpc)
    from forebay import start

    start.run(
        config=config_path(config), http=http, grpc=grpc, workers=workers, ready_file=ready_file
    )


@app.command()
def dev(
    http: HttpOption = None,
    grpc: GrpcOption = None,
    ready_file: ReadyFileOption = None,
) -> None:
    """Run gateway, database and simulated engine; print a key and a curl line to try."""
    check_address("--http", http)
    check_address("--grpc", grpc)
    from forebay import dev as development

    development.run(http=http, grpc=grpc, ready_file=ready_file)


def _usage_error(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2  # its help is already printed
    show = getattr(error, "format_message", None)
    message = show() if callable(show) else str(error)
    command = "forebay" if context is None else context.command_path
    return fail(f"{message.rstrip('.')} (see {command} --help)", getattr(error, "exit_code", 2))


def _end(number: int, frame: FrameType | None) -> None:
    """The system ignores for the first process every signal that has no handler."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    arguments: without the program's name; None takes those of the process.

    0: done. 1: it failed. 2: wrong arguments or configuration. 130: interrupted. Errors are one
    line on stderr; FOREBAY_DEBUG=1 adds the traceback of those nobody foresaw.

    As the first process of a container it ends by SIGTERM (143), until a command that serves says
    how.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end)
    try:
        result = app(
            args=None if arguments is None else list(arguments),
            prog_name="forebay",
            standalone_mode=False,
        )
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        return _usage_error(error)
    except KeyboardInterrupt:
        return 130
    except ConfigError as error:
        return fail(str(error), 2)
    except StoreError as error:
        return fail(str(error), 1)
    except BrokenPipeError:
        # The reader of a pipe left; so that Python does not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("FOREBAY_DEBUG"):
            raise
        if isinstance(error, OSError) or type(error).__module__.startswith("asyncpg"):
            return fail(str(error) or type(error).__name__, 1)
        return fail(
            f"unexpected {type(error).__name__}: {error}"
            " (FOREBAY_DEBUG=1 shows where it came from)",
            1,
        )
    return result if isinstance(result, int) else 0

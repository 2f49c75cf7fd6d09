"""`forebay serve`: read the settings, then serve in this process or in several."""

import os
import signal
from functools import partial
from pathlib import Path

import msgspec

from forebay.cli.common import bad_pattern
from forebay.config import Config, ConfigError, load
from forebay.reload import Reloader
from forebay.telemetry.logs import setup_logging


def settings(
    config: Path | None, http: str | None, grpc: str | None, workers: int | None
) -> Config:
    """The configuration, with the command's options before everything else.

    Raises: ConfigError, also when something that serving needs is missing.
    """
    loaded = load(config, os.environ, bad_pattern=bad_pattern)
    listen = loaded.listen
    if http is not None:
        listen = msgspec.structs.replace(listen, http=http)
    if grpc is not None:
        listen = msgspec.structs.replace(listen, grpc=grpc)
    if listen.grpc_tls is not None and listen.grpc is None:
        raise ConfigError(
            "there is no gRPC to serve: set listen.grpc too",
            source=str(config or "environment"),
            field="listen.grpc_tls",
        )
    if not loaded.upstreams:
        raise ConfigError(
            "name at least one upstream, or set INFERENCE_URL",
            source=str(config or "environment"),
            field="upstreams",
        )
    if loaded.database_url is None:
        raise ConfigError(
            "set it, or DATABASE_URL: keys and usage live there (forebay dev brings its own)",
            source=str(config or "environment"),
            field="database_url",
        )
    return msgspec.structs.replace(loaded, listen=listen, workers=workers or loaded.workers)


def run(
    *,
    config: Path | None,
    http: str | None,
    grpc: str | None,
    workers: int | None,
    ready_file: Path | None,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises: ConfigError, OSError."""
    # What comes before somebody listens is covered by the first reading.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    file = config or (Path(named) if (named := os.environ.get("FOREBAY_CONFIG")) else None)
    reloader = Reloader(file, partial(settings, file, http, grpc, workers))
    loaded = reloader.current
    setup_logging(loaded.log.level, loaded.log.format)
    # The supervisor stays small: it never imports what only a worker needs.
    if loaded.workers > 1:
        from forebay.workers.supervisor import supervise

        supervise(loaded, ready_file, reloader)
    else:
        from forebay.serve import run_on_loop, serve

        run_on_loop(loaded, serve(loaded, ready_file=ready_file, reloader=reloader))

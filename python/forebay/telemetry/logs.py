"""One log stream on stderr: JSON lines for machines or coloured lines for people."""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

_SECRET_FIELDS = frozenset(
    {"api_key", "authorization", "key", "password", "secret", "token", "x-api-key"}
)


def _mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Mask fields whose name says that they hold a secret: the last net, not the first."""
    for name in event:
        if name.lower() in _SECRET_FIELDS and event[name] is not None:
            event[name] = "***"
    return event


def setup_logging(
    level: Level = "info", format: Format = "json", stream: TextIO | None = None
) -> None:
    """Send our log lines and the standard library's to `stream` (stderr if None).

    level: lines below it are dropped. format: ``json``, one object a line with ``timestamp``
    (RFC 3339, UTC), ``level``, ``logger`` and ``event``; ``console``, for reading.
    May be called again, to change either.
    """
    stream = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _mask_secrets,
    ]
    renderer: list[Processor]
    if format == "json":
        renderer = [
            # Without locals: they hold keys and prompts, and rendering them takes seconds.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *[p for p in shared if not isinstance(p, structlog.stdlib.ExtraAdder)],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )

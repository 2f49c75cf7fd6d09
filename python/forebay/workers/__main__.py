"""One worker: `python -m forebay.workers INDEX FD`, as a supervisor starts it.

FD is the worker's end of the socket pair, inherited.
"""

import signal
import socket
import sys

import structlog

from forebay.serve import run_on_loop, serve
from forebay.telemetry.logs import setup_logging
from forebay.workers.channel import Channel, Settings
from forebay.workers.seat import Seat


def main(index: int, end: socket.socket) -> int:
    """Serve until told to stop; the exit status."""
    # A terminal sends it to all; the supervisor alone reads the configuration again.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = Settings.receive(end)
    if settings is None:
        return 1
    setup_logging(settings.config.log.level, settings.config.log.format)
    structlog.contextvars.bind_contextvars(worker=index)
    try:
        run_on_loop(settings.config, work(index, settings, end))
    except OSError:
        return 1  # The supervisor tells why, once for all workers and tries.
    return 0


async def work(index: int, settings: Settings, end: socket.socket) -> None:
    """Take the seat and serve. Raises: what `serve` raises, told to the supervisor before."""
    seat = Seat(index, settings, await Channel.open(end))
    try:
        await serve(settings.config, seat=seat)
    except Exception as error:
        seat.failed(str(error) if isinstance(error, OSError) else repr(error))
        raise
    finally:
        seat.leave()


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))))

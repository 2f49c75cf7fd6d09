"""The books of one process: what was admitted, on its way through the spool to the database."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from forebay.metering.log_shipper import LogShipper
from forebay.metering.shipper import Shipper

if TYPE_CHECKING:
    from forebay._core import Core, Spool
    from forebay.config.schema import Config
    from forebay.store.database import Database

FLUSH_S = 5.0
"""Seconds that the end may take to ship what is left; more waits for the next process."""
ADOPT_S = 1.0
"""Seconds between two looks for spools whose processes have gone."""
_LOADED_S = 0.1
_MIB = 1024 * 1024
_SEGMENTS = 16
"""A spool is made of so many files at least, as far as they are not too small or too large."""

log = structlog.get_logger("forebay.metering")


def spool_folder(configured: str | None) -> Path:
    """Where spools are: what is configured, else ``forebay/spool`` among the user's state."""
    if configured is not None:
        return Path(configured).absolute()
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state).absolute() / "forebay" / "spool"


def _others(folder: Path) -> list[str]:
    """Folders of other ledgers beside this one in which something waits."""
    beside = (path for path in folder.parent.iterdir() if path != folder and path.is_dir())
    return [str(path) for path in beside if any(path.iterdir())]


class Books:
    """The spool of this process and what empties it.

    A spool belongs to one ledger, that is one database: it lies in a folder named after the
    ledger's id, so that processes that share a folder never ship into another's database.
    """

    def __init__(self, core: "Core", config: "Config") -> None:
        self._core = core
        self._config = config
        self._spool: Spool | None = None
        self._shipper: Shipper | None = None
        self._logs: LogShipper | None = None
        self._adopting: asyncio.Task[None] | None = None

    async def open(self, database: "Database") -> None:
        """Make the spool, and begin to ship. Nothing may be admitted before.

        Raises: OSError where the spool cannot be made.
        """
        settings = self._config.spool
        if self._spool is None:
            ledger = await database.pool.fetchval("SELECT id FROM ledger")
            segment_bytes = min(max(settings.max_bytes // _SEGMENTS, _MIB // 4), 8 * _MIB)
            folder = spool_folder(settings.dir) / str(ledger)
            self._spool = self._core.open_spool(
                str(folder),
                node=self._config.node or socket.gethostname(),
                segment_bytes=segment_bytes,
                max_bytes=settings.max_bytes,
                durability=settings.durability,
                on_full=settings.on_full,
            )
            if others := _others(folder):
                log.warning(
                    "usage of other databases waits here until a gateway of theirs runs",
                    folders=others,
                )
        self._shipper = Shipper(database, self._spool.usage)
        self._logs = LogShipper(database, self._spool.logs)
        self._shipper.start()
        self._logs.start()

    def start(self, prices_known: Callable[[], bool]) -> None:
        """Begin to take over what processes that have gone left.

        Not before the prices are known: requests that were running are rated by them.
        """
        self._adopting = asyncio.create_task(self._adopt(prices_known), name="adopt-spools")

    async def _adopt(self, prices_known: Callable[[], bool]) -> None:
        assert self._spool is not None
        assert self._shipper is not None
        told = False
        while True:
            if not prices_known():
                await asyncio.sleep(_LOADED_S)
                continue
            try:
                taken = await asyncio.to_thread(self._spool.adopt)
                told = False
            except OSError as error:
                if not told:
                    log.error("spools cannot be taken over", cause=str(error))
                    told = True
            else:
                if taken:
                    log.info("spools taken over", spools=taken, waiting=self._spool.usage.waiting)
                    self._shipper.kick()
            await asyncio.sleep(ADOPT_S)

    def kick(self) -> None:
        """The database is there again: ship now rather than at the end of a back-off."""
        for shipper in (self._shipper, self._logs):
            if shipper is not None:
                shipper.kick()

    def state(self) -> str:
        """``ok``, or what is wrong: what cannot be recorded is not served."""
        if self._spool is None or self._shipper is None:
            return "ok"
        waiting = self._spool.usage.waiting
        if self._spool.full:
            cause = f" ({self._spool.trouble})" if self._spool.trouble else ""
            kind = "down" if self._config.spool.on_full == "refuse" else "degraded"
            return f"{kind}: the spool is full{cause}, {waiting} events wait for the database"
        if self._spool.trouble is not None:
            return f"degraded: the spool's disk fails ({self._spool.trouble})"
        used, most = self._spool.size
        if used > most * 0.8:
            return f"degraded: the spool is nearly full, {waiting} events wait for the database"
        if not self._shipper.healthy:
            return (
                f"degraded: {waiting} events wait for the database,"
                f" the oldest for {self._spool.usage.lag_s:.0f} s"
            )
        return "ok"

    async def stop(self) -> None:
        """Ship what is left, for a moment, and close the spool. Nothing is admitted any more."""
        if self._adopting is not None:
            self._adopting.cancel()
        if self._spool is not None:
            # Logs that are being written get into the spool first.
            await asyncio.to_thread(self._spool.finish)
        for shipper in (self._shipper, self._logs):
            if shipper is not None:
                await shipper.flush(FLUSH_S if shipper.healthy else 0.1)
                await shipper.stop()
        if self._spool is not None:
            if left := self._spool.usage.waiting:
                log.warning("usage waits in the spool for the next process", events=left)
            await asyncio.to_thread(self._spool.close)

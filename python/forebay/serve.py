"""The life of one gateway process: start, serve, drain, stop."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from forebay.answering import Answering
from forebay.books import Books
from forebay.config import Config
from forebay.gateway import Gateway
from forebay.http.address import local_url
from forebay.http.app import create_app
from forebay.http.server import create_server
from forebay.metering.scheduler import Job, Scheduler, ledger_jobs
from forebay.notify import notify
from forebay.ready import remove_ready_file, write_ready_file
from forebay.store import (
    Database,
    KeyRecord,
    KeyWatcher,
    Price,
    Spent,
    StoreUnavailable,
    SubjectLimits,
    encode_limits,
    encode_prices,
    encode_records,
    encode_spent,
    seed_prices,
)
from forebay.store.database import UNREACHABLE
from forebay.telemetry.logs import setup_logging

if TYPE_CHECKING:
    from forebay.reload import Reloader
    from forebay.workers.seat import Seat

log = structlog.get_logger("forebay")

RETRY_S = 1.0
"""Seconds between two tries to reach a database that was away at the start."""
FIRST_LOAD_S = 5.0
"""Seconds that the start waits for the keys; later they are loaded in the background."""


class Store:
    """The database behind the gateway: keys, limits and prices come from it, usage goes to it.

    It may be away, at the start and later: known keys go on working, and usage waits.
    """

    def __init__(self, url: str, gateway: Gateway) -> None:
        self._url = url
        self._gateway = gateway
        self._database: Database | None = None
        self._watcher: KeyWatcher | None = None
        self._books = Books(gateway.core, gateway.config)
        self._scheduler: Scheduler | None = None
        self._opening: asyncio.Task[None] | None = None
        self._seeding: asyncio.Task[None] | None = None
        gateway.checks["database"] = self._state
        gateway.checks["usage"] = self._books.state
        gateway.checks["jobs"] = self._jobs_state

    @property
    def database(self) -> Database | None:
        """The database; None while it has never been reached."""
        return self._database

    async def start(self) -> None:
        """Open the database; if it is away, keep trying in the background."""
        self._opening = asyncio.create_task(self._open(), name="open-store")
        await asyncio.wait({self._opening}, timeout=FIRST_LOAD_S)

    async def _open(self) -> None:
        told = False
        while True:
            try:
                database = await self._open_once()
                break
            except StoreUnavailable as error:
                if not told:
                    log.warning("database is away", cause=str(error))
                    told = True
            except OSError as error:
                # Without keys nothing is admitted, and without a spool nothing may be.
                log.error("the spool cannot be opened (see spool.dir)", cause=str(error))
            except Exception as error:
                # Whatever it is, it may pass; a start that gives up would never be ready.
                log.error("the database cannot be used", cause=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_S)
        self._database = database
        self._scheduler = Scheduler(database, self._jobs())
        self._scheduler.start()
        self._watcher = KeyWatcher(
            database,
            self._load,
            self._on_health,
            on_limits=self._load_limits,
            on_prices=self._load_prices,
            on_spent=self._set_spent,
        )
        watcher = self._watcher
        await watcher.start(FIRST_LOAD_S)
        self._books.start(lambda: watcher.loaded)

    async def _open_once(self) -> Database:
        database = await Database.connect(self._url)
        try:
            applied = await database.migrate()
            await self._seed(database)
            await self._books.open(database)
        except BaseException:
            await database.close()
            raise
        if applied:
            log.info("migrations applied", versions=applied)
        return database

    def reload(self) -> None:
        """Follow the gateway's new configuration: what is kept how long, and prices."""
        if self._scheduler is not None:
            self._scheduler.replace(self._jobs())
        if self._seeding is not None:
            self._seeding.cancel()
        if self._database is not None:
            seeding = self._seed_again(self._database)
            self._seeding = asyncio.create_task(seeding, name="seed-prices")

    def _jobs(self) -> list[Job]:
        config = self._gateway.config
        kept = msgspec.structs.asdict(config.retention)
        kept["prompt_log_days"] = config.prompt_logs.retention_days
        return ledger_jobs(**kept)

    async def _seed_again(self, database: Database) -> None:
        while True:
            try:
                await self._seed(database)
                return
            except (StoreUnavailable, *UNREACHABLE):
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                log.error("prices of the configuration are not in the book", cause=repr(error))
                return

    async def _seed(self, database: Database) -> None:
        models = self._gateway.config.models
        prices = {name: model.price for name, model in models.items() if model.price is not None}
        for found in await seed_prices(database, prices):
            log.warning(
                "a price in the configuration is not the price book's, which holds",
                model=found.model,
                price=found.price_id,
                configured=found.configured,
                book=found.book,
            )

    def _on_health(self, healthy: bool) -> None:
        self._gateway.core.keys_current(healthy)
        if healthy:
            self._books.kick()

    def _load(self, records: list[KeyRecord]) -> None:
        self._gateway.core.load_keys(encode_records(records), False)

    def _load_limits(self, subjects: list[SubjectLimits]) -> None:
        self._gateway.core.load_limits(encode_limits(subjects))

    def _load_prices(self, prices: list[Price]) -> None:
        self._gateway.core.load_prices(encode_prices(prices))

    def _set_spent(self, spent: list[Spent]) -> None:
        self._gateway.core.set_spent(encode_spent(spent))

    def _state(self) -> str:
        if self._watcher is None or not self._watcher.loaded:
            return "down: the keys are not loaded"
        if not self._watcher.healthy:
            return f"degraded: away, keys as of {time.time() - self._watcher.last_sync:.0f} s ago"
        return "ok"

    def _jobs_state(self) -> str:
        return "ok" if self._scheduler is None else self._scheduler.state()

    async def stop(self) -> None:
        """Write what is left, then close."""
        for task in (self._opening, self._seeding):
            if task is not None:
                task.cancel()
        if self._scheduler is not None:
            await self._scheduler.stop()
        if self._watcher is not None:
            await self._watcher.stop()
        await self._books.stop()
        if self._database is not None:
            await self._database.close()


def run_on_loop(config: Config, main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on uvloop where Python serves every request, else on asyncio's own loop.

    Behind the core's listener Python has little to do, and uvloop costs 7 MB.
    """
    if config.listen.server == "granian":
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)


async def serve(
    config: Config,
    *,
    ready_file: Path | None = None,
    ready: dict[str, Any] | None = None,
    on_ready: Callable[[dict[str, Any]], None] | None = None,
    seat: "Seat | None" = None,
    reloader: "Reloader | None" = None,
) -> None:
    """Serve until a signal says stop, then drain.

    ready: more members for the ready file. on_ready: called with its content once requests are
        taken. seat: the place among the workers of a supervisor; None for a process of its own.
    reloader: gives configurations after the first; None: there are none, or they come to the seat.
    """
    assert config.database_url is not None
    stop = asyncio.Event()
    now = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        # A worker may get the signal twice, from the terminal or the service manager and then from
        # its supervisor: that alone says when to hurry.
        (now if stop.is_set() and seat is None else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    gateway = (
        Gateway(config)
        if seat is None
        else Gateway(config, limits_fd=seat.limits_fd, worker=seat.index)
    )
    store = Store(config.database_url, gateway)
    answering = Answering(gateway, lambda: store.database)

    def apply(changed: Config) -> None:
        gateway.reload(changed)
        setup_logging(changed.log.level, changed.log.format)
        store.reload()

    async def own_figures() -> str:
        own = gateway.core.metrics()
        return own if reloader is None else own + reloader.figures()

    app = create_app(gateway, lambda: store.database, own_figures if seat is None else seat.figures)
    if seat is not None:
        seat.take(
            drain=stop.set,
            hurry=now.set,
            figures=gateway.core.metrics,
            drain_upstream=gateway.core.drain_upstream,
            reload=apply,
        )
        gateway.tell_drain = seat.tell_drain
        gateway.checks["configuration"] = seat.reload_state
    server = create_server(app, gateway.core, config, shared=None if seat is None else seat.folder)
    grpc_server = None
    if config.listen.grpc is not None:
        from forebay.grpc import GrpcServer

        grpc_server = GrpcServer(gateway, lambda: store.database, shared=seat is not None)
    await gateway.start()
    answering.start()
    syncer = None
    if config.redis_url is not None:
        from forebay.limits import Syncer

        syncer = Syncer(gateway.core, config.redis_url, config.expected_nodes * config.workers)
        gateway.checks["limits"] = syncer.state
        syncer.start()
    await store.start()
    await server.start()
    if grpc_server is not None:
        await grpc_server.start()
    await gateway.looked()
    reloading = None
    if reloader is not None:
        gateway.checks["configuration"] = reloader.state
        reloading = asyncio.create_task(reloader.run(apply), name="reload")
        loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    facts = {
        "http": local_url(server.address),
        "grpc": str(grpc_server.address) if grpc_server is not None else None,
        "pid": os.getpid(),
        "models": gateway.models,
        **(ready or {}),
    }
    log.info("serving", http=facts["http"], grpc=facts["grpc"])
    if ready_file is not None:
        write_ready_file(ready_file, facts)
    if seat is not None:
        seat.ready(facts)
    else:
        notify("READY=1", f"serving on {facts['http']}")
    if on_ready is not None:
        on_ready(facts)
    await stop.wait()

    log.info("draining", in_flight=gateway.core.in_flight)
    if seat is None:
        notify("STOPPING=1", "draining")
    if reloading is not None:
        reloading.cancel()
    # First it is said, and only then done: who sends traffic here needs time to send it elsewhere.
    gateway.leave()
    if grpc_server is not None:
        grpc_server.leave()
    drain_s = gateway.config.drain_s
    hurry = asyncio.create_task(now.wait())
    await asyncio.wait({hurry}, timeout=gateway.config.drain_notice_s)
    closed = await server.close_door(min(gateway.config.drain_idle_s, drain_s))
    if grpc_server is not None:
        await grpc_server.drain(drain_s)
    gateway.begin_drain()
    if not closed:
        gateway.refuse()
    drain = asyncio.create_task(gateway.drained(drain_s))
    await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not (drain.done() and drain.result()):
        drain.cancel()
        log.warning("requests were cut off", in_flight=gateway.core.in_flight)
        gateway.refuse()
        gateway.core.halt()
    # The last answers leave before their connections are closed.
    await asyncio.sleep(0.05)
    for part in (grpc_server, server, syncer, answering, gateway, store):
        try:
            if part is not None:
                await part.stop()
        except Exception:
            # The parts after it have something to write down too.
            log.exception("a part failed to stop")
    if ready_file is not None:
        remove_ready_file(ready_file)
    log.info("stopped")

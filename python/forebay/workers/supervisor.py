"""The parent of the workers: starts them, starts again those that die, ends them all together."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import structlog

from forebay._core import SharedLimits
from forebay.config import Config, parse_address
from forebay.http.address import bound_to, reserve, resolve
from forebay.notify import notify
from forebay.ready import remove_ready_file, write_ready_file
from forebay.reload import Reloader
from forebay.telemetry.logs import setup_logging
from forebay.workers import figures
from forebay.workers.channel import Channel, Draining, Kind, Refusal, Reload, Rounds, Settings

log = structlog.get_logger("forebay.supervisor")

STEADY_S = 5.0
"""A worker that lived for so many seconds is started again at once."""
LONGEST_PAUSE_S = 5.0
STARTS = 5
"""Deaths in a row before a worker was ever ready that end the whole, at the first start."""
TELL_S = 1.0
"""Seconds that a worker has to tell its figures."""
MARGIN_S = 25.0
"""Seconds beyond the drain that a worker has to end: to close connections and write its usage."""


OWN = """\
# HELP forebay_worker_restarts_total Workers started again after their death.
# TYPE forebay_worker_restarts_total counter
forebay_worker_restarts_total {restarts}
# HELP forebay_worker_silences_total Times a worker did not tell its figures in time.
# TYPE forebay_worker_silences_total counter
forebay_worker_silences_total {silent}
"""
"""The supervisor's own figures, besides the reloader's."""


class WorkersError(OSError):
    """The workers cannot start; the message says why."""


def supervise(config: Config, ready_file: Path | None, reloader: Reloader) -> None:
    """Serve with `config.workers` processes until SIGTERM or SIGINT.

    reloader: gives the configurations after `config`.

    Raises: AddressInUse, before anything is started; WorkersError, OSError.
    """
    reserved = [reserve(resolve(parse_address(config.listen.http)))]
    listen = msgspec.structs.replace(config.listen, http=str(bound_to(reserved[0])))
    if config.listen.grpc is not None:
        reserved.append(reserve(resolve(parse_address(config.listen.grpc))))
        listen = msgspec.structs.replace(listen, grpc=str(bound_to(reserved[1])))
    with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
        limits = SharedLimits(workers=config.workers)
        settings = Settings(
            config=msgspec.structs.replace(config, listen=listen),
            limits_fd=limits.fd,
            folder=folder,
        )
        try:
            asyncio.run(Supervisor(settings, limits, ready_file, reloader).run())
        finally:
            for held in reserved:
                held.close()


def pause_s(deaths: int) -> float:
    """Seconds before the next start after so many deaths in a row soon after a start."""
    return 0.0 if deaths <= 1 else min(LONGEST_PAUSE_S, 0.1 * 2.0 ** min(deaths - 2, 10))


class Worker:
    """One place and the process that has it now, if one does."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.channel: Channel | None = None
        self.ready = False
        self.reason: str | None = None
        """Why the process says that it ends."""
        self.last: figures.Figures = {}
        """The figures that the process told last."""
        self.told = asyncio.Event()
        """It owes no answer."""
        self.told.set()

    def send(self, kind: Kind, data: bytes = b"") -> None:
        """Send to the process, if there is one."""
        if self.channel is not None:
            self.channel.send(kind, data)


class Supervisor:
    """Keeps the workers.

    limits: the table that they share. ready_file: written once all are ready, and current.
    reloader: reads the configuration again, for all of them.
    """

    def __init__(
        self,
        settings: Settings,
        limits: SharedLimits,
        ready_file: Path | None,
        reloader: Reloader,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._ready_file = ready_file
        self._workers = [Worker(index) for index in range(settings.config.workers)]
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._serving = False
        """All workers were ready at one time."""
        self._fatal: str | None = None
        self._facts: dict[str, Any] = {}
        self._rounds = Rounds(self._sum_up)
        self._departed: figures.Figures = {}
        """The last counters of processes that are gone."""
        self._restarts = 0
        self._silent = 0
        self._draining: dict[str, bytes] = {}
        """What was told last of each upstream, for workers that start anew."""
        self._reloader = reloader
        self._reloads = 0

    async def run(self) -> None:
        """Until a signal. Raises: WorkersError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reloader.ask)
        reloading = asyncio.create_task(
            self._reloader.run(self._reload, self._tell_reload), name="reload"
        )
        keepers = []
        for worker in self._workers:
            keeper = asyncio.create_task(self._keep(worker), name=f"worker-{worker.index}")
            keeper.add_done_callback(self._check)
            keepers.append(keeper)
        await self._stop.wait()
        reloading.cancel()
        await self._end(keepers)
        if self._ready_file is not None:
            remove_ready_file(self._ready_file)
        if self._fatal is not None:
            raise WorkersError(self._fatal)
        log.info("stopped")

    def _reload(self, config: Config) -> None:
        """Start workers with this configuration from now on."""
        # The address that was found for them stays.
        listen = self._settings.config.listen
        config = msgspec.structs.replace(config, listen=listen)
        self._settings = msgspec.structs.replace(self._settings, config=config)
        self._reloads += 1
        for name in self._draining.keys() - config.upstreams.keys():
            del self._draining[name]
        setup_logging(config.log.level, config.log.format)

    def _reloaded(self) -> bytes:
        config, state = self._settings.config, self._reloader.state()
        return Reload(number=self._reloads, config=config, state=state).encode()

    def _tell_reload(self) -> None:
        told = self._reloaded()
        for worker in self._workers:
            worker.send(Kind.RELOAD, told)

    def _refused(self, refusal: Refusal) -> None:
        # The first one is enough: all will say the same.
        if refusal.number == self._reloads and self._reloader.refused(refusal.reason):
            self._reload(self._reloader.current)
            self._tell_reload()

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _check(self, keeper: asyncio.Task[None]) -> None:
        if (error := keeper.exception()) is not None:
            log.error("the supervisor failed", exc_info=error)
            self._fatal = f"the supervisor failed: {error!r}"
            self._stop.set()

    async def _keep(self, worker: Worker) -> None:
        """Have a process in this place until the end."""
        loop = asyncio.get_running_loop()
        soon = never = 0
        while not self._stop.is_set():
            began = loop.time()
            status, was_ready = await self._live(worker)
            lived_s = loop.time() - began
            # What it held comes back, whatever it died of.
            self._limits.reclaim(worker.index)
            if self._stop.is_set():
                return
            soon = soon + 1 if lived_s < STEADY_S else 0
            never = 0 if was_ready else never + 1
            reason = worker.reason or f"it ended with {_shown(status)}"
            log.error("worker ended", worker=worker.index, reason=reason, lived_s=round(lived_s, 1))
            if never >= STARTS and not self._serving:
                self._fatal = (
                    f"the workers do not start: {reason} (worker {worker.index}, {never} times)"
                )
                self._stop.set()
                return
            self._restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s(soon)):
                    await self._stop.wait()

    async def _live(self, worker: Worker) -> tuple[int | None, bool]:
        """One process from its start to its death: its status, and whether it was ever ready."""
        worker.reason = None
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), self._limits.fd)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "forebay.workers"),
                    *(str(worker.index), str(theirs.fileno())),
                    stdin=DEVNULL,
                    pass_fds=inherited,
                )
            except OSError as error:
                ours.close()
                worker.reason = f"cannot start {sys.executable}: {error.strerror or error}"
                return None, False
        worker.process = process
        worker.channel = await Channel.open(ours)
        worker.send(Kind.SETTINGS, self._settings.encode())
        worker.send(Kind.RELOAD, self._reloaded())
        for told in self._draining.values():
            worker.send(Kind.UPSTREAM, told)
        if self._stop.is_set():
            worker.send(Kind.DRAIN)
        hearing = asyncio.create_task(self._hear(worker, worker.channel))
        status = await process.wait()
        # The last it said is there already; who else could hold its end open is of no interest.
        await asyncio.wait({hearing}, timeout=1.0)
        hearing.cancel()
        worker.channel.close()
        was_ready = worker.ready
        worker.process, worker.channel, worker.ready = None, None, False
        self._departed = figures.merge([self._departed, figures.counters(worker.last)])
        worker.last = {}
        worker.told.set()
        self._tell()
        return status, was_ready

    async def _hear(self, worker: Worker, channel: Channel) -> None:
        answers = set[asyncio.Task[None]]()
        while (message := await channel.receive()) is not None:
            kind, data = message
            if kind == Kind.READY:
                worker.ready = True
                self._facts = orjson.loads(data)
                self._tell()
            elif kind == Kind.FAILED:
                worker.reason = data.decode()
            elif kind == Kind.OWN:
                worker.last = figures.parse(data.decode())
                worker.told.set()
            elif kind == Kind.REFUSED:
                self._refused(Refusal.decode(data))
            elif kind == Kind.UPSTREAM:
                self._draining[Draining.decode(data).upstream] = data
                for other in self._workers:
                    other.send(Kind.UPSTREAM, data)
            elif kind == Kind.ASK:
                answer = asyncio.create_task(self._answer(channel, data))
                answers.add(answer)
                answer.add_done_callback(answers.discard)

    async def _answer(self, channel: Channel, number: bytes) -> None:
        channel.send(Kind.FIGURES, number + (await self._rounds.join()).encode())

    async def _sum_up(self) -> str:
        """The figures of all workers, so that no counter ever goes down."""
        asked = [worker for worker in self._workers if worker.ready]
        for worker in asked:
            if worker.told.is_set():
                worker.told.clear()
                worker.send(Kind.TELL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                for worker in asked:
                    await worker.told.wait()
        parts = []
        for worker in self._workers:
            if worker.told.is_set():
                parts.append(worker.last)
            else:
                self._silent += 1
                parts.append(figures.counters(worker.last))
        text = OWN.format(restarts=self._restarts, silent=self._silent) + self._reloader.figures()
        return figures.render(figures.merge([*parts, self._departed, figures.parse(text)]))

    def _tell(self) -> None:
        """Keep the ready file current: which workers take requests."""
        if self._stop.is_set():
            return
        pids = [w.process.pid for w in self._workers if w.ready and w.process is not None]
        if not self._serving:
            if len(pids) < len(self._workers):
                return
            self._serving = True
            log.info("serving", http=self._facts["http"], grpc=self._facts["grpc"], workers=pids)
            notify("READY=1", f"serving on {self._facts['http']}")
        if self._ready_file is not None:
            facts = {**self._facts, "pid": os.getpid(), "workers": pids}
            write_ready_file(self._ready_file, facts)

    async def _end(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Let every worker finish, within bounds."""
        log.info("draining")
        notify("STOPPING=1", "draining")
        for worker in self._workers:
            worker.send(Kind.DRAIN)
        ended = asyncio.create_task(asyncio.wait(keepers))
        hurry = asyncio.create_task(self._hurry.wait())
        config = self._settings.config
        limit_s = config.drain_notice_s + config.drain_s + MARGIN_S
        await asyncio.wait({ended, hurry}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if hurry.done():
            for worker in self._workers:
                worker.send(Kind.HURRY)
            await asyncio.wait({ended}, timeout=MARGIN_S)
        hurry.cancel()
        for worker in self._workers:
            if worker.process is not None:
                log.error("worker did not end and is killed", worker=worker.index)
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
        await ended


def _shown(status: int | None) -> str:
    """An exit status for people."""
    if status is None or status >= 0:
        return f"status {status}"
    return f"signal {-status} ({signal.strsignal(-status)})"

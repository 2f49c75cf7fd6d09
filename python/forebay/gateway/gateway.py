"""The gateway of one process: the core and the tasks that keep it current."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from forebay._core import Core, Exchange
from forebay.config import Config
from forebay.gateway import snapshot
from forebay.gateway.answer import Answer
from forebay.gateway.credentials import Refreshers
from forebay.gateway.stored_responses import StoredResponses
from forebay.gateway.watcher import Watcher
from forebay.telemetry import traces

log = structlog.get_logger("forebay.gateway")

FAILURES_S = 0.25
"""Seconds between two looks at what the log should be told."""


@dataclass(slots=True)
class Health:
    """Whether the gateway may take traffic, and why not."""

    ready: bool
    degraded: bool
    checks: dict[str, str] = field(default_factory=dict)


class Gateway:
    """Owns the core. `start` begins the upkeep, `stop` ends it.

    checks: further parts of the process's health by name, each a function that gives ``ok``,
        ``degraded: …`` or ``down: …``.

    limits_fd: the table of limits that this process shares with others, each of which is another
        `worker` there; None for a table of its own.
    """

    def __init__(self, config: Config, *, limits_fd: int | None = None, worker: int = 0) -> None:
        self.config = config
        self.core = Core(limits_fd=limits_fd, worker=worker)
        self.checks: dict[str, Callable[[], str]] = {}
        self.draining = False
        self.tell_drain: Callable[[str, bool], None] | None = None
        """Has the other processes of this machine do what `drain_upstream` does here."""
        self.responses: StoredResponses | None = None
        """Where responses are kept; None without a database."""
        self.unfinished: Callable[[], int] = lambda: 0
        """Requests that have ended, and whose answer has to be kept before the process may end."""
        self._watcher = Watcher(config, self.core, self._fetch, self._apply, self._ask_agent)
        self._tasks: list[asyncio.Task[None]] = []
        self._credentials = Refreshers(config, self.core)
        self._traces = traces.start(config, self.core)
        self._apply()

    async def start(self) -> None:
        """Attach to the running event loop and begin to watch the upstreams."""
        self.core.attach(asyncio.get_running_loop())
        self._watcher.start()
        self._credentials.start()
        self._tasks.append(asyncio.create_task(self._tell_failures(), name="failures"))
        if self._traces is not None:
            self._tasks.append(asyncio.create_task(self._traces.run(), name="traces"))

    def reload(self, config: Config) -> None:
        """Go on with another configuration: all of it, or an error and none of it.

        Running requests end as they began. Upstreams that did not change keep their connections,
        permits, health and credentials. What of `config` a process is started with (`config.live`)
        is the caller's to keep.

        Raises: ValueError for what the core does not take.
        """
        self.core.configure(snapshot.build(config, self._watcher.still_discovered(config)))
        self.config = config
        self._watcher.reload(config)
        self._credentials.reload(config)
        if self._traces is not None:
            self._traces.reload(config)

    async def looked(self) -> None:
        """Wait, some seconds at most, until every upstream has been looked at once."""
        await self._watcher.looked()

    @property
    def models(self) -> list[str]:
        """The names of all models known now, aliases left out."""
        found = {name for names in self._watcher.discovered.values() for name in names}
        return sorted(found | set(self.config.models))

    def aliased(self, name: str) -> str | None:
        """The own name of the model that `name` is an alias of; None for every other name."""
        if name in self.models:
            return None
        owners = (own for own, model in self.config.models.items() if name in model.aliases)
        return next(owners, None)

    def drain_upstream(self, name: str, draining: bool) -> bool:
        """Let an upstream take no new requests, or take them again, in all workers of this machine.

        What runs goes on. Returns whether there is one of that name.
        """
        found = self.core.drain_upstream(name, draining)
        if found and self.tell_drain is not None:
            self.tell_drain(name, draining)
        return found

    def leave(self) -> None:
        """Say that traffic should go elsewhere; what comes all the same is served."""
        self.draining = True
        self.core.leave()

    def begin_drain(self) -> None:
        """End WebSockets too, each with what runs on it."""
        self.core.begin_drain()

    def refuse(self) -> None:
        """Take no new work; what runs goes on."""
        self.core.refuse()

    async def drained(self, within_s: float) -> bool:
        """Wait until nothing runs, and nothing new can come, at most `within_s` seconds."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self.core.in_flight + self.unfinished() + self.core.expecting > 0:
            if asyncio.get_running_loop().time() >= deadline:
                return self.core.in_flight + self.unfinished() == 0
            await asyncio.sleep(0.02)
        return True

    async def stop(self) -> None:
        """End the upkeep and the core. What still runs is dropped and booked."""
        await self._watcher.stop()
        await self._credentials.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.core.close()
        self._log_failures()
        if self._traces is not None:
            await self._traces.close()

    def health(self) -> Health:
        """The state of every part. Ready: at least one upstream is, and nothing else is down."""
        upstreams = self._watcher.checks
        checks = {f"upstream:{name}": text for name, text in upstreams.items()}
        # A cold one is woken by who needs it.
        some_upstream = any(text.startswith("ok") for text in upstreams.values())
        for name, text in self._watcher.agents.items():
            checks[f"agent:{name}"] = text
        for name, text in self._credentials.states.items():
            checks[f"credentials:{name}"] = text
        for name, check in self.checks.items():
            checks[name] = check()
        rest = [text for name, text in checks.items() if not name.startswith("upstream:")]
        ready = (
            not self.draining
            and some_upstream
            and not any(text.startswith("down") for text in rest)
        )
        if self.draining:
            checks["gateway"] = "down: draining"
        degraded = any(not text.startswith("ok") for text in checks.values())
        return Health(ready=ready, degraded=degraded, checks=checks)

    def _apply(self) -> None:
        self.core.configure(snapshot.build(self.config, self._watcher.discovered))

    async def _fetch(
        self, upstream: str, path: str, limit_s: float, method: str, body: bytes | None
    ) -> Answer | None:
        return await self._answer_of(
            self.core.fetch(upstream, path, limit_s, method=method, body=body)
        )

    async def _ask_agent(
        self, upstream: str, path: str, limit_s: float, method: str, body: bytes | None
    ) -> Answer | None:
        try:
            exchange = self.core.fetch(
                upstream, path, limit_s, method=method, body=body, agent=True
            )
        except ValueError:  # A reload has just taken it out.
            return None
        return await self._answer_of(exchange)

    @staticmethod
    async def _answer_of(exchange: Exchange) -> Answer | None:
        answer = exchange.start()
        if isinstance(answer, asyncio.Future):
            return await answer
        return answer

    async def _tell_failures(self) -> None:
        while True:
            await asyncio.sleep(FAILURES_S)
            self._log_failures()

    def _log_failures(self) -> None:
        for kind, message, cause, request_id, attempt in self.core.take_failures():
            fields: dict[str, object] = {"kind": kind, "cause": cause, "request_id": request_id}
            if attempt is not None:
                upstream, number, why, status, ms = attempt
                fields |= {
                    "upstream": upstream,
                    "attempt": number,
                    "why": why,
                    "reason": kind,
                    "status": status,
                    "duration_ms": ms,
                }
            # What a client got wrong is nothing that the operator has to look at.
            tell = log.info if kind == "invalid_request" else log.warning
            with contextlib.suppress(ValueError):
                tell(message, **fields)

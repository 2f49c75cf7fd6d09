"""The gateway of one process: the core and the tasks that keep it current."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog

from forebay._core import Core
from forebay.config import Config
from forebay.gateway import snapshot
from forebay.gateway.answer import Answer
from forebay.upstreams import KINDS

log = structlog.get_logger("forebay.gateway")

POLL_S = 2.0
"""Seconds between two looks at each upstream."""
FIRST_POLL_S = 0.25
"""The same while an upstream has never been ready: a start is noticed soon."""
PROBE_LIMIT_S = 2.0
"""Seconds that an upstream has to answer a probe."""
FAILURES_S = 0.25
"""Seconds between two looks at what the log should be told."""


class _ListedModel(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


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
        self._discovered: dict[str, list[str]] = {}
        self._upstreams: dict[str, bool] = {}
        self._looked = {name: asyncio.Event() for name in config.upstreams}
        self._tasks: list[asyncio.Task[None]] = []
        self._apply()

    async def start(self) -> None:
        """Attach to the running event loop and begin to watch the upstreams."""
        self.core.attach(asyncio.get_running_loop())
        for name in self.config.upstreams:
            self._tasks.append(asyncio.create_task(self._watch(name), name=f"watch-{name}"))
        self._tasks.append(asyncio.create_task(self._tell_failures(), name="failures"))

    async def looked(self) -> None:
        """Wait until every upstream has been looked at once, whatever came of it."""
        for event in self._looked.values():
            await event.wait()

    @property
    def models(self) -> list[str]:
        """The names of all models known now, aliases left out."""
        found = {name for names in self._discovered.values() for name in names}
        return sorted(found | set(self.config.models))

    def aliased(self, name: str) -> str | None:
        """The own name of the model that `name` is an alias of; None for every other name."""
        if name in self.models:
            return None
        owners = (own for own, model in self.config.models.items() if name in model.aliases)
        return next(owners, None)

    def begin_drain(self) -> None:
        """Take no new work; what runs goes on."""
        self.draining = True
        self.core.begin_drain()

    async def drained(self, within_s: float) -> bool:
        """Wait until nothing runs any more, at most `within_s` seconds."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self.core.in_flight > 0:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def stop(self) -> None:
        """End the upkeep and the core. What still runs is dropped and booked."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.core.close()
        self._log_failures()

    def health(self) -> Health:
        """The state of every part. Ready: at least one upstream is, and nothing else is down."""
        checks = {
            f"upstream:{name}": "ok" if self._upstreams.get(name) else "down: not ready"
            for name in self.config.upstreams
        }
        some_upstream = any(self._upstreams.values())
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
        degraded = any(text != "ok" for text in checks.values())
        return Health(ready=ready, degraded=degraded, checks=checks)

    def _apply(self) -> None:
        self.core.configure(snapshot.build(self.config, self._discovered))

    async def _fetch(self, upstream: str, path: str) -> Answer | None:
        exchange = self.core.fetch(upstream, path, PROBE_LIMIT_S)
        answer = exchange.start()
        if isinstance(answer, asyncio.Future):
            return await answer
        return answer

    async def _watch(self, name: str) -> None:
        """Follow one upstream: whether it is ready, and which models it lists."""
        upstream = self.config.upstreams[name]
        kind = KINDS[upstream.kind]
        probe = kind.probe_for(upstream)
        while True:
            ready = probe is None
            if probe is not None:
                answer = await self._fetch(name, probe.ready)
                ready = answer is not None and probe.judge(answer[0], answer[2]) == "warm"
                if ready and upstream.discover and probe.models is not None:
                    ready = await self._discover(name, probe.models)
            if ready != self._upstreams.get(name):
                self._upstreams[name] = ready
                log.info("upstream is ready" if ready else "upstream is not ready", upstream=name)
            self._looked[name].set()
            waiting = not ready and (upstream.discover and name not in self._discovered)
            await asyncio.sleep(FIRST_POLL_S if waiting else POLL_S)

    async def _discover(self, name: str, path: str) -> bool:
        answer = await self._fetch(name, path)
        if answer is None or answer[0] != 200:
            return False
        try:
            listed = msgspec.json.decode(answer[2], type=_ModelList)
        except msgspec.MsgspecError as error:
            log.warning("upstream lists no models", upstream=name, cause=str(error))
            return False
        models = sorted({model.id for model in listed.data})
        if models != self._discovered.get(name):
            self._discovered[name] = models
            self._apply()
            log.info("models discovered", upstream=name, models=models)
        return True

    async def _tell_failures(self) -> None:
        while True:
            await asyncio.sleep(FAILURES_S)
            self._log_failures()

    def _log_failures(self) -> None:
        for kind, message, cause, request_id in self.core.take_failures():
            with contextlib.suppress(ValueError):
                log.warning(message, kind=kind, cause=cause, request_id=request_id)

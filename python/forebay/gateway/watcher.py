"""Watching all upstreams of a configuration, also when it changes."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

import msgspec

from forebay.config import Config, Upstream
from forebay.config.live import same_watch
from forebay.gateway.agent import AskAgent
from forebay.gateway.watch import Fetch, Reports, Watch
from forebay.upstreams import KINDS

LOOKED_S = 5.0
"""Seconds that a start waits for the first looks: one that starts an engine may take minutes."""
WANTED_S = 0.25
"""Seconds between two looks at who is wanted awake."""


class _Use(msgspec.Struct):
    """What of an upstream's view tells whether it is used."""

    name: str
    in_flight: int
    successes: int
    failures: int


class Watcher:
    """Follows every upstream of a configuration.

    on_models: called when an upstream lists other models than before (`discovered`).
    ask_agent: as `fetch`, but asks an upstream's agent.
    clock: monotonic seconds. jitter: for pauses, so that many gateways do not ask in step.
    """

    def __init__(
        self,
        config: Config,
        core: Reports,
        fetch: Fetch,
        on_models: Callable[[], None],
        ask_agent: AskAgent,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ) -> None:
        self.discovered: dict[str, list[str]] = {}
        self._config = config
        self._core = core
        self._fetch = fetch
        self._ask_agent = ask_agent
        self._on_models = on_models
        self._clock = clock
        self._jitter = jitter
        self._watches = {name: self._watch(name) for name in config.upstreams}
        self._used: dict[str, tuple[int, float]] = {}
        self._started = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wants: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._started = True
        for name in self._watches:
            self._run(name)
        self._follow_or_not()

    def still_discovered(self, config: Config) -> dict[str, list[str]]:
        """What stays of `discovered` under another configuration."""
        upstreams = config.upstreams
        return {
            name: models
            for name, models in self.discovered.items()
            if name in upstreams and upstreams[name].discover
        }

    def reload(self, config: Config) -> None:
        """Follow another configuration, which the core has already.

        Who is looked at as before is not looked at anew.
        """
        before, self._config = self._config, config
        kept = self.still_discovered(config)
        for name in self.discovered.keys() - kept.keys():
            del self.discovered[name]
        for name in before.upstreams.keys() - config.upstreams.keys():
            self._end(name)
            del self._watches[name]
            self._used.pop(name, None)
        for name, upstream in config.upstreams.items():
            known = before.upstreams.get(name)
            if known is not None and same_watch(known, upstream):
                self._watches[name].reconfigure(config)
                continue
            # The core keeps its health as long.
            stays = known is not None and _address(known) == _address(upstream)
            self._end(name)
            self._watches[name] = self._watch(name, self._watches[name] if stays else None)
            if self._started:
                self._run(name)
        self._follow_or_not()

    async def looked(self) -> None:
        """Wait until every upstream has been looked at once, whatever came of it, or `LOOKED_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOKED_S):
                for watch in list(self._watches.values()):
                    await watch.looked.wait()

    async def stop(self) -> None:
        """End."""
        tasks = [*self._tasks.values()]
        if self._wants is not None:
            tasks.append(self._wants)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def checks(self) -> dict[str, str]:
        """How each upstream is: ``ok``, ``ok: cold``, or ``down: …``."""
        return {name: watch.check for name, watch in self._watches.items()}

    @property
    def agents(self) -> dict[str, str]:
        """How the agent of each upstream that has one is: ``ok`` or ``degraded: …``."""
        return {
            name: check
            for name, watch in self._watches.items()
            if (check := watch.agent_check) is not None
        }

    def _watch(self, name: str, before: Watch | None = None) -> Watch:
        return Watch(
            name,
            self._config,
            self._core,
            self._fetch,
            self._ask_agent,
            self.discovered,
            self._on_models,
            self._clock,
            self._jitter,
            before,
        )

    def _run(self, name: str) -> None:
        work = self._watches[name].run()
        self._tasks[name] = asyncio.create_task(work, name=f"watch-{name}")

    def _end(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

    def _follow_or_not(self) -> None:
        holds = self._started and any(watch.holds for watch in self._watches.values())
        if holds and self._wants is None:
            self._wants = asyncio.create_task(self._follow_wants(), name="wanted")
        elif not holds and self._wants is not None:
            self._wants.cancel()
            self._wants = None

    async def _follow_wants(self) -> None:
        looked_at = 0.0
        while True:
            await asyncio.sleep(WANTED_S)
            for name in self._core.take_wanted():
                # One that is gone may have been wanted just before.
                if (watch := self._watches.get(name)) is not None:
                    watch.wanted()
            rests = {n: watch.idle_s for n, watch in self._watches.items() if watch.idle_s > 0}
            if rests and self._clock() - looked_at >= min(*rests.values(), 10.0) / 10:
                looked_at = self._clock()
                self._let_rest(rests)

    def _let_rest(self, rests: dict[str, float]) -> None:
        now = self._clock()
        for use in msgspec.json.decode(self._core.upstreams(), type=list[_Use]):
            if use.name not in rests:
                continue
            count = use.successes + use.failures
            before, since = self._used.get(use.name, (-1, now))
            if count != before or use.in_flight > 0:
                self._used[use.name] = (count, now)
            elif now - since >= rests[use.name]:
                self._watches[use.name].rested()


def _address(upstream: Upstream) -> str:
    return KINDS[upstream.kind].address(upstream)

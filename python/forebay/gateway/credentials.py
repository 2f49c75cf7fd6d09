"""Upstreams whose credentials change: each has a refresher that hands them to the core."""

import asyncio
from functools import partial

from forebay._core import Core
from forebay.config import Config
from forebay.config.live import same_place
from forebay.upstreams import KINDS
from forebay.upstreams.credentials import Refresher


class Refreshers:
    """The refreshers of a configuration, one for each upstream that needs one."""

    def __init__(self, config: Config, core: Core) -> None:
        self._core = core
        self._config = config
        self._started = False
        self._refreshers: dict[str, Refresher] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for name in config.upstreams:
            self._add(name)

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._started = True
        for name in self._refreshers:
            self._run(name)

    def reload(self, config: Config) -> None:
        """Follow another configuration, which the core has already.

        An upstream gets new credentials where its address or what they are made from changed; until
        they are there the core keeps those that it has for the same place.
        """
        before, self._config = self._config, config
        for name in before.upstreams.keys() - config.upstreams.keys():
            self._drop(name)
        for name, upstream in config.upstreams.items():
            known = before.upstreams.get(name)
            if known is None or not same_place(known, upstream):
                self._drop(name)
                self._add(name)
                if self._started and name in self._refreshers:
                    self._run(name)

    async def stop(self) -> None:
        """End."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    @property
    def states(self) -> dict[str, str]:
        """How the credentials of each upstream are; see `Refresher.state`."""
        return {name: refresher.state() for name, refresher in self._refreshers.items()}

    def _add(self, name: str) -> None:
        upstream = self._config.upstreams[name]
        source = KINDS[upstream.kind].credentials(upstream)
        if source is not None:
            push = partial(self._core.set_credentials, name)
            self._refreshers[name] = Refresher(name, source, push)

    def _run(self, name: str) -> None:
        work = self._refreshers[name].run()
        self._tasks[name] = asyncio.create_task(work, name=f"credentials-{name}")

    def _drop(self, name: str) -> None:
        self._refreshers.pop(name, None)
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

"""A worker's place: what it hears from its supervisor, and what it says."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import structlog

from forebay.config import Config
from forebay.workers.channel import (
    NUMBER_BYTES,
    Channel,
    Draining,
    Kind,
    Refusal,
    Reload,
    Rounds,
    Settings,
)

log = structlog.get_logger("forebay.worker")

FIGURES_S = 5.0
"""Seconds to wait for the figures of all workers."""


class Seat:
    """The place of worker `index`. `take` it before serving, and `leave` it.

    config, limits_fd, folder: as `Settings` has them.
    """

    def __init__(self, index: int, settings: Settings, channel: Channel) -> None:
        self.index = index
        self.config = settings.config
        self.limits_fd = settings.limits_fd
        self.folder = Path(settings.folder)
        self._channel = channel
        self._numbers = itertools.count()
        self._rounds = Rounds(self._ask)
        self._answer: tuple[int, asyncio.Future[str]] | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._orphaned = False
        self._drain_upstream: Callable[[str, bool], object] = lambda _name, _draining: None
        self._reload: Callable[[Config], None] = lambda _config: None
        self._reload_state = "ok"

    def take(
        self,
        *,
        drain: Callable[[], None],
        hurry: Callable[[], None],
        figures: Callable[[], str],
        drain_upstream: Callable[[str, bool], object],
        reload: Callable[[Config], None],
    ) -> None:
        """Listen from now on.

        drain: called when the worker shall end, also when the supervisor is gone. hurry: called
            when it shall not wait for what runs. figures: the worker's own. drain_upstream: called
            when an upstream is drained, or is no longer, by whichever worker. reload: puts a
            configuration in force. Raises: ValueError, and nothing has changed.
        """
        self._drain_upstream = drain_upstream
        self._reload = reload
        self._hearing = asyncio.create_task(self._hear(drain, hurry, figures), name="supervisor")

    def reload_state(self) -> str:
        """``ok``, or ``degraded: …`` while the configuration is older than what was read last."""
        return self._reload_state

    def ready(self, facts: dict[str, Any]) -> None:
        """Requests are taken."""
        self._channel.send(Kind.READY, orjson.dumps(facts))

    def failed(self, reason: str) -> None:
        """The worker ends for this reason."""
        self._channel.send(Kind.FAILED, reason.encode(errors="replace"))

    def tell_drain(self, upstream: str, draining: bool) -> None:
        """Have all workers drain an upstream, or take its requests again."""
        self._channel.send(Kind.UPSTREAM, Draining(upstream=upstream, draining=draining).encode())

    async def figures(self) -> str:
        """The figures of all workers. Raises: TimeoutError."""
        return await self._rounds.join()

    def leave(self) -> None:
        """Stop listening."""
        if self._hearing is not None:
            self._hearing.cancel()
        self._channel.close()
        if self._orphaned:
            # Nobody else would; it works for the last of the workers.
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    async def _ask(self) -> str:
        if self._orphaned:
            raise TimeoutError("the supervisor is gone")
        number = next(self._numbers) % 2 ** (8 * NUMBER_BYTES)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answer = number, answer
        self._channel.send(Kind.ASK, number.to_bytes(NUMBER_BYTES))
        async with asyncio.timeout(FIGURES_S):
            return await answer

    async def _hear(
        self, drain: Callable[[], None], hurry: Callable[[], None], figures: Callable[[], str]
    ) -> None:
        while (message := await self._channel.receive()) is not None:
            kind, data = message
            if kind == Kind.DRAIN:
                drain()
            elif kind == Kind.HURRY:
                drain()
                hurry()
            elif kind == Kind.TELL:
                self._channel.send(Kind.OWN, figures().encode())
            elif kind == Kind.UPSTREAM:
                told = Draining.decode(data)
                self._drain_upstream(told.upstream, told.draining)
            elif kind == Kind.RELOAD:
                self._take_over(Reload.decode(data))
            elif kind == Kind.FIGURES:
                self._answered(int.from_bytes(data[:NUMBER_BYTES]), data[NUMBER_BYTES:].decode())
        log.error("the supervisor is gone; draining")
        self._orphaned = True
        drain()

    def _take_over(self, told: Reload) -> None:
        self._reload_state = told.state
        if told.config == self.config:
            return
        try:
            self._reload(told.config)
        except ValueError as error:
            refusal = Refusal(number=told.number, reason=str(error))
            self._channel.send(Kind.REFUSED, refusal.encode())
        else:
            self.config = told.config

    def _answered(self, number: int, text: str) -> None:
        # An answer that was given up may still come.
        if self._answer is not None and self._answer[0] == number and not self._answer[1].done():
            self._answer[1].set_result(text)

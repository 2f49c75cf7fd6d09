"""The store's side of the core's port: questions that only the database can answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from forebay._core import Core

log = structlog.get_logger("forebay.port")

Handler = Callable[[bytes], Awaitable[bytes]]
"""Answers one question: JSON in, JSON out. What it raises is a store that has failed."""


class Port:
    """Answers what the core asks, each question in a task of its own.

    handlers: by the question's kind.
    """

    def __init__(self, core: Core, handlers: Mapping[str, Handler]) -> None:
        self._core = core
        self._handlers = handlers
        self._answering: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Serve from now on."""
        self._serving = asyncio.create_task(self._serve(), name="port")

    async def stop(self) -> None:
        """Take no more questions; those that were taken have failed unless they are answered."""
        if self._serving is not None:
            self._serving.cancel()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            asked = self._core.asks()
            if isinstance(asked, asyncio.Future):
                asked = await asked
            for ticket, kind, payload in asked:
                task = asyncio.create_task(self._answer(ticket, kind, payload))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _answer(self, ticket: int, kind: str, payload: bytes) -> None:
        answer = None
        try:
            answer = await self._handlers[kind](payload)
        except Exception as error:
            log.warning("store failed", question=kind, error=str(error))
        finally:
            self._core.reply(ticket, answer)

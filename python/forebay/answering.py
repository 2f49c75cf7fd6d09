"""What the core asks of the database, in one process: repeated requests, stored responses,
whose files and batches are."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from forebay.gateway.idempotency import Repeats
from forebay.gateway.objects import Objects
from forebay.gateway.port import Port
from forebay.gateway.stored_responses import StoredResponses
from forebay.store.idempotency import IdempotencyStore
from forebay.store.objects import ObjectStore
from forebay.store.prompt_cipher import PromptCipher
from forebay.store.responses import ResponseStore

if TYPE_CHECKING:
    from forebay.gateway import Gateway
    from forebay.store import Database

STOP_S = 2.0
"""Seconds that asks get to end when the process does."""


class Answering:
    """Answers the core's asks from `start` to `stop`, with the gateway's settings of the moment.

    database: None while it has never been reached; asks fail until then.
    """

    def __init__(self, gateway: "Gateway", database: "Callable[[], Database | None]") -> None:
        self._gateway = gateway
        self._database = database
        self._cipher = PromptCipher(gateway.config.prompt_logs)
        self._sealed_by = gateway.config.prompt_logs
        self._repeats = Repeats(self._idempotency, lambda: gateway.config.idempotency)
        self._responses = StoredResponses(self._shelf, lambda: gateway.config.responses)
        objects = Objects(self._objects)
        handlers = {
            **self._repeats.handlers,
            **self._responses.handlers,
            **objects.handlers,
        }
        self._port = Port(gateway.core, handlers)
        gateway.responses = self._responses
        gateway.unfinished = lambda: self._repeats.running

    def start(self) -> None:
        """Begin, on the event loop that the core is attached to."""
        self._repeats.start()
        self._port.start()

    async def stop(self) -> None:
        """Answer what was asked, for a moment, and give up what still runs."""
        await self._port.stop(STOP_S)
        await self._repeats.stop()

    def _idempotency(self) -> IdempotencyStore | None:
        database = self._database()
        return None if database is None else IdempotencyStore(database, self._current_cipher())

    def _shelf(self) -> ResponseStore | None:
        database = self._database()
        return None if database is None else ResponseStore(database, self._current_cipher())

    def _objects(self) -> ObjectStore | None:
        database = self._database()
        return None if database is None else ObjectStore(database)

    def _current_cipher(self) -> PromptCipher:
        settings = self._gateway.config.prompt_logs
        if settings is not self._sealed_by:
            self._cipher, self._sealed_by = PromptCipher(settings), settings
        return self._cipher

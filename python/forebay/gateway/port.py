"""What the core asks of the database: each ask becomes a task, and its answer goes back."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from forebay.gateway.asks import Unanswerable

MAX_ASKS = 4096
"""Asks that are answered at a time; the core is told at once that others will not be."""
ENDINGS = frozenset({"idempotency.finish", "idempotency.leave", "object.forget"})
"""Kinds that end what was begun, and so make room: they are always taken, and do not count."""
_RETRY_S = 0.1
_TELL_S = 10.0

Handler = Callable[[bytes], Awaitable[bytes]]
"""Answers asks of one kind. What it raises is a failed ask."""

log = structlog.get_logger("forebay.gateway")


class Asking(Protocol):
    """The core's side of the port."""

    def asks(
        self,
    ) -> "list[tuple[int, str, bytes]] | asyncio.Future[list[tuple[int, str, bytes]]]":
        """Ticket, kind and payload of each ask that waits, or a future of them."""

    def reply(self, ticket: int, payload: bytes | None) -> None:
        """Answer an ask; None: it failed."""


class Port:
    """Serves the core's asks until `stop`. Nothing that a handler does ends it.

    handlers: by the kind of ask.
    most: asks that are answered at a time, besides those of `ENDINGS`.
    """

    def __init__(
        self, core: Asking, handlers: Mapping[str, Handler], *, most: int = MAX_ASKS
    ) -> None:
        self._core = core
        self._handlers = dict(handlers)
        self._most = most
        self._running: set[asyncio.Task[None]] = set()
        self._counted = 0
        self._serving: asyncio.Task[None] | None = None
        self._told: dict[tuple[str, str], float] = {}

    @property
    def busy(self) -> int:
        """Asks that are being answered."""
        return len(self._running)

    def start(self) -> None:
        """Begin, on the running event loop."""
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve(), name="port")

    async def stop(self, within_s: float = 1.0) -> None:
        """Take no more asks, and let those that run end, for so many seconds; others fail."""
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=within_s)
        left = [task for task in self._running if not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            try:
                asks = self._core.asks()
                if isinstance(asks, asyncio.Future):
                    asks = await asks
            except asyncio.CancelledError:
                # Also what becomes of the future when the core closes.
                return
            except Exception:
                log.exception("the core's asks cannot be read")
                await asyncio.sleep(_RETRY_S)
                continue
            for ticket, kind, payload in asks:
                self._take(ticket, kind, payload)

    def _take(self, ticket: int, kind: str, payload: bytes) -> None:
        handler = self._handlers.get(kind)
        counts = kind not in ENDINGS
        if handler is None or (counts and self._counted >= self._most):
            why = "nobody answers asks of this kind" if handler is None else "too many asks"
            self._tell(kind, why)
            self._core.reply(ticket, None)
            return
        task = asyncio.create_task(self._answer(ticket, kind, handler, payload), name=f"ask:{kind}")
        self._running.add(task)
        self._counted += counts
        task.add_done_callback(self._ended if counts else self._running.discard)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._counted -= 1

    async def _answer(self, ticket: int, kind: str, handler: Handler, payload: bytes) -> None:
        answer = None
        try:
            answer = await handler(payload)
        except Unanswerable as error:
            self._tell(kind, str(error))
        except Exception:
            log.exception("an ask of the core failed", ask=kind)
        finally:
            # Cancelled too: the core does not wait for what will not come.
            self._core.reply(ticket, answer)

    def _tell(self, kind: str, why: str) -> None:
        """Log why asks fail, now and then: while the database is away every one does."""
        now = asyncio.get_running_loop().time()
        if now - self._told.get((kind, why), -_TELL_S) < _TELL_S:
            return
        if len(self._told) > 100:
            self._told.clear()
        self._told[kind, why] = now
        log.warning("the core's asks are not answered", ask=kind, cause=why)

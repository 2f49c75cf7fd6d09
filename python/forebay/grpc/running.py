"""A call that runs: its task, the end of its client, and what goes out of it.

It stands on the same names inside `grpc._cython.cygrpc` as `accept`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

Pairs = tuple[tuple[str, str], ...]

_NO_FLAGS = 0
_OK = 0
_MORE_FOLLOWS = cygrpc.WriteFlag.buffer_hint
"""A message that need not leave before the next one."""


class Running:
    """A call from its acceptance to its end. One task serves it, cancelled once the client goes.

    ended: called once the task has ended and gRPC's core has done with the call.
    """

    __slots__ = ("_closing", "_ended", "_left", "_op", "_task")

    def __init__(
        self,
        state: Any,
        serve: Coroutine[Any, Any, None],
        loop: asyncio.AbstractEventLoop,
        name: str,
        ended: Callable[[str, "Running"], None],
    ) -> None:
        self._ended = ended
        self._left = 2
        self._op = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
        # Begun, and gone on with once it is complete: that takes no task.
        self._closing = cygrpc.execute_batch(state, (self._op,), loop)
        self._task = loop.create_task(serve, name=name)
        self._task.add_done_callback(self._part)
        try:
            self._closing.send(None).add_done_callback(self._closed)
        except cygrpc.ExecuteBatchError:
            self._part(None)

    def _closed(self, _: object) -> None:
        try:
            self._closing.send(None)
        except StopIteration:
            if self._op.cancelled() and not self._task.done():
                self._task.cancel()
        except cygrpc.ExecuteBatchError:
            self._task.cancel()
        self._part(None)

    def _part(self, _: object) -> None:
        self._left -= 1
        if not self._left:
            self._ended(self._task.get_name(), self)


class Answer:
    """What goes out of a call.

    is_over: whether gRPC's core has ended, and the call with it.
    """

    __slots__ = ("_first", "_is_over", "_loop", "_state", "is_begun")

    def __init__(
        self, state: Any, loop: asyncio.AbstractEventLoop, is_over: Callable[[], bool]
    ) -> None:
        self._state = state
        self._loop = loop
        self._is_over = is_over
        self._first: Pairs = ()
        self.is_begun = False
        """Whether initial metadata has gone out."""

    def head(self, first: Pairs) -> None:
        """The initial metadata, which leaves with the first thing that does."""
        self._first = first

    async def begin(self) -> None:
        """Send the initial metadata alone, if it has not gone yet."""
        if not self.is_begun:
            await self._send()

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages. It waits while the client does not read."""
        last = len(messages) - 1
        for index, message in enumerate(messages):
            # What goes with initial metadata leaves at once: gRPC's core would keep both back, and
            # say that they have gone only once they have, whenever the peer has it write again.
            flags = _MORE_FOLLOWS if index < last and self.is_begun else _NO_FLAGS
            await self._send(cygrpc.SendMessageOperation(message, flags))

    async def whole(self, message: bytes, last: Pairs) -> None:
        """Send the one message, and end well, all in one."""
        await self._send(
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(last, _OK, "", _NO_FLAGS),
        )

    async def end(
        self, last: Sequence[tuple[str, str | bytes]], code: int = _OK, text: str = ""
    ) -> None:
        """Send the trailing metadata and the status: nothing may follow."""
        await self._send(cygrpc.SendStatusFromServerOperation(tuple(last), code, text, _NO_FLAGS))

    async def _send(self, *batch: Any) -> None:
        if self._is_over():
            raise asyncio.CancelledError
        if not self.is_begun:
            self.is_begun = True
            batch = (cygrpc.SendInitialMetadataOperation(self._first, _NO_FLAGS), *batch)
        try:
            await cygrpc.execute_batch(self._state, batch, self._loop)
        except cygrpc.ExecuteBatchError:
            # The client has gone.
            raise asyncio.CancelledError from None

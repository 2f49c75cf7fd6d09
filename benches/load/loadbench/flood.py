"""Many connections that ask again as soon as they are answered, and count what came."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length: "
LAST_ANSWERS_S = 10.0
PAUSE_S = 0.01


@dataclass
class Tally:
    """What came. first_sent, last_admitted: monotonic seconds; cut: requests without an answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    cut: int = 0
    first_sent: float = 0.0
    last_admitted: float = 0.0

    @property
    def admitted(self) -> int:
        """Requests answered with 200."""
        return self.statuses[200]


class Flood:
    """`connections` of them to `address`, each with one `request` at a time, until `stop`."""

    def __init__(self, address: tuple[str, int], request: bytes, connections: int) -> None:
        self.tally = Tally()
        self.request = request
        self.stopped = False
        self._address = address
        self._wanted = connections
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self.tally.first_sent = time.monotonic()
        for _ in range(self._wanted):
            self._running.append(asyncio.create_task(self._run()))

    async def stop(self) -> None:
        """Ask no more; wait for the last answers."""
        self.stopped = True
        _, late = await asyncio.wait(self._running, timeout=LAST_ANSWERS_S)
        for task in late:
            task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopped:
            ended = loop.create_future()
            try:
                await loop.create_connection(lambda e=ended: _Connection(self, e), *self._address)
            except OSError:
                await asyncio.sleep(PAUSE_S)
                continue
            await ended


class _Connection(asyncio.Protocol):
    def __init__(self, flood: Flood, ended: asyncio.Future[None]) -> None:
        self._flood = flood
        self._ended = ended
        self._buffer = b""
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        if self._flood.stopped:
            self._transport.close()
            return
        self._waiting = True
        self._transport.write(self._flood.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(END)
        if head < 0:
            return
        at = self._buffer.find(LENGTH, 0, head)
        if at < 0:
            raise ValueError(f"an answer without a length: {self._buffer[:head]!r}")
        length = int(self._buffer[at + len(LENGTH) : head].split(b"\r\n", 1)[0])
        whole = head + len(END) + length
        if len(self._buffer) < whole:
            return
        tally = self._flood.tally
        status = int(self._buffer[9:12])
        tally.statuses[status] += 1
        if status == 200:
            tally.last_admitted = time.monotonic()
        self._buffer = self._buffer[whole:]
        self._waiting = False
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._flood.tally.cut += 1
        if not self._ended.done():
            self._ended.set_result(None)

"""Sending answers, faults included."""

from __future__ import annotations

from forebay_engine.sim.errors import dump, stream_error
from forebay_engine.sim.faults import Fault, garbage
from forebay_engine.sim.render import DONE
from forebay_engine.sim.wire import Exchange

DEATH = "Internal error: the scheduler process has died"
"""Message of the fault `error-event`."""


class EventStream:
    """A streamed answer. Its headers go out with the first event, as SGLang sends them.

    dead: a fault has struck; nothing more will be sent.
    """

    __slots__ = ("_buffer", "_exchange", "_seed", "_strike_at", "count", "dead", "fault")

    def __init__(self, exchange: Exchange, fault: Fault | None, seed: int) -> None:
        self._exchange = exchange
        self._buffer: list[bytes] = []
        self._seed = seed
        self.fault = fault
        self._strike_at = fault.after if fault is not None and fault.in_stream else -1
        self.count = 0
        self.dead = False

    def event(self, payload: bytes) -> bool:
        """Add one event, a whole `data: ...` block. False: it will not be sent."""
        if self.dead:
            return False
        if self.count == self._strike_at:
            self._strike(payload)
            return False
        self.count += 1
        self._buffer.append(self._exchange.frame(payload))
        return True

    def flush(self) -> None:
        """Send what was added since the last flush."""
        if not self._buffer:
            return
        if not self._exchange.started:
            self._buffer.insert(0, self._exchange.start_stream())
        self._exchange.write(b"".join(self._buffer))
        self._buffer.clear()

    def finish(self, *, done: bool = True) -> None:
        """End the answer, with `[DONE]` unless told otherwise."""
        if done:
            self.event(DONE)
        if not self.dead:
            self._end()

    def _end(self) -> None:
        self._buffer.append(self._exchange.last_chunk())
        self.flush()
        self._exchange.end()

    def _strike(self, payload: bytes) -> None:
        self.dead = True
        exchange, buffer = self._exchange, self._buffer
        kind = self.fault.kind if self.fault is not None else "cut"
        if kind == "stall":
            self.flush()
            return
        if not exchange.started:
            buffer.insert(0, exchange.start_stream())
        if kind in ("cut", "cut-mid-event"):
            if kind == "cut-mid-event":
                framed = exchange.frame(payload)
                buffer.append(framed[: len(framed) // 2])
            self.flush()
            exchange.close()
        elif kind == "garbage":
            buffer.append(exchange.frame(garbage(self._seed)))
            self._end()
        elif kind == "garbage-json":
            broken = payload.rstrip()[: len(payload) * 2 // 3] + b"\n\n"
            buffer.extend([exchange.frame(broken)] * 2 + [exchange.frame(DONE)])
            self._end()
        else:
            error = stream_error(DEATH, 500, "InternalServerError")
            buffer.extend([exchange.frame(error), exchange.frame(DONE)])
            self._end()


def send_unary(exchange: Exchange, body: bytes, fault: Fault | None, seed: int) -> bool:
    """Send a whole answer. False: a fault struck instead."""
    kind = fault.kind if fault is not None and fault.in_stream else None
    if kind is None:
        exchange.respond(200, body)
        return True
    if kind in ("cut", "cut-mid-event"):
        exchange.respond(200, body[: len(body) // 2], length=len(body))
        exchange.close()
    elif kind == "garbage":
        exchange.respond(200, garbage(seed))
    elif kind == "garbage-json":
        exchange.respond(200, body[: len(body) // 2])
    elif kind == "error-event":
        error = {"message": DEATH, "type": "InternalServerError", "param": None, "code": 500}
        exchange.respond(200, dump({"error": error}))
    return False

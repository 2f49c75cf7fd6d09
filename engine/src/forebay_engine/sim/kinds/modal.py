"""An app on Modal: its proxy in front of vLLM.

Nothing is refused while a container starts. An answer that has not begun after a while (150 s) is
put off: a 303 to the same URL with a query parameter, where a GET waits for it in the same manner.
The call goes on whoever leaves, is never made twice, and its result can be read once.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import Call
from forebay_engine.sim.kinds.failure import Failure, Problem
from forebay_engine.sim.kinds.vllm import VLLM
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.wire import Exchange

CALL = "__modal_function_call_id"


class Deferred:
    """The line of a call's answer: to whoever waits for it, or kept until somebody does."""

    def __init__(self) -> None:
        self.source: Exchange | None = None
        self.target: Exchange | None = None
        self.begun = self.over = False
        self.hops = 0
        self._kept: list[Callable[[Exchange], None]] = []

    def attach(self, exchange: Exchange) -> None:
        """Somebody waits."""
        self.target = exchange
        kept, self._kept = self._kept, []
        for act in kept:
            act(exchange)

    def _do(self, act: Callable[[Exchange], None]) -> None:
        self.begun = True
        if self.target is None:
            self._kept.append(act)
        else:
            act(self.target)

    def write(self, data: bytes) -> None:
        def act(exchange: Exchange) -> None:
            exchange.started = True
            exchange.write(data)

        self._do(act)

    def close(self) -> None:
        self.over = True
        self._do(lambda exchange: exchange.close())

    def exchange_ended(self, close: bool) -> None:
        del close  # the target knows what its own request asked for
        self.over = True
        self._do(lambda exchange: exchange.end())

    def switched(self, receiver: Callable[[bytes], None]) -> None:
        """Calls are no WebSockets."""
        raise AssertionError("a call is no WebSocket")


class Modal(VLLM):
    """`--api-key KEY:SECRET` are the proxy's token; the app behind it asks for none."""

    cold_way = "wait"
    cancels = "never"

    def __init__(self, options: SimOptions) -> None:
        super().__init__(options)
        self._calls: dict[str, Deferred] = {}

    def is_open(self, exchange: Exchange) -> bool:
        return False

    def authorized(self, exchange: Exchange) -> bool:
        key, _, secret = self.key.partition(b":")
        given = exchange.header(b"modal-key"), exchange.header(b"modal-secret")
        if None in given:
            raise Problem(401, "auth", "missing credentials for proxy authorization")
        return self.same(given[0], key) and self.same(given[1], secret)

    def failure(self, problem: Problem) -> Failure:
        if problem.why == "auth":
            text = problem.message or "invalid credentials for proxy authorization"
            return Failure(401, b"modal-http: %s\n" % text.encode(), b"", b"text/plain")
        return super().failure(problem)

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        if exchange.method == "GET" and CALL in exchange.query:
            return lambda: self._result(exchange)
        found = super().control(exchange)
        if found is None or self.state == "warm":
            return found
        # What is asked of the app starts a container, and waits for it.
        record = Record(exchange.path, [], b"", 0.0)
        return lambda: self.when_warm(exchange, record, found)

    def infer(self, exchange: Exchange, call: Call) -> None:
        line = Deferred()
        line.source = exchange.over(line)
        super().infer(line.source, call)
        self._wait(exchange, line, f"fc-{new_id()[:26]}")

    def _wait(self, exchange: Exchange, line: Deferred, name: str) -> None:
        line.attach(exchange)
        if line.over:
            return

        def put_off() -> None:
            if line.begun or line.target is not exchange:
                return
            line.target = None
            if line.hops >= self.options.redirect_hops:
                line.attach(exchange)
                return
            line.hops += 1
            self._calls[name] = line
            host = (exchange.header(b"host") or b"").decode("latin-1")
            where = f"location: http://{host}{exchange.path}?{CALL}={name}\r\n"
            exchange.respond(303, b"", before=where.encode("latin-1"), vary=False)

        def left() -> None:
            if line.target is not exchange:
                return
            line.target = None
            if line.hops and not line.begun:
                self._calls[name] = line  # whoever knows its name can come again
            elif line.source is not None:
                line.source.disconnected = True

        exchange.on_disconnect = left
        self._loop.call_later(self.options.redirect_after_s, put_off)

    def _result(self, exchange: Exchange) -> None:
        name = parse_qs(exchange.query).get(CALL, [""])[0]
        line = self._calls.pop(name, None)
        if line is None:
            text = b"modal-http: function call result not found\n"
            exchange.respond(404, text, b"text/plain", vary=False)
            return
        self._wait(exchange, line, name)

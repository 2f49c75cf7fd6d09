"""Requests in progress, for kinds whose answers a `Form` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forebay_engine.sim.faults import Fault, garbage
from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import Job
from forebay_engine.sim.kinds.failure import Problem
from forebay_engine.sim.kinds.form import Count, Form
from forebay_engine.sim.requests import Generation
from forebay_engine.sim.scheduler import Sequence
from forebay_engine.sim.stream import EventStream
from forebay_engine.sim.text import Delta
from forebay_engine.sim.wire import Exchange

if TYPE_CHECKING:
    from forebay_engine.sim.kinds.base import KindApp


class Answer(Job):
    """One request. What its form needs to know is here."""

    def __init__(
        self,
        app: KindApp,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
        form: Form,
    ) -> None:
        super().__init__(app.engine, exchange, record, request, fault)
        self.app = app
        self.form = form
        self.filtered = False

    @property
    def model(self) -> str:
        """The model as it was asked for."""
        return self.request.model

    def told(self, sequence: Sequence) -> int:
        """How many of a sequence's tokens the answer has told so far."""
        return sequence.generated

    def count(self) -> Count:
        """The tokens told so far."""
        told = [(self.told(s), self.plan(s).reasoning) for s in self.sequences]
        return Count(
            self.request.prompt_tokens,
            sum(made for made, _ in told),
            sum(min(made, thought) for made, thought in told),
            sum(s.cached_tokens for s in self.sequences[:: self.request.n]),
        )

    def deltas(self, sequence: Sequence, index: int) -> tuple[Delta, ...]:
        """What token `index` adds."""
        plan = self.plan(sequence)
        if plan.deltas is not None:
            return plan.deltas[index] if index < len(plan.deltas) else ()
        piece = plan.piece(index)
        return (Delta("content", piece),) if piece else ()

    def made(self, sequence: Sequence) -> list[Delta]:
        """All that was generated."""
        return [d for i in range(sequence.generated) for d in self.deltas(sequence, i)]

    def stop_string(self, sequence: Sequence) -> str | None:
        """The stop string that ended a sequence."""
        matched = self.ending(sequence)[1]
        return matched if isinstance(matched, str) else None

    def reason(self, sequence: Sequence) -> str:
        """Why a sequence ended."""
        if self.filtered:
            return "content_filter"
        reason = self.ending(sequence)[0]
        calls = any(delta.kind == "tool_name" for delta in self.made(sequence))
        return "tool_calls" if calls and reason == "stop" else reason

    @property
    def no_finish(self) -> bool:
        """The fault `no-finish` is on."""
        return self._is("no-finish")

    @property
    def no_usage(self) -> bool:
        """The fault `no-usage` is on."""
        return self._is("no-usage")

    def outcome(self) -> str:
        return self.reason(self.sequences[0]) if self.sequences else "stop"

    def refuse_full(self) -> None:
        problem = Problem(429, "full", "")
        failure = self.app.failure(problem)
        self.app.fail(self.exchange, problem)
        self.close(f"error:{failure.status}")

    def left_alone(self) -> None:
        """The client has hung up: stop, or go on as the kind does."""
        cancels = self.app.cancels
        if self.ended or cancels == "never" or (cancels == "streams" and not self.request.stream):
            return
        self.engine.call_later(self.app.hang_up_s, self.stop)

    def stop(self) -> None:
        """Stop for a client that is gone."""
        if not self.ended:
            self.engine.metrics.counters["num_aborted_requests_total"] += 1
            self.engine.drop(self)
            self.close("disconnected")


class Whole(Answer):
    """Answers once, when all its sequences have ended."""

    def progress(self, sequence: Sequence) -> None:
        if not sequence.done or self.ended:
            return
        self.left -= 1
        if self.left:
            return
        here = not self.exchange.disconnected
        struck = self._send()
        if here and not struck:
            self.record.delivered_tokens = sum(s.generated for s in self.sequences)
        self.close(f"fault:{self.fault.kind}" if struck and self.fault else self.outcome())

    def _send(self) -> bool:
        """Send the answer. True: a fault has struck."""
        exchange, fault = self.exchange, self.fault
        kind = fault.kind if fault is not None and fault.in_stream else None
        headers = self.app.headers(self.record)
        if kind == "filter":
            self.filtered = True
            kind = None
        if kind == "stall":
            return True
        if kind == "error-event":
            if self.app.cuts_on_error:
                exchange.close()
            else:
                self.app.reply(exchange, self.form.whole_error(self))
            return True
        body = self.form.whole(self)
        if kind in ("cut", "cut-mid-event"):
            half = body[: len(body) // 2]
            exchange.respond(200, half, before=headers, length=len(body), vary=False)
            exchange.close()
        elif kind == "garbage":
            self.app.reply(exchange, garbage(self.engine.options.seed))
        elif kind == "garbage-json":
            self.app.reply(exchange, body[: len(body) // 2])
        else:
            self.app.reply(exchange, body, headers)
            return False
        return True


class Events(EventStream):
    """A stream that begins and breaks as its kind's do."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Streamed) -> None:
        super().__init__(answer.exchange, answer.fault, answer.engine.options.seed)
        self._answer = answer

    def begin(self) -> None:
        """Send the head, unless it was."""
        if not self._exchange.started:
            self._exchange.write(self._head())

    def _head(self) -> bytes:
        app = self._answer.app
        headers = app.stream_headers + app.headers(self._answer.record)
        return self._exchange.start_stream(self._answer.form.stream_type, headers, vary=False)

    def flush(self) -> None:
        if not self._buffer:
            return
        if not self._exchange.started:
            self._buffer.insert(0, self._head())
        self._exchange.write(b"".join(self._buffer))
        self._buffer.clear()

    def finish(self, *, done: bool = True) -> None:
        if done:
            for event in self._answer.form.done(self._answer):
                self.event(event)
        if not self.dead:
            self._end()

    def _strike(self, payload: bytes) -> None:
        kind = self.fault.kind if self.fault is not None else "cut"
        answer, exchange = self._answer, self._exchange
        if kind in ("stall", "cut", "cut-mid-event", "garbage"):
            self.flush()
            if kind != "stall":
                self.begin()
            super()._strike(payload)
            return
        self.dead = True
        if kind == "error-event" and answer.app.cuts_on_error:
            self.flush()
            self.begin()
            exchange.close()
            return
        if kind == "filter":
            answer.filtered = True
            events = answer.cut_short()
            if self.count > 0 or answer.form.begins:
                events.insert(0, payload)
        elif kind == "garbage-json":
            events = [answer.form.broken()] * 2
        else:
            events = answer.form.error(answer)
        self._buffer += [exchange.frame(event) for event in events]
        self._end()


class Streamed(Answer):
    """Answers event by event."""

    def __init__(
        self,
        app: KindApp,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
        form: Form,
    ) -> None:
        super().__init__(app, exchange, record, request, fault, form)
        self.out = Events(self)
        given = app.options.comment_s
        self._comment_s = app.comment_s if given is None else given
        self._seen = -1
        if app.comment_first:
            self._comment()
        elif self._comment_s > 0:
            self.engine.call_later(self._comment_s, self._comment)

    def _comment(self) -> None:
        """Send a comment when nothing was sent since the last look."""
        if self.ended or self.exchange.disconnected:
            return
        if self.out.count == self._seen or self._seen < 0:
            self.out.begin()
            self.exchange.write(self.exchange.frame(self.app.comment))
        self._seen = self.out.count
        if self._comment_s > 0:
            self.engine.call_later(self._comment_s, self._comment)

    def told(self, sequence: Sequence) -> int:
        # Several may be made in a step that came late; they are told one by one.
        return sequence.reported

    def progress(self, sequence: Sequence) -> None:
        if self.ended:
            return
        while sequence.reported < sequence.generated:
            index = sequence.reported
            sequence.reported += 1
            if index == 0:
                self._add(self.form.begin(self, sequence.index))
            for delta in self.deltas(sequence, index):
                self._add(self.form.delta(self, sequence.index, delta))
            if self.out.dead:
                self._struck()
                return
            if not self.exchange.disconnected:
                self.record.delivered_tokens += 1
        if sequence.done:
            self.left -= 1
            if sequence.generated == 0:
                self._add(self.form.begin(self, sequence.index))
            if self.left == 0:
                self._finish()
                if self.out.dead:
                    self._struck()
                else:
                    self.close(self.outcome())
                return
        self.out.flush()

    def cut_short(self) -> list[bytes]:
        """The regular end, told early."""
        events = self.form.finish(self, 0, self.reason(self.sequences[0]))
        return events + self.form.usage(self) + self.form.done(self)

    def _add(self, events: list[bytes]) -> None:
        for event in events:
            self.out.event(event)

    def _finish(self) -> None:
        if not self.no_finish:
            for sequence in self.sequences:
                self._add(self.form.finish(self, sequence.index, self.reason(sequence)))
        if not self.no_usage:
            self._add(self.form.usage(self))
        self.out.finish(done=not self._is("no-done"))

    def _struck(self) -> None:
        self.engine.drop(self)
        struck = f"fault:{self.fault.kind}" if self.fault else "stop"
        self.close("content_filter" if self.filtered else struck)


def make_job(
    app: KindApp,
    exchange: Exchange,
    record: Record,
    request: Generation,
    fault: Fault | None,
    form: Form,
) -> Answer:
    """The job of a request."""
    made: type[Any] = Streamed if request.stream else Whole
    job: Answer = made(app, exchange, record, request, fault, form)
    return job

"""A request in progress: its sequences' tokens become bytes of its answer."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from forebay_engine.sim import render
from forebay_engine.sim.errors import dump, stream_error, unavailable
from forebay_engine.sim.faults import Fault
from forebay_engine.sim.history import Record
from forebay_engine.sim.requests import Generation
from forebay_engine.sim.scheduler import Sequence, State
from forebay_engine.sim.stream import EventStream, send_unary
from forebay_engine.sim.text import Delta, Plan
from forebay_engine.sim.wire import Exchange

if TYPE_CHECKING:
    from forebay_engine.sim.engine import Engine


class Job:
    """One request. Subclasses say how its tokens are written.

    progress(sequence): tokens were made, or the sequence ended.
    """

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
    ) -> None:
        self.engine = engine
        self.exchange = exchange
        self.record = record
        self.request = request
        self.fault = fault
        self.rid = request.rid or new_id()
        self.created = int(time.time())
        self.sequences: list[Sequence] = []
        self.left = len(request.plans)
        self.ended = False
        per_prompt = request.n
        for index in range(len(request.plans)):
            prompt = request.prompts[index // per_prompt]
            self.sequences.append(
                Sequence(
                    prompt_tokens=prompt.tokens,
                    cached_tokens=engine.cached(prompt),
                    target=request.plans[index].total,
                    limit=request.limit,
                    stream=request.stream,
                    owner=self,
                    index=index,
                )
            )
        record.rid, record.model, record.stream = self.rid, request.model, request.stream
        record.prompt_tokens = request.prompt_tokens

    def progress(self, sequence: Sequence) -> None:
        """Handle tokens made since the last call, or an end."""
        raise NotImplementedError

    def refuse_full(self) -> None:
        """Answer that the queue is full."""
        self.exchange.respond(503, unavailable("The request queue is full."))
        self.close("error:503")

    def close(self, outcome: str) -> None:
        """Note the outcome; nothing more will be written."""
        if self.ended:
            return
        self.ended = True
        self.record.outcome = outcome
        self.record.finished_at = time.time()
        self.record.completion_tokens = sum(s.generated for s in self.sequences)
        self.engine.forget(self)

    def choice_id(self, index: int) -> str:
        """The id of a choice: the request's for the first, its own for others."""
        if index == 0:
            return self.rid
        return f"{self.request.rid}_{index}" if self.request.rid else new_id()

    def plan(self, sequence: Sequence) -> Plan:
        """What the sequence will say."""
        return self.request.plans[sequence.index]

    def ending(self, sequence: Sequence) -> tuple[str, int | str | None]:
        """finish_reason and matched_stop of a sequence that has ended."""
        if sequence.state is State.ABORTED:
            return "abort", None
        plan = self.plan(sequence)
        return plan.finish, plan.matched_stop

    def usage(self, *sequences: Sequence, prompt: int | None = None) -> render.Usage:
        """Usage of some sequences. `prompt`: prompt tokens; None counts the request's."""
        completion = sum(s.generated for s in sequences)
        reasoning = sum(min(s.generated, self.plan(s).reasoning) for s in sequences)
        cached = None
        if self.engine.options.cache_report:
            cached = sum(s.cached_tokens for s in sequences[:: self.request.n])
        tokens = self.request.prompt_tokens if prompt is None else prompt
        return render.Usage(tokens, completion, reasoning, cached)

    def outcome(self) -> str:
        """The recorded outcome of an answer that was given to its end."""
        return self.ending(self.sequences[0])[0] if self.sequences else "stop"

    def _is(self, kind: str) -> bool:
        return self.fault is not None and self.fault.kind == kind


class UnaryJob(Job):
    """Answers once, when all its sequences have ended."""

    def progress(self, sequence: Sequence) -> None:
        if not sequence.done or self.ended:
            return
        self.left -= 1
        if self.left:
            return
        body = self.body()
        here = not self.exchange.disconnected
        if send_unary(self.exchange, body, self.fault, self.engine.options.seed):
            if here:
                self.record.delivered_tokens = sum(s.generated for s in self.sequences)
            self.close(self.outcome())
        else:
            self.close(f"fault:{self.fault.kind}" if self.fault else "stop")

    def body(self) -> bytes:
        """The JSON of the answer."""
        raise NotImplementedError

    def _whole(self, kind: bytes, choices: list[bytes]) -> bytes:
        usage = b"" if self._is("no-usage") else self.usage(*self.sequences).full()
        most = max(s.generated for s in self.sequences)
        created = int(time.time())
        return render.whole(self.rid, kind, created, self.request.model, choices, usage, most)


class ChatUnary(UnaryJob):
    """`/v1/chat/completions` without a stream."""

    def body(self) -> bytes:
        return self._whole(b"chat.completion", [self._choice(s) for s in self.sequences])

    def _choice(self, sequence: Sequence) -> bytes:
        plan, count = self.plan(sequence), sequence.generated
        finish, matched = self.ending(sequence)
        reason: str | None = finish
        calls: list[dict[str, Any]] = []
        thought: str | None = None
        if plan.deltas is None:
            content = plan.text(count)
        else:
            deltas = [delta for made in plan.deltas[:count] for delta in made]
            content = "".join(d.text for d in deltas if d.kind == "content")
            thought = "".join(d.text for d in deltas if d.kind == "reasoning") or None
            calls = _calls(deltas) if finish == "stop" else []
        if calls:
            reason, matched = "tool_calls", None
        logprobs = b"null"
        if self.request.logprobs:
            pieces = [piece for i in range(count) if (piece := plan.piece(i))]
            logprobs = render.chat_logprobs(pieces, self.request.top_logprobs)
        if self._is("no-finish"):
            reason, matched = None, None
        return render.chat_choice(
            sequence.index, content, thought, calls, logprobs, reason, matched
        )

    def outcome(self) -> str:
        plan = self.plan(self.sequences[0])
        reason = super().outcome()
        return "tool_calls" if reason == "stop" and _has_calls(plan) else reason


class TextUnary(UnaryJob):
    """`/v1/completions` without a stream."""

    def body(self) -> bytes:
        return self._whole(b"text_completion", [self._choice(s) for s in self.sequences])

    def _choice(self, sequence: Sequence) -> bytes:
        plan, request = self.plan(sequence), self.request
        echoed = request.prompts[sequence.index // request.n].text if request.echo else ""
        logprobs = b"null"
        if request.logprobs:
            pieces = [piece for i in range(sequence.generated) if (piece := plan.piece(i))]
            logprobs = render.text_logprobs(echoed, pieces, request.top_logprobs)
        finish: tuple[str | None, int | str | None] = self.ending(sequence)
        if self._is("no-finish"):
            finish = (None, None)
        text = echoed + plan.text(sequence.generated)
        return render.text_choice(sequence.index, text, logprobs, *finish)


class StreamJob(Job):
    """Answers event by event."""

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
    ) -> None:
        super().__init__(engine, exchange, record, request, fault)
        self.out = EventStream(exchange, fault, engine.options.seed)

    def progress(self, sequence: Sequence) -> None:
        if self.ended:
            return
        done = sequence.done
        while sequence.reported < sequence.generated:
            index = sequence.reported
            sequence.reported += 1
            self.token(sequence, index, last=done and sequence.reported == sequence.generated)
            if self.out.dead:
                self._struck()
                return
            if not self.exchange.disconnected:
                self.record.delivered_tokens += 1
        if done:
            self.left -= 1
            if sequence.generated == 0 or sequence.state is State.ABORTED:
                self.ended_early(sequence)
            if self.left == 0:
                self.finish()
                if self.out.dead:
                    self._struck()
                else:
                    self.close(self.outcome())
                return
        self.out.flush()

    def token(self, sequence: Sequence, index: int, *, last: bool) -> None:
        """Write what token `index` adds. `last`: the sequence has ended with it."""
        raise NotImplementedError

    def ended_early(self, sequence: Sequence) -> None:
        """Write the end of a sequence that no token could carry."""

    def finish(self) -> None:
        """Write what follows the last sequence's end."""
        raise NotImplementedError

    def refuse_full(self) -> None:
        self.out.event(stream_error("The request queue is full."))
        if self.request.include_usage:
            self.out.event(self.usage_event(render.Usage(0, 0)))
        self.out.finish()
        self.close("error:503")

    def usage_event(self, usage: render.Usage) -> bytes:
        """The event with the usage of the whole answer."""
        raise NotImplementedError

    def _struck(self) -> None:
        self.engine.drop(self)
        self.close(f"fault:{self.fault.kind}" if self.fault else "stop")

    def _continuous(self, sequence: Sequence, index: int) -> bytes:
        if not self.request.continuous_usage or self._is("no-usage"):
            return b""
        thought = min(index + 1, self.plan(sequence).reasoning)
        cached = sequence.cached_tokens if self.engine.options.cache_report else None
        return render.Usage(sequence.prompt_tokens, index + 1, thought, cached).full()

    def _end(self) -> None:
        if self.request.include_usage and not self._is("no-usage"):
            self.out.event(self.usage_event(self.usage(*self.sequences)))
        self.out.finish(done=not self._is("no-done"))


class ChatStream(StreamJob):
    """`/v1/chat/completions` as a stream."""

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
    ) -> None:
        super().__init__(engine, exchange, record, request, fault)
        self._chunks = [
            render.ChatChunks(self.choice_id(i), self.created, request.model, i)
            for i in range(self.left)
        ]
        self._latest = self._chunks[0]

    def token(self, sequence: Sequence, index: int, *, last: bool) -> None:
        del last
        chunks = self._latest = self._chunks[sequence.index]
        plan, out = self.plan(sequence), self.out
        if index == 0:
            out.event(chunks.role())
        usage = self._continuous(sequence, index)
        if plan.deltas is not None:
            for delta in plan.deltas[index] if index < len(plan.deltas) else ():
                call = _call_id() if delta.kind == "tool_name" else None
                out.event(chunks.delta(delta, call, usage))
            return
        piece = plan.piece(index)
        if piece:
            logprobs = b"null"
            if self.request.logprobs:
                logprobs = render.chat_logprobs([piece], self.request.top_logprobs)
            out.event(chunks.content(piece, usage, logprobs))

    def finish(self) -> None:
        if not self._is("no-finish"):
            for sequence in self.sequences:
                reason, matched = self.ending(sequence)
                if reason == "stop" and _has_calls(self.plan(sequence)):
                    reason = "tool_calls"
                self.out.event(self._latest.finish(sequence.index, reason, matched))
        self._end()

    def usage_event(self, usage: render.Usage) -> bytes:
        return self._latest.usage(usage)

    def outcome(self) -> str:
        reason = super().outcome()
        plan = self.plan(self.sequences[0])
        return "tool_calls" if reason == "stop" and _has_calls(plan) else reason


class TextStream(StreamJob):
    """`/v1/completions` as a stream."""

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
    ) -> None:
        super().__init__(engine, exchange, record, request, fault)
        self._chunks = [
            render.TextChunks(self.choice_id(i), self.created, request.model, i)
            for i in range(self.left)
        ]
        self._latest = self._chunks[0]

    def token(self, sequence: Sequence, index: int, *, last: bool) -> None:
        piece = self.plan(sequence).piece(index)
        ends = last and sequence.state is State.DONE
        if index == 0 and self.request.echo:
            piece = self.request.prompts[sequence.index // self.request.n].text + piece
        if piece or ends:
            self._piece(sequence, index, piece, ends)

    def ended_early(self, sequence: Sequence) -> None:
        self._piece(sequence, max(0, sequence.generated - 1), "", True)

    def finish(self) -> None:
        self._end()

    def usage_event(self, usage: render.Usage) -> bytes:
        return self._latest.usage(usage)

    def _piece(self, sequence: Sequence, index: int, piece: str, ends: bool) -> None:
        chunks = self._latest = self._chunks[sequence.index]
        finish: tuple[str | None, int | str | None] = (None, None)
        if ends and not self._is("no-finish"):
            finish = self.ending(sequence)
        logprobs = b"null"
        if self.request.logprobs and piece:
            logprobs = render.text_logprobs("", [piece], self.request.top_logprobs)
        usage = self._continuous(sequence, index)
        self.out.event(chunks.piece(piece, *finish, usage, logprobs))


class GenerateUnary(UnaryJob):
    """`/generate` without a stream."""

    def body(self) -> bytes:
        return native(self, self.sequences[0], self.sequences[0].generated, final=True)


class GenerateStream(StreamJob):
    """`/generate` as a stream; each event has the whole text so far."""

    def token(self, sequence: Sequence, index: int, *, last: bool) -> None:
        ends = last and sequence.state is State.DONE
        self.out.event(b"data: %s\n\n" % native(self, sequence, index + 1, final=ends))

    def ended_early(self, sequence: Sequence) -> None:
        self.out.event(b"data: %s\n\n" % native(self, sequence, sequence.generated, final=True))

    def finish(self) -> None:
        self.out.finish(done=not self._is("no-done"))

    def usage_event(self, usage: render.Usage) -> bytes:
        return b"data: %s\n\n" % usage.full()


def native(job: Job, sequence: Sequence, count: int, *, final: bool) -> bytes:
    """JSON of `/generate`: text so far and its meta_info. `final`: with the finish fields."""
    plan = job.plan(sequence)
    offset = job.engine.unix_offset
    reason, _ = job.ending(sequence)
    finish: dict[str, object] | None = None
    if final:
        finish = {"type": reason}
        if reason == "length":
            finish["length"] = count
        elif reason == "stop":
            finish["matched"] = plan.matched_stop
    cached = sequence.cached_tokens
    start, first = sequence.started + offset, sequence.first_token + offset
    meta: dict[str, object] = {
        "id": job.rid,
        "finish_reason": finish,
        "prompt_tokens": sequence.prompt_tokens,
        "weight_version": "default",
        "num_retractions": 0,
        "storage_prefetch_wait": 0.0,
        "storage_staging_wait": 0.0,
        "forward_entry_time": start,
        "prefill_finished_time": first,
        "queue_time": sequence.started - sequence.arrived,
        "reasoning_tokens": 0,
        "completion_tokens": count,
        "cached_tokens": cached,
    }
    if final:
        meta["weight_versions"] = [{"version": "default", "start": 0, "end": count}]
    meta["cached_tokens_details"] = {"device": cached, "host": 0}
    meta["dp_rank"] = None
    now = time.time()
    if final:
        arrived = sequence.arrived + offset
        meta["e2e_latency"] = now - arrived
        meta["request_received_ts"] = arrived
        meta["first_token_latency"] = first - arrived
        meta["api_server_dispatch_finish_ts"] = arrived
        if job.request.stream:
            meta["response_sent_to_client_ts"] = first
        meta["request_finished_ts"] = now
        meta["decode_throughput"] = count / max(1e-6, now - first)
        if not job.request.stream:
            meta["response_sent_to_client_ts"] = now
    elif count == 1:
        meta["response_sent_to_client_ts"] = now
    text = plan.text(count)
    ids = [256 + (len(plan.piece(i)) * 31 + i) % 4096 for i in range(count)]
    return dump({"text": text, "output_ids": ids, "meta_info": meta})


JOBS: dict[tuple[str, bool], type[Job]] = {
    ("/v1/chat/completions", False): ChatUnary,
    ("/v1/chat/completions", True): ChatStream,
    ("/v1/completions", False): TextUnary,
    ("/v1/completions", True): TextStream,
    ("/generate", False): GenerateUnary,
    ("/generate", True): GenerateStream,
}


def new_id() -> str:
    """32 hexadecimal digits."""
    return os.urandom(16).hex()


def _call_id() -> str:
    return f"call_{os.urandom(12).hex()}"


def _has_calls(plan: Plan) -> bool:
    return any(delta.kind == "tool_name" for made in plan.deltas or () for delta in made)


def _calls(deltas: list[Delta]) -> list[dict[str, Any]]:
    names = [delta.text for delta in deltas if delta.kind == "tool_name"]
    arguments = [delta.text for delta in deltas if delta.kind == "tool_args"]
    return [
        {
            "id": _call_id(),
            "index": index,
            "type": "function",
            "function": {"name": name, "arguments": given},
        }
        for index, (name, given) in enumerate(zip(names, arguments, strict=True))
    ]

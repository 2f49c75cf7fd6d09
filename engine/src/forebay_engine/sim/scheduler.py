"""The queue model: continuous batching with prefill, decode and admission. Pure: time is injected.

One prefill runs at a time. It takes the prompt tokens that are not cached, of everything that was
admitted together, divided by the prefill rate, holds the decode step back by as long (as a prefill
batch does on a GPU), and ends with the first token of each of its sequences. Decoding steps every
running sequence by one token at once.

Admission is first come, first served, and limited by the number of running sequences and by KV
tokens. Reservation: prompt + 0.7 of the requested new tokens, those clipped to 4,096 (SGLang's
`init_new_token_ratio` and `CLIP_MAX_NEW_TOKENS`). One too large for an empty pool runs alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

NEW_TOKEN_RATIO = 0.7
CLIP_NEW_TOKENS = 4096
INSTANT_TOKENS = 64
"""Tokens a step makes when decoding takes no time, so that a step still ends."""


class State(Enum):
    """Where a sequence stands."""

    NEW = "new"
    QUEUED = "queued"
    PREFILL = "prefill"
    RUNNING = "running"
    DONE = "done"
    ABORTED = "aborted"


class Sequence:
    """One generation in the queue model.

    prompt_tokens, cached_tokens: tokens; cached ones cost no prefill.
    target: tokens it will make before it ends by itself.
    limit: tokens it may make as the request stated, for the KV reservation.
    stream: report it after each step, not only when it ends.
    owner: whoever handles the reports; not looked at here.
    """

    __slots__ = (
        "arrived",
        "cached_tokens",
        "finished",
        "first_token",
        "generated",
        "index",
        "limit",
        "owner",
        "prompt_tokens",
        "reported",
        "started",
        "state",
        "stream",
        "target",
        "touched",
    )

    def __init__(
        self,
        *,
        prompt_tokens: int,
        target: int,
        limit: int | None = None,
        cached_tokens: int = 0,
        stream: bool = False,
        owner: object = None,
        index: int = 0,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.target = target
        self.limit = target if limit is None else limit
        self.stream = stream
        self.owner = owner
        self.index = index
        self.generated = 0
        self.reported = 0
        self.touched = False
        self.state = State.NEW
        self.arrived = self.started = self.first_token = self.finished = 0.0

    @property
    def done(self) -> bool:
        """Whether it will make no more tokens."""
        return self.state is State.DONE or self.state is State.ABORTED

    @property
    def reservation(self) -> int:
        """KV tokens held back for it while it is admitted."""
        return self.prompt_tokens + int(NEW_TOKEN_RATIO * min(self.limit, CLIP_NEW_TOKENS))


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates and bounds of the queue model.

    prefill_rate: tokens per second; 0 takes no time.
    decode_rate: tokens per second of one sequence that runs alone; 0 takes no time.
    batch_slowdown: by how much of itself a step grows with each further sequence in it.
    max_queued: sequences that may wait; None is no bound.
    """

    prefill_rate: float = 50_000.0
    decode_rate: float = 200.0
    batch_slowdown: float = 0.0001
    max_running: int = 2048
    max_queued: int | None = None
    kv_tokens: int = 4 * 1024 * 1024


class Scheduler:
    """Steps all sequences. Call `advance(now)` whenever `next_time()` has come.

    All times are seconds on one clock of the caller's choice.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.queue: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.running: list[Sequence] = []
        self.extra_step_s = 0.0
        self.paused = False
        self.used_tokens = 0
        self.reserved_tokens = 0
        self.prefill_tokens_total = 0
        self.prefill_seconds_total = 0.0
        self._prefill_end = 0.0
        self._decode_due: float | None = None
        self._kv_full = False

    @property
    def active(self) -> int:
        """Sequences admitted and not finished."""
        return len(self.running) + len(self.prefilling)

    def has_room(self, count: int = 1) -> bool:
        """Whether `count` more sequences may be submitted without overfilling the queue."""
        bound = self.limits.max_queued
        if bound is None:
            return True
        free = 0 if self._kv_full else max(0, self.limits.max_running - self.active)
        return len(self.queue) + count <= bound + free

    def submit(self, sequence: Sequence, now: float) -> bool:
        """Queue a sequence, or admit it at once. False: the queue is full, nothing changed."""
        if not self.has_room():
            return False
        sequence.arrived = now
        sequence.state = State.QUEUED
        self.queue.append(sequence)
        self._start_prefill(now)
        return True

    def next_time(self) -> float | None:
        """When `advance` next has something to do; None while idle or paused."""
        if self.paused:
            return None
        if self.prefilling:
            return self._prefill_end
        return self._decode_due

    def advance(self, now: float) -> list[Sequence]:
        """Do every step due by `now`.

        Returns the sequences to report: streaming ones that made tokens since their last report,
        and all that ended. Each appears once, with `touched` set; the caller clears that flag.
        """
        reports: list[Sequence] = []
        instant = False
        while not instant:
            due = self.next_time()
            if due is None or due > now:
                break
            if self.prefilling:
                self._finish_prefill(due, reports)
            else:
                self._decode(due, reports)
                instant = self._decode_due is not None and self._decode_due <= due
        return reports

    def abort(self, sequence: Sequence, now: float) -> bool:
        """End a sequence at once, whatever its state. False: it had ended already."""
        if sequence.state is State.QUEUED:
            self.queue.remove(sequence)
        elif sequence.state is State.PREFILL:
            self.prefilling.remove(sequence)
            self._release(sequence)
        elif sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            return False
        sequence.state = State.ABORTED
        sequence.finished = now
        if not self.running:
            self._decode_due = None
        self._start_prefill(now)
        return True

    def pause(self) -> None:
        """Stop stepping; what is submitted waits."""
        self.paused = True

    def resume(self, now: float) -> None:
        """Step again from `now` on."""
        if not self.paused:
            return
        self.paused = False
        if self.prefilling:
            self._prefill_end = max(self._prefill_end, now)
        if self.running:
            self._decode_due = now + self._step_time()
        self._start_prefill(now)

    def _step_time(self) -> float:
        rate = self.limits.decode_rate
        if rate <= 0:
            return self.extra_step_s
        slowdown = 1.0 + self.limits.batch_slowdown * (len(self.running) - 1)
        return slowdown / rate + self.extra_step_s

    def _start_prefill(self, now: float) -> None:
        if self.paused or self.prefilling or not self.queue:
            return
        limits, tokens = self.limits, 0
        self._kv_full = False
        while self.queue and self.active < limits.max_running:
            sequence = self.queue[0]
            need = sequence.reservation
            if self.reserved_tokens + need > limits.kv_tokens and self.active:
                self._kv_full = True
                break
            self.queue.popleft()
            self.reserved_tokens += need
            self.used_tokens += sequence.prompt_tokens
            tokens += sequence.prompt_tokens - sequence.cached_tokens
            sequence.state = State.PREFILL
            sequence.started = now
            self.prefilling.append(sequence)
        if not self.prefilling:
            return
        took = tokens / limits.prefill_rate if limits.prefill_rate > 0 else 0.0
        took += self.extra_step_s
        self._prefill_end = now + took
        self.prefill_tokens_total += tokens
        self.prefill_seconds_total += took
        if self._decode_due is not None:
            self._decode_due += took

    def _finish_prefill(self, at: float, reports: list[Sequence]) -> None:
        batch, self.prefilling = self.prefilling, []
        was_idle = not self.running
        for sequence in batch:
            sequence.state = State.RUNNING
            sequence.first_token = at
            if sequence.target > 0:
                sequence.generated = 1
                self.used_tokens += 1
            if sequence.generated >= sequence.target:
                self._finish(sequence, at)
            else:
                self.running.append(sequence)
            if sequence.stream or sequence.done:
                _report(sequence, reports)
        if was_idle:
            self._decode_due = at + self._step_time() if self.running else None
        self._start_prefill(at)

    def _decode(self, at: float, reports: list[Sequence]) -> None:
        burst = 1 if self._step_time() > 0 else INSTANT_TOKENS
        ended = False
        made = 0
        for sequence in self.running:
            before = sequence.generated
            after = min(before + burst, sequence.target)
            sequence.generated = after
            made += after - before
            if after >= sequence.target:
                ended = True
                if not sequence.touched:
                    _report(sequence, reports)
            elif sequence.stream and not sequence.touched:
                _report(sequence, reports)
        self.used_tokens += made
        if ended:
            still: list[Sequence] = []
            for sequence in self.running:
                if sequence.generated >= sequence.target:
                    self._finish(sequence, at)
                else:
                    still.append(sequence)
            self.running = still
        self._decode_due = at + self._step_time() if self.running else None
        if ended:
            self._start_prefill(at)

    def _finish(self, sequence: Sequence, at: float) -> None:
        sequence.state = State.DONE
        sequence.finished = at
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.reserved_tokens -= sequence.reservation
        self.used_tokens -= sequence.prompt_tokens + sequence.generated


def _report(sequence: Sequence, reports: list[Sequence]) -> None:
    if not sequence.touched:
        sequence.touched = True
        reports.append(sequence)

"""Drives the queue model in real time: one timer for all requests."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

from forebay_engine.sim.jobs import Job
from forebay_engine.sim.metrics import Metrics
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.requests import Prompt
from forebay_engine.sim.scheduler import Scheduler, Sequence, State

STREAM_DISCONNECT_S = 0.1
"""When a hang-up on a stream that has begun is noticed, as measured on the real server."""
EARLY_S = 0.0005
"""uvloop rounds timers to 1 ms: a step due within half of that is done at once."""
CACHE_BLOCK_BYTES = 256
CACHE_ENTRIES = 65_536


class Engine:
    """Accepts jobs, steps them, and aborts them.

    unix_offset: add it to the loop's time for Unix time, seconds.
    """

    def __init__(self, options: SimOptions) -> None:
        self.options = options
        self.scheduler = Scheduler(options.limits)
        self.metrics = Metrics()
        self.jobs: dict[str, Job] = {}
        self._loop = asyncio.get_running_loop()
        self.unix_offset = time.time() - self._loop.time()
        # uvloop gives a plain Handle, which knows no time, where that is nearly now.
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._soon: asyncio.Handle | None = None
        self._cache: OrderedDict[int, None] = OrderedDict()

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return not self.jobs

    def cached(self, prompt: Prompt) -> int:
        """Tokens of a prompt that the prefix cache holds; the prompt is in it from now on."""
        data = (prompt.text + prompt.prefix).encode()
        cache, key, known, hits = self._cache, 0, True, 0
        for start in range(0, len(data), CACHE_BLOCK_BYTES):
            key = zlib.crc32(data[start : start + CACHE_BLOCK_BYTES], key)
            if known and key in cache:
                cache.move_to_end(key)
                hits = min(start + CACHE_BLOCK_BYTES, len(data))
            else:
                known = False
                cache[key] = None
        while len(cache) > CACHE_ENTRIES:
            cache.popitem(last=False)
        whole = known and bool(data)
        tokens = prompt.tokens - 1 if whole else hits // self.options.bytes_per_token
        tokens = max(0, min(tokens, prompt.tokens - 1))
        self.metrics.cached_tokens += tokens
        return tokens

    def note_running(self) -> None:
        """Bring the outcomes of the requests in progress up to date."""
        for job in self.jobs.values():
            states = [sequence.state for sequence in job.sequences]
            if State.RUNNING in states or State.PREFILL in states:
                job.record.outcome = "running"
            job.record.completion_tokens = sum(s.generated for s in job.sequences)

    def flush_cache(self) -> bool:
        """Empty the prefix cache. False: requests are in progress, so it was not done."""
        if self.scheduler.active or self.scheduler.queue:
            return False
        self._cache.clear()
        return True

    def reserve(self, job: Job) -> bool:
        """Take the job's rid. False: a running request has it."""
        if job.rid in self.jobs:
            return False
        self.jobs[job.rid] = job
        job.exchange.on_disconnect = lambda: self._disconnected(job)
        return True

    def submit(self, job: Job) -> None:
        """Queue a job that has its rid; it is answered when the queue is full."""
        if job.ended:
            return
        now = self._loop.time()
        if not self.scheduler.has_room(len(job.sequences)):
            job.refuse_full()
            return
        for sequence in job.sequences:
            self.scheduler.submit(sequence, now)
        self._arm()

    def abort(self, job: Job) -> None:
        """End a job now; it is answered with finish_reason `abort`."""
        now = self._loop.time()
        self.metrics.counters["num_aborted_requests_total"] += 1
        for sequence in job.sequences:
            if sequence.state is State.NEW:
                sequence.state = State.ABORTED
                job.progress(sequence)
            elif self.scheduler.abort(sequence, now):
                job.progress(sequence)
        self._arm()

    def drop(self, job: Job) -> None:
        """Stop a job's sequences without an answer."""
        now = self._loop.time()
        for sequence in job.sequences:
            self.scheduler.abort(sequence, now)
        self._arm()

    def forget(self, job: Job) -> None:
        """A job has ended: free its rid and count it."""
        if self.jobs.get(job.rid) is job:
            del self.jobs[job.rid]
        metrics = self.metrics
        metrics.counters["num_requests_total"] += 1
        metrics.counters["prompt_tokens_total"] += job.request.prompt_tokens
        for sequence in job.sequences:
            self._observe(sequence)

    def call_later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something in a while."""
        self._loop.call_later(delay_s, work)

    def wake(self) -> None:
        """Look again at when to step, after the scheduler was changed from outside."""
        self._arm()

    def _observe(self, sequence: Sequence) -> None:
        metrics = self.metrics
        metrics.counters["generation_tokens_total"] += sequence.generated
        if not sequence.generated:
            return
        end = sequence.finished or self._loop.time()
        histograms = metrics.histograms
        histograms["queue_time_seconds"].observe(sequence.started - sequence.arrived)
        first = sequence.first_token - sequence.arrived
        histograms["time_to_first_token_seconds"].observe(first)
        histograms["e2e_request_latency_seconds"].observe(end - sequence.arrived)
        gaps = sequence.generated - 1
        if gaps > 0:
            mean = (end - sequence.first_token) / gaps
            histograms["inter_token_latency_seconds"].observe(mean, gaps)

    def _disconnected(self, job: Job) -> None:
        if job.ended:
            return
        stream = job.request.stream and job.exchange.started
        delay = STREAM_DISCONNECT_S if stream else self.options.disconnect_poll_s
        self._loop.call_later(delay, self._hung_up, job)

    def _hung_up(self, job: Job) -> None:
        if not job.ended:
            self.metrics.counters["num_aborted_requests_total"] += 1
            self.drop(job)
            job.close("disconnected")

    def _arm(self) -> None:
        due = self.scheduler.next_time()
        if self._timer is not None:
            if due == self._timer_due:
                return
            self._timer.cancel()
            self._timer = None
        if due is None or self._soon is not None:
            return
        if due <= self._loop.time() + EARLY_S:
            self._soon = self._loop.call_soon(self._tick)
        else:
            self._timer = self._loop.call_at(due, self._tick)
            self._timer_due = due

    def _tick(self) -> None:
        self._soon = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sequence in self.scheduler.advance(self._loop.time() + EARLY_S):
            sequence.touched = False
            cast(Job, sequence.owner).progress(sequence)
        self._arm()

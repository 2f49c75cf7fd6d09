"""How long the stages of a start took, from the engine's log lines and the supervisor's probes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from forebay_engine.serve.engines import Mark, Stage


class Phases(msgspec.Struct, kw_only=True):
    """Seconds; None while unknown, or where the engine's log does not tell.

    The first five are how long each took, and the last two when it was, after the wake. What lies
    between (processes started, distributed groups, sizing of the cache) is in none of the five.
    """

    prepare: float | None = None
    """Weights synced into the cache folder."""
    process: float | None = None
    """Until there was a process."""
    import_: float | None = msgspec.field(default=None, name="import")
    """From there to the line that says its arguments are read: libraries are imported."""
    weights: float | None = None
    """From the first rank's begin to the last one's end."""
    graphs: float | None = None
    """The same of captured graphs, or of what the engine does instead."""
    ready: float | None = None
    """When its ready path said so."""
    first_token: float | None = None
    """When the first warm-up prompt had its first token."""


class Timeline:
    """Makes phases out of moments. Pure: the caller tells the time."""

    def __init__(self, marks: Sequence[Mark], began: float) -> None:
        """began: the moment of the wake, in the clock that all other moments are in."""
        self.phases = Phases()
        self._marks = marks
        self._began = began
        self._spawned: float | None = None
        self._first: dict[Stage, float] = {}

    def prepared(self, now: float) -> None:
        """The weights are at their place."""
        self.phases.prepare = now - self._began

    def spawned(self, now: float) -> None:
        """There is a process."""
        self._spawned = now
        self.phases.process = now - self._began - (self.phases.prepare or 0.0)

    def line(self, text: str, now: float) -> tuple[Stage, ...]:
        """Read one line of the log. Returns what it said."""
        stages = tuple(mark.stage for mark in self._marks if mark.pattern.search(text))
        for stage in stages:
            self._first.setdefault(stage, now)
            if stage == "imported" and self.phases.import_ is None and self._spawned is not None:
                self.phases.import_ = now - self._spawned
            elif stage == "weights_end":
                self.phases.weights = self._since("weights", now)
            elif stage == "graphs_end":
                self.phases.graphs = self._since("graphs", now)
        return stages

    def woken(self, now: float) -> None:
        """It had been started before somebody wanted it: what follows counts from here."""
        self._began = now

    def ready(self, now: float) -> None:
        """The ready path has said so."""
        if self.phases.ready is None:
            self.phases.ready = now - self._began

    def first_token(self, now: float) -> None:
        """A token has come."""
        if self.phases.first_token is None:
            self.phases.first_token = now - self._began

    def _since(self, stage: Stage, now: float) -> float | None:
        first = self._first.get(stage)
        return None if first is None else now - first

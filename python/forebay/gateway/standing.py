"""What looks at an upstream come to, one after another. Pure: time is an argument."""

from typing import Literal

from forebay.upstreams.kind import State

Stands = State | Literal["draining"]
"""Where an upstream stands; only an agent says ``draining``."""
Found = State | Literal["refused", "closed", "silent"]
"""What one look found: a state that the upstream told, or ``closed`` (no connection came about, or
it broke), ``silent`` (no answer in time), ``refused`` (an answer, but not to the question: its path
or our credentials are wrong)."""

WAKING_S = 600.0
"""Seconds after a call to wake it that an upstream without an answer is taken to be starting."""


class Standing:
    """Where one upstream stands.

    wakes: it can be started by a call. holds: requests may wait for it though it does not answer at
    all.
    """

    def __init__(self, *, wakes: bool, holds: bool) -> None:
        self.state: Stands | None = None
        """What the last look came to; None before the first."""
        self.fresh = False
        """It was away, or is being started, and has not served since: it may need a warm-up."""
        self.doubtful = False
        """The last look found nothing out: another should follow at once."""
        self._wakes = wakes
        self._holds = holds
        self._was_warm = False
        self._woken_at: float | None = None

    def take_over(self, before: "Standing") -> None:
        """Go on where another stands, which followed the same upstream under other settings."""
        self.state, self.fresh, self.doubtful = before.state, before.fresh, before.doubtful
        self._was_warm, self._woken_at = before._was_warm, before._woken_at

    def woken(self, now: float) -> None:
        """It was called to wake."""
        self._woken_at = now

    def served(self) -> None:
        """It has shown that it answers requests."""
        self.fresh = False

    def rested(self) -> None:
        """Nobody has wanted it for so long that it was stopped."""
        self.state, self.fresh, self._woken_at = "cold", True, None

    def told(self, state: Stands) -> Stands:
        """Take in what an agent says, who knows: nothing is guessed from what was before."""
        self.doubtful = False
        if state == "warm":
            self._was_warm, self._woken_at = True, None
        elif state in ("cold", "loading"):
            self.fresh = True
        self.state = state
        return state

    def look(self, found: Found, now: float) -> Stands:
        """Take in what a look found. Returns the state that follows, which `state` is then.

        An engine that was warm and says that it is starting, without having been away, is about
        to end (SGLang answers 503 both times), so that is ``down``: nobody should wait for it.
        One that cannot be reached is ``cold`` if it can be woken, ``loading`` once it was. If not,
        it is ``loading`` until it has been warm for the first time, as engines open their port
        when their weights are loaded; afterwards it is ``down``. A warm one that does not answer in
        time stays warm until that happens a second time in a row. What refuses the question has
        answered: whether it serves is for its requests to tell.
        """
        silent = found == "silent"
        self.doubtful = silent and self.state == "warm" and not self.doubtful
        if not self.doubtful:
            self.state = self._state(found, now)
        return self.state or "down"

    def _state(self, found: Found, now: float) -> State:
        if found in ("warm", "refused"):
            self._was_warm, self._woken_at = True, None
            return "warm"
        if found == "loading":
            if self._was_warm and not self.fresh:
                return "down"
            self.fresh = True
            return "loading"
        if found == "down":
            return "down"
        if found == "cold" or self._wakes:
            self.fresh = True
            return "loading" if self._is_waking(now) else "cold"
        if found == "closed":
            self.fresh = True
            if self._holds and not self._was_warm:
                return "loading"
        return "down"

    def _is_waking(self, now: float) -> bool:
        return self._woken_at is not None and now - self._woken_at < WAKING_S

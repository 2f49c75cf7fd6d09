"""When an engine that died is started again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Restart


class Crashes:
    """Counts crashes within a window. Pure: the caller tells the time."""

    def __init__(self, policy: Restart) -> None:
        self._policy = policy
        self._times: deque[float] = deque()
        self.total = 0

    def crashed(self, now: float) -> float | None:
        """Seconds until the next start; None: it crashes in a loop, and is left alone."""
        policy = self._policy
        self.total += 1
        self._times.append(now)
        while self._times and self._times[0] <= now - policy.within_s:
            self._times.popleft()
        if len(self._times) > policy.max_crashes:
            return None
        # The exponent is bounded, so that a float does not overflow.
        pause: float = policy.backoff_s * 2.0 ** min(len(self._times) - 1, 30)
        return min(pause, policy.backoff_max_s)

    def forget(self) -> None:
        """Somebody has looked at it, and wants it again."""
        self._times.clear()

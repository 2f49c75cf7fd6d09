"""When to call a store that fails. No clock of its own and no I/O."""

from enum import Enum


class State(Enum):
    """Whether calls go out."""

    CLOSED = "closed"
    """All do."""
    OPEN = "open"
    """None does until the next probe."""
    HALF_OPEN = "half open"
    """A probe is out."""


class Breaker:
    """Opens after `failures` failed calls in a row, then lets one probe through each `probe_s`.

    Times are seconds of any monotonic clock.
    """

    def __init__(self, failures: int = 3, probe_s: float = 1.0) -> None:
        self._most = failures
        self._probe_s = probe_s
        self._failed = 0
        self._next_probe = 0.0
        self.state = State.CLOSED

    def allows(self, now: float) -> bool:
        """Whether a call may go out. In the open state a yes makes that call the probe."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.HALF_OPEN or now < self._next_probe:
            return False
        self.state = State.HALF_OPEN
        return True

    def succeeded(self) -> bool:
        """A call was answered in time. Returns whether that closed the breaker."""
        closes = self.state is not State.CLOSED
        self._failed = 0
        self.state = State.CLOSED
        return closes

    def failed(self, now: float) -> bool:
        """A call failed. Returns whether that opened the breaker, which a failed probe does not."""
        self._failed += 1
        if self.state is State.CLOSED and self._failed < self._most:
            return False
        opens = self.state is State.CLOSED
        self.state = State.OPEN
        self._next_probe = now + self._probe_s
        return opens

    def wait_s(self, now: float) -> float:
        """Seconds until `allows` may say yes; 0 when it does now."""
        if self.state is State.CLOSED:
            return 0.0
        if self.state is State.HALF_OPEN:
            return self._probe_s
        return max(0.0, self._next_probe - now)

"""What is known of one model at a moment, wherever it was read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signals:
    """One reading. Rates and shares are of the time since the reading before.

    at: seconds of a clock that only goes forward
    over_s: the time that rates and shares are of, seconds
    arrivals: requests that began in it, wherever they were served
    running: requests that the model's own engines have, those that wait inside an engine included
    waiting: requests that wait for a place at an engine
    held: requests that wait for an engine to start
    service_s: how long an engine has a request; None while that is not known
    work_s: how long one replica at its full batch needs for a request; None while that is not known
    kv_used: share of the KV cache in use, mean of the engines that say so; None where none does
    first_tokens: streams whose first token came in `over_s`
    late: those of them that came after the target
    warm: replicas that serve
    starting: replicas that were asked for and do not serve yet
    age_s: how old the oldest part of this is, seconds
    """

    at: float
    over_s: float
    arrivals: float
    running: float
    waiting: float = 0.0
    held: float = 0.0
    service_s: float | None = None
    work_s: float | None = None
    kv_used: float | None = None
    first_tokens: float = 0.0
    late: float = 0.0
    warm: int = 0
    starting: int = 0
    age_s: float = 0.0

    @property
    def idle(self) -> bool:
        """Nobody wants the model now."""
        return not (self.arrivals or self.running or self.waiting or self.held)

    @property
    def present(self) -> float:
        """Requests that are there, in whatever state."""
        return self.running + self.waiting + self.held

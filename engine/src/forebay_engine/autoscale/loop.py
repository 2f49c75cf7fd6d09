"""Read, decide, tell: again and again.

What fails is told and tried again; nothing ends the loop.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from forebay_engine.autoscale.board import Board, Decision
from forebay_engine.autoscale.config import Config, Model
from forebay_engine.autoscale.drivers import Driver, DriverError
from forebay_engine.autoscale.policy import Autoscaler, Rule, TargetRule
from forebay_engine.autoscale.readings import Reader, Snapshot
from forebay_engine.autoscale.rivals import (
    Concurrency,
    ConcurrencyRule,
    ForecastRule,
    Hpa,
    HpaRule,
)

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
REPEAT_S = 60.0
"""What holds is told again so often: somebody else may have changed it."""


def rule_of(model: Model) -> Rule:
    """The rule that the configuration names."""
    capacity = model.capacity
    match model.rule:
        case "target":
            return TargetRule(capacity.settings(), model.limits.windows())
        case "forecast":
            return ForecastRule(capacity.settings(), model.limits.windows())
        case "concurrency":
            return ConcurrencyRule(Concurrency(capacity.concurrency))
        case "hpa":
            return HpaRule(Hpa(capacity.concurrency))


class Teller:
    """Tells one driver of one model; waits longer after each failure in a row."""

    def __init__(
        self,
        model: str,
        driver: Driver,
        clock: Callable[[], float],
        outcome: Callable[[str, str], None] = lambda model, outcome: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._model = model
        self._driver = driver
        self._clock = clock
        self._outcome = outcome
        self._jitter = jitter
        self._told: int | None = None
        self._told_at = 0.0
        self._failures = 0
        self._next = 0.0

    async def tell(self, desired: int) -> None:
        """Tell it where that is news, or is due again. Never raises for what the driver does."""
        now = self._clock()
        if desired == self._told and now - self._told_at < REPEAT_S:
            return
        if self._failures and now < self._next:
            return
        try:
            await self._driver.scale(self._model, desired, self._told)
        except DriverError as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("%s: the driver failed", self._model)
            self._failed(type(error).__name__)
        else:
            if desired != self._told:
                log.info("%s: %s -> %d replicas", self._model, self._told, desired)
            self._told, self._told_at, self._failures = desired, now, 0
            self._outcome(self._model, "ok")

    def _failed(self, why: str) -> None:
        self._failures += 1
        pause = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S)
        pause *= 1 - self._jitter() / 4
        self._next = self._clock() + pause
        self._outcome(self._model, "failed")
        log.warning("%s: %s; again in %.1f s", self._model, why, pause)


@dataclass(slots=True)
class _Of:
    reader: Reader
    autoscaler: Autoscaler
    teller: Teller | None
    telling: asyncio.Task[None] | None = None


class Loop:
    """All models of a configuration. drivers: by model; those without one are only shown."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Awaitable[dict[str, Snapshot]]],
        board: Board,
        tellers: dict[str, Teller],
    ) -> None:
        self._read = read
        self._board = board
        self._interval_s = config.interval_s
        self._models = {
            name: _Of(
                Reader(name, model),
                Autoscaler(rule_of(model), model.limits.settings()),
                tellers.get(name),
            )
            for name, model in config.models.items()
        }
        self._limits = {name: model.limits.settings() for name, model in config.models.items()}

    async def once(self) -> None:
        """Read and decide once; drivers are told beside, so that a slow one delays no other."""
        try:
            snapshots = await self._read()
        except Exception:
            log.exception("reading failed")
            return
        for name, of in self._models.items():
            signals = of.reader.signals(snapshots[name])
            wanted = of.autoscaler.decide(signals)
            await self._board.put(name, Decision(wanted, signals, self._limits[name]))
            if of.teller is None or wanted.reason == "stale":
                continue
            if of.telling is None or of.telling.done():
                of.telling = asyncio.create_task(of.teller.tell(wanted.replicas))

    async def settled(self) -> None:
        """Until every driver has been told."""
        await asyncio.gather(*(of.telling for of in self._models.values() if of.telling))

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        while not stop.is_set():
            await self.once()
            try:
                async with asyncio.timeout(self._interval_s):
                    await stop.wait()
            except TimeoutError:
                continue
        await self.settled()

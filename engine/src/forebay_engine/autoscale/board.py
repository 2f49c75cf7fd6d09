"""What was decided last of each model, for who asks, and a word to who waits for a change."""

import asyncio
from dataclasses import dataclass

from forebay_engine.autoscale.policy import Limits, Wanted
from forebay_engine.autoscale.signals import Signals


@dataclass(frozen=True, slots=True)
class Decision:
    """One model's latest."""

    wanted: Wanted
    signals: Signals
    limits: Limits


class Board:
    """The latest decisions by model. Of one event loop."""

    def __init__(self) -> None:
        self.decisions: dict[str, Decision] = {}
        self.version = 0
        """How often something was put."""
        self._changed = asyncio.Condition()

    async def put(self, model: str, decision: Decision) -> None:
        """Show it, and wake who waits."""
        self.decisions[model] = decision
        self.version += 1
        async with self._changed:
            self._changed.notify_all()

    async def after(self, version: int) -> None:
        """Until something was put since `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.version > version)

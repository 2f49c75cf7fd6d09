"""The engine on uvloop, whose timers are not those of asyncio."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from forebay_engine.sim import engine
from forebay_engine.sim.options import SimOptions


def test_a_step_that_is_nearly_due_is_waited_for_on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    # uvloop knows no time of a call that it rounds to now. Floats come there once in some
    # thousand steps; a lower bound makes it each time.
    monkeypatch.setattr(engine, "EARLY_S", 0.0001)
    stepped = []

    async def go() -> None:
        loop = asyncio.get_running_loop()
        one = engine.Engine(SimOptions())
        due: float | None = loop.time() + 0.0004
        assert not hasattr(loop.call_at(due, lambda: None), "when")

        def advance(now: float) -> list[object]:
            nonlocal due
            due = None
            stepped.append(now)
            return []

        monkeypatch.setattr(one.scheduler, "next_time", lambda: due)
        monkeypatch.setattr(one.scheduler, "advance", advance)
        one.wake()
        one.wake()
        await asyncio.sleep(0.01)

    uvloop.run(go())
    assert len(stepped) == 1

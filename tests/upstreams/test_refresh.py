"""Credentials are fetched early, again after failures, and kept while they are good."""

import asyncio
import threading

import pytest
from forebay.upstreams.credentials import Credentials, Refresher, SourceError
from forebay.upstreams.credentials.refresh import LAST_RETRY_S, MARGIN_S, next_fetch_s, retry_s
from hypothesis import given
from hypothesis import strategies as st


class Ended(Exception):
    """The script has no more steps."""


class Script:
    """A source that gives what is next in a list, and a clock that only sleeping moves."""

    def __init__(self, steps: list[Credentials | Exception]) -> None:
        self.steps = steps
        self.now = 1000.0
        self.slept: list[float] = []
        self.threads: list[int] = []
        self.pushed: list[bytes] = []
        self.states: list[str] = []
        self.refresher = Refresher(
            "u",
            self,
            self.pushed.append,
            now=lambda: self.now,
            sleep=self._sleep,
            jitter=lambda: 1.0,
        )

    def fetch(self) -> Credentials:
        self.threads.append(threading.get_ident())
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def _sleep(self, seconds: float) -> None:
        self.states.append(self.refresher.state())
        self.slept.append(seconds)
        self.now += seconds
        if not self.steps:
            raise Ended

    async def run(self) -> None:
        with pytest.raises(Ended):
            await self.refresher.run()


def token(name: str, expires_at: float | None, again_s: float | None = None) -> Credentials:
    return Credentials(headers=(("authorization", name),), expires_at=expires_at, again_s=again_s)


async def test_fetched_again_before_the_end() -> None:
    script = Script([token("a", 4600.0), token("b", 8000.0)])
    await script.run()
    # An hour, less five minutes, less a tenth.
    assert script.slept[0] == pytest.approx((3600 - MARGIN_S) * 0.9)
    assert [b'"a"' in document for document in script.pushed] == [True, False]
    assert script.states == ["ok", "ok"]


async def test_off_the_event_loop() -> None:
    script = Script([token("a", 4600.0)])
    await script.run()
    assert threading.get_ident() not in script.threads


async def test_what_is_the_same_is_not_handed_on_again() -> None:
    script = Script([token("a", None, 300.0), token("a", None, 300.0), token("b", None, 300.0)])
    await script.run()
    assert script.slept == [pytest.approx(270.0)] * 3
    assert len(script.pushed) == 2


async def test_what_never_changes_is_fetched_once() -> None:
    script = Script([token("a", None)])
    await asyncio.wait_for(script.refresher.run(), 5)
    assert len(script.pushed) == 1
    assert script.refresher.state() == "ok"


async def test_failures_back_off_and_the_last_ones_stay() -> None:
    steps: list[Credentials | Exception] = [token("a", 1010.0)]
    steps += [SourceError("no route"), SourceError("no route"), RuntimeError("x"), token("b", 9e9)]
    script = Script(steps)
    await script.run()
    assert len(script.pushed) == 2
    assert script.slept[1:4] == [1.0, 2.0, 4.0]
    assert script.states[1] == "degraded: the last ones are still good; no route"
    assert script.states[3] == "degraded: no credentials: RuntimeError in a library"
    assert script.states[4] == "ok"


async def test_none_at_the_start() -> None:
    script = Script([SourceError("not yet"), token("a", 9e9)])
    assert script.refresher.state() == "degraded: no credentials: not fetched yet"
    await script.run()
    assert script.states == ["degraded: no credentials: not yet", "ok"]


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_never_late_and_never_in_a_tight_loop(left: float, jitter: float) -> None:
    wait = next_fetch_s(token("a", 1000.0 + left), 1000.0, jitter)
    assert wait is not None
    assert wait >= 1.0
    assert wait <= max(1.0, left)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_waits_after_failures_are_bounded(failures: int, jitter: float) -> None:
    assert 0.5 <= retry_s(failures, jitter) <= LAST_RETRY_S

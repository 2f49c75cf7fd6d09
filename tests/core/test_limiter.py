"""Limits as Python sees them: GCRA by hand-made clock."""

import pytest
from forebay._core import Limiter
from hypothesis import given
from hypothesis import strategies as st

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NEVER = -1


def admitted(limiter: Limiter, count: int, *, key: int = 1, tokens: int = 0, now: int = 0) -> int:
    """How many of `count` requests at one moment are let in."""
    return sum(limiter.admit(key, tokens, now) == 0 for _ in range(count))


@pytest.mark.parametrize(("rpm", "burst"), [(1, 1), (5, 1), (60, 10), (6000, 1000)])
def test_burst_is_ten_seconds_worth_unless_given(rpm: int, burst: int) -> None:
    assert admitted(Limiter(rpm=rpm), burst + 5) == burst
    assert admitted(Limiter(rpm=rpm, rpm_burst=7), 20) == 7


def test_the_wait_told_is_exact() -> None:
    limiter = Limiter(rpm=60)
    assert admitted(limiter, 10) == 10
    wait = limiter.admit(1, 0, 0)
    assert wait == SECOND
    assert limiter.admit(1, 0, wait - 1) == 1
    assert limiter.admit(1, 0, wait) == 0


def test_a_refusal_costs_nothing() -> None:
    limiter = Limiter(rpm=60, tpm=1000)
    assert limiter.admit(1, 1000, 0) == 0
    before = limiter.state(1, 0)
    for _ in range(100):
        assert limiter.admit(1, 500, 0) > 0
    assert limiter.state(1, 0) == before


def test_more_tokens_than_the_burst_holds_are_never_admitted() -> None:
    limiter = Limiter(tpm=60)
    assert limiter.admit(1, 61, 0) == NEVER
    assert limiter.admit(1, 61, 10 * MINUTE) == NEVER
    assert limiter.admit(1, 60, 0) == 0


def test_settling_gives_back_what_was_not_used() -> None:
    limiter = Limiter(tpm=1000)
    assert limiter.admit(1, 1000, 0) == 0
    assert limiter.admit(1, 1, 0) > 0
    limiter.settle(1, 1000, 100)
    assert limiter.state(1, 0) == (None, 900, 0)


def test_settling_charges_what_was_used_beyond() -> None:
    limiter = Limiter(tpm=1000)
    assert limiter.admit(1, 100, 0) == 0
    limiter.settle(1, 100, 700)
    assert limiter.state(1, 0) == (None, 300, 0)


def test_concurrency_is_a_permit_that_comes_back() -> None:
    limiter = Limiter(concurrency=2)
    assert admitted(limiter, 5) == 2
    assert limiter.state(1, 0)[2] == 2
    limiter.settle(1, 0, 0)
    assert admitted(limiter, 5) == 1


def test_keys_do_not_share() -> None:
    limiter = Limiter(rpm=6)
    for key in range(1000):
        assert limiter.admit(key, 0, 0) == 0
        assert limiter.admit(key, 0, 0) > 0
    assert len(limiter) == 1000


def test_without_limits_everything_passes() -> None:
    limiter = Limiter()
    assert admitted(limiter, 1000, tokens=1_000_000) == 1000
    assert limiter.state(1, 0) == (None, None, 0), "without limits nothing is counted"


@given(
    rpm=st.integers(1, 100_000),
    burst=st.integers(1, 1000),
    steps=st.lists(st.integers(0, 5 * SECOND), max_size=200),
)
def test_no_window_holds_more_than_burst_and_rate(rpm: int, burst: int, steps: list[int]) -> None:
    """GCRA's promise (ITU-T I.371): at most burst + rate x T in any window of length T."""
    limiter = Limiter(rpm=rpm, rpm_burst=burst)
    now, times = 0, []
    for step in steps:
        now += step
        if limiter.admit(1, 0, now) == 0:
            times.append(now)
    for index, start in enumerate(times):
        for count, end in enumerate(times[index:], 1):
            assert count <= burst + (end - start) * rpm / MINUTE + 1e-6


@given(rpm=st.integers(1, 100_000), burst=st.integers(1, 50), idle=st.integers(0, 10 * SECOND))
def test_waiting_as_told_is_enough(rpm: int, burst: int, idle: int) -> None:
    limiter = Limiter(rpm=rpm, rpm_burst=burst)
    now = idle
    for _ in range(burst * 2):
        wait = limiter.admit(1, 0, now)
        assert wait >= 0
        if wait > 0:
            now += wait
            assert limiter.admit(1, 0, now) == 0

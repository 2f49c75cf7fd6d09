"""One admission: the core's limiter beside `limits`' moving window in memory."""

import random

import pytest
from forebay._core import Limiter
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pytest_benchmark.fixture import BenchmarkFixture

RPM = 1_000_000_000
KEYS = 100_000
CALLS = 1000


@pytest.mark.benchmark(group="limiter, one hot key")
def test_forebay_hot(benchmark: BenchmarkFixture) -> None:
    admit = Limiter(rpm=RPM, rpm_burst=RPM, tpm=RPM * 1000, tpm_burst=RPM * 1000).admit
    assert benchmark(admit, 1, 100, 0) == 0


@pytest.mark.benchmark(group="limiter, one hot key")
def test_limits_hot(benchmark: BenchmarkFixture) -> None:
    # Requests alone: this library has no tokens, so the core does more here. The window is small,
    # so that the list of its moments, which grows with every hit, does not decide.
    hit = MovingWindowRateLimiter(MemoryStorage()).hit
    item = RateLimitItemPerMinute(100)
    benchmark(hit, item, "key")


def _keys() -> list[int]:
    return random.Random(1).sample(range(KEYS), CALLS)


@pytest.mark.benchmark(group=f"limiter, {CALLS} of {KEYS} keys at random")
def test_forebay_many(benchmark: BenchmarkFixture) -> None:
    limiter = Limiter(rpm=RPM, rpm_burst=RPM, tpm=RPM * 1000, tpm_burst=RPM * 1000)
    for key in range(KEYS):
        limiter.admit(key, 100, 0)
    keys, admit = _keys(), limiter.admit

    def run() -> None:
        for key in keys:
            admit(key, 100, 0)

    benchmark(run)
    assert len(limiter) == KEYS


@pytest.mark.benchmark(group=f"limiter, {CALLS} of {KEYS} keys at random")
def test_limits_many(benchmark: BenchmarkFixture) -> None:
    hit = MovingWindowRateLimiter(MemoryStorage()).hit
    item = RateLimitItemPerMinute(100)
    keys = [str(key) for key in range(KEYS)]
    for name in keys:
        hit(item, name)
    chosen = [str(key) for key in _keys()]

    def run() -> None:
        for name in chosen:
            hit(item, name)

    benchmark(run)

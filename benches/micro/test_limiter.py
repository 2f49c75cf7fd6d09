"""One decision: the core's limiter, the library `limits`, and a script a request in Valkey.

Each decides for keys at random, in one thread or in two that share it. The time is of CALLS
decisions of each thread; `ns` beside it is what one decision took, on the wall. The core decides on
requests, tokens and requests in flight, the others on requests alone.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from forebay._core import Limiter
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pytest_benchmark.fixture import BenchmarkFixture

from tests.support.valkey import Valkey

RPM = 1_000_000_000
CALLS = 1000
GCRA = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + interval
if tat - now > burst then
  return {1, tat - now - burst}
end
redis.call('SET', KEYS[1], tat, 'PX', math.ceil((tat - now) / 1000) + 60000)
return {0, 0}
"""
"""As redis-cell decides: a theoretical arrival time in microseconds, on the server's clock."""
FILL = """
for key = ARGV[1], ARGV[2] - 1 do redis.call('SET', 'k' .. key, 0, 'PX', 3600000) end
"""

each_size = pytest.mark.parametrize("keys", [1, 1000, 1_000_000])
each_count = pytest.mark.parametrize("threads", [1, 2])


@pytest.fixture(autouse=True)
def group(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> None:
    """Compare what has as many keys and threads."""
    keys, threads = (request.node.callspec.params[name] for name in ("keys", "threads"))
    benchmark.group = f"limiter, {keys:,} keys, {threads} thread{'s' * (threads > 1)}"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server on 127.0.0.1."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


def measure(
    benchmark: BenchmarkFixture, keys: int, threads: int, deciders: list[Callable[[int], object]]
) -> None:
    """Time `threads` threads, each with its own function that decides for a key's number."""
    chosen = [random.Random(seed).choices(range(keys), k=CALLS) for seed in range(threads)]
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        decide = deciders[number]
        start.wait()
        for key in chosen[number]:
            decide(key)

    if threads == 1:
        benchmark.pedantic(run, (0,), rounds=15, warmup_rounds=2)
    else:
        with ThreadPoolExecutor(threads) as pool:
            benchmark.pedantic(
                lambda: list(pool.map(run, range(threads))), rounds=15, warmup_rounds=2
            )
    if benchmark.stats is not None:  # with --benchmark-disable there is none
        benchmark.extra_info["ns"] = round(benchmark.stats.stats.median / CALLS / threads * 1e9)


@each_size
@each_count
def test_forebay(benchmark: BenchmarkFixture, keys: int, threads: int) -> None:
    limiter = Limiter(rpm=RPM, rpm_burst=RPM, tpm=RPM * 1000, tpm_burst=RPM * 1000)
    for key in range(keys):
        limiter.admit(key, 100, 0)
    admit = limiter.admit
    measure(benchmark, keys, threads, [lambda key: admit(key, 100, 0)] * threads)
    assert len(limiter) == keys


@each_size
@each_count
def test_limits(benchmark: BenchmarkFixture, keys: int, threads: int) -> None:
    # The window is small: the list of its moments, which grows with every hit, shall not decide.
    hit = MovingWindowRateLimiter(MemoryStorage()).hit
    item = RateLimitItemPerMinute(100)
    names = [str(key) for key in range(keys)]
    for name in names:
        hit(item, name)
    measure(benchmark, keys, threads, [lambda key: hit(item, names[key])] * threads)


@each_size
@each_count
def test_script_per_request(
    benchmark: BenchmarkFixture, valkey: Valkey, keys: int, threads: int
) -> None:
    clients = [redis.Redis(port=valkey.port) for _ in range(threads)]
    clients[0].flushall()
    fill = clients[0].register_script(FILL)
    for first in range(0, keys, 10_000):
        fill(args=[first, min(first + 10_000, keys)])
    assert clients[0].dbsize() == keys
    sha = clients[0].script_load(GCRA)

    def decider(client: redis.Redis) -> Callable[[int], object]:
        return lambda key: client.evalsha(sha, 1, f"k{key}", 1, 60_000_000)

    measure(benchmark, keys, threads, [decider(client) for client in clients])
    assert clients[0].evalsha(sha, 1, "k0", 1, 60_000_000) == [0, 0]
    for client in clients:
        client.close()

"""What the script costs a real Valkey and the process that calls it: CPU time and memory.

Prints a table. CPU is user and system time of the processes, which other load on the machine hardly
changes; run it from the root of the project (`.venv/bin/python benches/sim/store_cost.py`).
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import redis
from forebay.limits.store import LimitStore

from tests.support.valkey import Valkey

CALLS = 20_000
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
RATE = ["r", "600", "60000000000", "100", "1", "0", "0", "0", "1", "1", "0"]
"""One unit owed, nothing wanted: what most calls are, far from the limit."""
HOLDING = ["h", "64", "10000", "1", "2", "0", "0", "0", "0", "1", "1"]


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def key(at: int, account: int) -> str:
    """A key as the gateway makes them."""
    return f"fb:{{account{account:08}}}:key:{at:012}/requests/minute"


async def calls(store: LimitStore, keys: int, line: list[str], at_once: int) -> None:
    """Make `CALLS` calls of `keys` keys each, `at_once` of them at a time."""

    async def one_by_one(first: int) -> None:
        for i in range(first, CALLS // keys, at_once):
            names = [key(i * keys + j, i) for j in range(keys)]
            await store.call(names, ["0123456789", *line * keys], 5.0)

    await asyncio.gather(*(one_by_one(first) for first in range(at_once)))


async def cost(server: Valkey, pid: int, keys: int, line: list[str]) -> tuple[float, float]:
    """CPU µs a call: of the server, and of this process."""
    store = LimitStore(server.url)
    await store.call([key(0, 0)], ["0123456789", *line], 5.0)
    before, own = cpu_s(pid), time.process_time()
    await calls(store, keys, line, 8)
    spent, own_spent = cpu_s(pid) - before, time.process_time() - own
    await store.close()
    count = CALLS // keys
    return spent / count * 1e6, own_spent / count * 1e6


def memory(client: "redis.Redis", name: str) -> int:
    """Bytes that a key takes, its name included."""
    return int(client.memory_usage(name, samples=0) or 0)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        server.start()
        try:
            with redis.Redis.from_url(server.url) as client:
                pid = int(client.info("server")["process_id"])
                print("| keys a call | Valkey, CPU µs a call | caller, CPU µs a call |")
                print("|---|---|---|")
                for keys in (1, 4, 16, 64):
                    there, here = asyncio.run(cost(server, pid, keys, RATE))
                    print(f"| {keys} | {there:.1f} | {here:.1f} |")
                print(f"\na limit on a rate: {memory(client, key(0, 0))} bytes")
                asyncio.run(holdings(server))
                for parts in (1, 10, 100, 1000):
                    print(f"a holding of {parts}: {memory(client, key(parts, 7))} bytes")
        finally:
            server.stop()


async def holdings(server: Valkey) -> None:
    """Make holdings of 1 to 1,000 participants."""
    store = LimitStore(server.url)
    for parts in (1, 10, 100, 1000):
        for part in range(parts):
            await store.call([key(parts, 7)], [f"{part:010}", *HOLDING], 5.0)
    await store.close()


if __name__ == "__main__":
    main()

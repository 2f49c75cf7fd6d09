"""Cores that share limits, without a gateway around them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from forebay._core import Core, Lease, Leases
from forebay.limits import Syncer

TAKEN = -1
ASK = -2


class Node:
    """A core with its syncer and one lease."""

    def __init__(self, core: Core, url: str, expected: int) -> None:
        self.syncer = Syncer(core, url, expected)
        self.leases: Leases = self.syncer._leases
        self.waited = 0
        self.slowest_s = 0.0

    async def take(self, lease: Lease, cost: int = 1) -> bool:
        """As a request does: at most one wait for the store."""
        began = time.monotonic()
        found = lease.take(cost)
        if found == ASK:
            self.waited += 1
            ticket = lease.request(cost)
            await eventually(lambda: lease.is_answered(ticket), "an answer", every_s=0.0005)
            found = lease.take(cost)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        return found == TAKEN


@contextlib.asynccontextmanager
async def nodes(cores: Sequence[Core], url: str) -> AsyncIterator[list[Node]]:
    """Nodes that know of each other."""
    made = [Node(core, url, len(cores)) for core in cores]
    for node in made:
        node.syncer.start()
    try:
        await eventually(lambda: all(node.leases.live == len(made) for node in made), "all known")
        yield made
    finally:
        for node in made:
            await node.syncer.stop()


async def eventually(
    probe: Callable[[], bool], what: str, timeout_s: float = 5.0, every_s: float = 0.005
) -> None:
    """Wait until `probe` holds."""
    deadline = time.monotonic() + timeout_s
    while not probe():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(every_s)


def rpm(node: Node, rate: int, burst: int, name: str = "key:k") -> Lease:
    """The node's lease of a limit of requests."""
    return node.leases.rate(name, "acme", units=rate, period_s=60, burst=burst)


async def flood(
    made: Sequence[Node], leases: Sequence[Lease], span_s: float, pause_s: float = 0.002
) -> int:
    """Requests at every node, one each `pause_s` at most; how many passed."""

    async def at(node: Node, lease: Lease) -> int:
        passed, deadline = 0, time.monotonic() + span_s
        while time.monotonic() < deadline:
            passed += await node.take(lease)
            await asyncio.sleep(pause_s)
        return passed

    found = await asyncio.gather(*map(at, made, leases))
    return sum(found)

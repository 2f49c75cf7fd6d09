"""The servers of a Redis Cluster: which has which keys, and a connection to each.

Not redis-py's `RedisCluster`: with it, one call that fails has the whole cluster looked up anew,
for which calls of all servers wait and which keeps the event loop for tens of milliseconds. Here a
server that is away costs those that answer nothing.
"""

import asyncio
import bisect
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError

Address = tuple[str, int]

REFRESH_S = 1.0
"""Seconds between two looks at which server has what, after a call failed."""


class Cluster:
    """Runs commands at the server that has their keys.

    seed: the address of one server. connect: makes the client of a server.
    """

    def __init__(self, seed: Address, connect: Callable[[Address], Redis]) -> None:
        self._seed = seed
        self._connect = connect
        self._clients: dict[Address, Redis] = {}
        # The first slots of ranges, ascending, with the last ones and who has them.
        self._starts: list[int] = []
        self._ranges: list[tuple[int, Address]] = []
        self._names: list[str] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = -REFRESH_S

    def servers(self) -> list[str]:
        """The names of those that have slots; none before the first call."""
        return self._names

    def server_of(self, key: str) -> str:
        """The name of the one that has the key, empty while that is not known."""
        address = self._address_of(key)
        return "" if address is None else _name(address)

    def key_at(self, server: str, prefix: str) -> str | None:
        """A key that the server has. None if it has no slots."""
        if server not in self._names:
            return None
        keys = (f"{prefix}{number}" for number in range(1 << 20))
        return next((key for key in keys if self.server_of(key) == server), None)

    async def clients(self) -> list[Redis]:
        """Those of all servers that have slots. Raises: as `execute`."""
        if not self._ranges:
            await self._refresh()
        return [self._client(address) for address in {address for _, address in self._ranges}]

    async def execute(self, key: str, *command: Any) -> Any:
        """The answer of the server that has the key. Follows one redirection.

        Raises: RedisError, OSError or TimeoutError.
        """
        if not self._ranges:
            await self._refresh()
        address = self._address_of(key)
        if address is None:
            self._refresh_soon()
            raise RedisError("no server has this slot")
        try:
            return await ask(self._client(address), *command)
        except MovedError as moved:
            self._refresh_soon()
            there = self._client((moved.host or address[0], moved.port))
            return await ask(there, *command)
        except AskError as asks:
            # The slot is on its way; what was asked for is there already.
            there = self._client((asks.host or address[0], asks.port))
            async with there.pipeline(transaction=False) as both:
                both.execute_command("ASKING")
                both.execute_command(*command)
                return (await both.execute())[1]
        except ResponseError as error:
            if str(error).startswith("CLUSTERDOWN"):
                self._refresh_soon()
            raise
        except (RedisError, OSError, TimeoutError):
            # It may be away for good, and another in its place.
            self._refresh_soon()
            raise

    async def close(self) -> None:
        """Close every connection."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    def _client(self, address: Address) -> Redis:
        if address not in self._clients:
            self._clients[address] = self._connect(address)
        return self._clients[address]

    def _address_of(self, key: str) -> Address | None:
        slot = key_slot(key.encode())
        at = bisect.bisect_right(self._starts, slot) - 1
        if at < 0:
            return None
        last, address = self._ranges[at]
        return address if slot <= last else None

    def _refresh_soon(self) -> None:
        now = asyncio.get_running_loop().time()
        running = self._refreshing is not None and not self._refreshing.done()
        if not running and now >= self._refreshed_at + REFRESH_S:
            self._refreshed_at = now
            self._refreshing = asyncio.create_task(self._refresh_quietly(), name="forebay-cluster")

    async def _refresh_quietly(self) -> None:
        # What is known stays in use, and the next failure asks again.
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._refresh()

    async def _refresh(self) -> None:
        """Ask who has which slots. Raises: the last error, if no server says."""
        known = dict.fromkeys([*(address for _, address in self._ranges), self._seed])
        failure: Exception = RedisError("no server of the cluster has slots")
        for address in known:
            try:
                reply = await ask(self._client(address), "CLUSTER", "SLOTS")
            except (RedisError, OSError, TimeoutError) as error:
                failure = error
                continue
            ranges = sorted(_ranges(reply, address))
            if ranges:
                self._starts = [first for first, _, _ in ranges]
                self._ranges = [(last, owner) for _, last, owner in ranges]
                self._names = sorted({_name(owner) for _, _, owner in ranges})
                await self._forget_clients()
                return
        raise failure

    async def _forget_clients(self) -> None:
        """Close those of servers that have no slots any more."""
        kept = {address for _, address in self._ranges} | {self._seed}
        gone = [self._clients.pop(address) for address in set(self._clients) - kept]
        await asyncio.gather(*(client.aclose() for client in gone))


async def ask(client: Redis, *command: Any) -> Any:
    """The server's answer. Raises: RedisError, OSError or TimeoutError."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


def _name(address: Address) -> str:
    host, port = address
    return f"{host}:{port}"


def _ranges(reply: Any, asked: Address) -> Iterator[tuple[int, int, Address]]:
    """First and last slot and the primary of each range of ``CLUSTER SLOTS``."""
    for first, last, primary, *_ in reply:
        host, port = primary[:2]
        # A server that does not know its own address leaves it to who asked.
        yield first, last, (host.decode() if host else asked[0], port)

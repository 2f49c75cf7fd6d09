"""The store of shared limits: one script on Redis or Valkey, a single node or a cluster."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from forebay.limits.cluster import Address, Cluster, ask

SCRIPT = (Path(__file__).parent / "lease.lua").read_text()
SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()

COMMAND_S = 0.05
"""Seconds that a command may take. A store that needs longer is as good as away."""
CONNECT_S = 0.25
"""Seconds that a connection may take to come about."""
CALL_S = CONNECT_S + COMMAND_S
"""Seconds that a call may take that has to connect first."""
READY = 4
"""Connections opened ahead."""

FAILURES = (RedisError, OSError, TimeoutError)
"""What `call` raises when the store is away, slow or broken."""


class LimitStore:
    """Runs the script. Connects ahead with `connect`, and else when a call needs it.

    url: ``redis://`` or ``rediss://`` (TLS); ``redis+cluster://`` or ``rediss+cluster://`` for a
        Redis Cluster, of which it names one node.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        parts = parts._replace(scheme=scheme)
        self._servers: _Single | Cluster
        if kind == "cluster":
            seed = (parts.hostname or "localhost", parts.port or 6379)
            self._servers = Cluster(seed, lambda address: _client(_at(parts, address)))
        else:
            self._servers = _Single(_client(parts))

    def servers(self) -> list[str]:
        """The names of the servers that have limits, ``[""]`` while a cluster's are not known."""
        return self._servers.servers() or [""]

    def server_of(self, key: str) -> str:
        """The name of the server that has a key."""
        return self._servers.server_of(key)

    def key_at(self, server: str) -> str | None:
        """A key that the server has and no limit uses. None if the server is not known."""
        return self._servers.key_at(server, "fb:probe")

    async def connect(self) -> None:
        """Open a few connections, so that no request waits for one. Raises: one of `FAILURES`."""
        async with asyncio.timeout(CALL_S):
            clients = await self._servers.clients()
            await asyncio.gather(*(client.ping() for client in clients for _ in range(READY)))

    async def call(self, keys: Sequence[str], args: Sequence[str]) -> list[int]:
        """One call of the script. Raises: one of `FAILURES`."""
        async with asyncio.timeout(CALL_S):
            try:
                reply = await self._run("EVALSHA", SHA, keys, args)
            except NoScriptError:
                reply = await self._run("EVAL", SCRIPT, keys, args)
        return cast("list[int]", reply)

    async def _run(self, name: str, script: str, keys: Sequence[str], args: Sequence[str]) -> Any:
        return await self._servers.execute(keys[0], name, script, len(keys), *keys, *args)

    async def close(self) -> None:
        """Close every connection."""
        await self._servers.close()


class _Single:
    """One server, as `Cluster` has several."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def servers(self) -> list[str]:
        return [""]

    def server_of(self, _key: str) -> str:
        return ""

    def key_at(self, _server: str, prefix: str) -> str:
        return prefix

    async def clients(self) -> list[Redis]:
        return [self._client]

    async def execute(self, _key: str, *command: Any) -> Any:
        return await ask(self._client, *command)

    async def close(self) -> None:
        await self._client.aclose()


def _at(parts: SplitResult, address: Address) -> SplitResult:
    host, port = address
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{user}{at}{host}:{port}")


def _client(parts: SplitResult) -> Redis:
    """The client of one server. It has no retries: the breaker decides on them."""
    return Redis.from_url(
        urlunsplit(parts),
        retry=Retry(NoBackoff(), 0),
        # Bounds each exchange on a connection; making one has a bound of its own.
        socket_timeout=COMMAND_S,
        socket_connect_timeout=CONNECT_S,
        protocol=2,
    )

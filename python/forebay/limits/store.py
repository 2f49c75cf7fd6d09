"""The store of shared limits: one script on Redis or Valkey, a single node or a cluster."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

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

FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What `call` raises when the store is away, slow or broken."""


class LimitStore:
    """Runs the script. Connects ahead with `connect`, and else when a call needs it.

    url: ``redis://`` or ``rediss://`` (TLS); ``redis+cluster://`` or ``rediss+cluster://`` for a
        Redis Cluster, of which it names one node.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        plain = urlunsplit(parts._replace(scheme=scheme))
        options: dict[str, Any] = {
            # Bounds each exchange on a connection; making one has a bound of its own.
            "socket_timeout": COMMAND_S,
            "socket_connect_timeout": CONNECT_S,
            "protocol": 2,
        }
        self._client: Redis | RedisCluster
        if kind == "cluster":
            # One: a slot that has moved is asked for at its new place.
            self._client = RedisCluster.from_url(plain, retry=Retry(NoBackoff(), 1), **options)
        else:
            # No retries of its own: the breaker decides, and a call is not repeated blindly.
            self._client = Redis.from_url(plain, retry=Retry(NoBackoff(), 0), **options)

    async def connect(self) -> None:
        """Open a few connections, so that no request waits for one. Raises: one of `FAILURES`."""
        client = self._client
        async with asyncio.timeout(CALL_S):
            if isinstance(client, RedisCluster):
                _ = await client.initialize()
                pings = [client.ping(target_nodes=RedisCluster.PRIMARIES) for _ in range(READY)]
            else:
                pings = [client.ping() for _ in range(READY)]
            await asyncio.gather(*pings)

    async def call(self, keys: Sequence[str], args: Sequence[str]) -> list[int]:
        """One call of the script. Raises: one of `FAILURES`."""
        async with asyncio.timeout(CALL_S):
            try:
                reply = await self._run("EVALSHA", SHA, keys, args)
            except NoScriptError:
                reply = await self._run("EVAL", SCRIPT, keys, args)
        return cast("list[int]", reply)

    async def _run(self, name: str, script: str, keys: Sequence[str], args: Sequence[str]) -> Any:
        return await self._client.execute_command(name, script, len(keys), *keys, *args)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

"""Keeps credentials fresh: fetched off the event loop, early, and again after failures."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from forebay.upstreams.credentials.source import Credentials, CredentialSource, SourceError

log = structlog.get_logger("forebay.credentials")

MARGIN_S = 300.0
"""So long before their end new ones are fetched, unless they live for less than five times that."""
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
LEAST_S = 1.0
"""Never asked more often than that."""


def next_fetch_s(fresh: Credentials, now: float, jitter: float) -> float | None:
    """Seconds until credentials are fetched again; None: never.

    jitter: 0 to 1; takes up to a tenth off, so that many gateways do not ask at once.
    """
    if fresh.expires_at is None:
        wait = fresh.again_s
        return None if wait is None else max(LEAST_S, wait * (1.0 - 0.1 * jitter))
    left = fresh.expires_at - now
    wait = left - min(MARGIN_S, left * 0.2)
    return max(LEAST_S, wait * (1.0 - 0.1 * jitter))


def retry_s(failures: int, jitter: float) -> float:
    """Seconds until the next attempt after so many failures in a row: doubles, half at random."""
    wait = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 16))
    return wait * (0.5 + 0.5 * jitter)


class Refresher:
    """Fetches from one source, for ever, and hands on what is new.

    push: takes the core's document; called on the event loop, only when something changed. What it
        refuses by an exception counts as not fetched.
    What was handed on stays in force while a source fails.
    """

    def __init__(
        self,
        upstream: str,
        source: CredentialSource,
        push: Callable[[bytes], None],
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._upstream = upstream
        self._source = source
        self._push = push
        self._now = now
        self._sleep = sleep
        self._jitter = jitter
        self._current: Credentials | None = None
        self._reason: str | None = "not fetched yet"

    def state(self) -> str:
        """``ok``, or ``degraded: …`` with why there are none, or none that are new."""
        if self._reason is None:
            return "ok"
        end = self._current.expires_at if self._current is not None else 0.0
        if end is None or end > self._now():
            return f"degraded: the last ones are still good; {self._reason}"
        return f"degraded: no credentials: {self._reason}"

    async def run(self) -> None:
        """Fetch and hand on until there is nothing more to fetch, or until cancelled."""
        failures = 0
        while True:
            try:
                fresh = await asyncio.to_thread(self._source.fetch)
                if self._current is None or fresh.document() != self._current.document():
                    self._push(fresh.document())
            except Exception as error:  # A library's own fault must not end the upkeep.
                failures += 1
                known = isinstance(error, SourceError)
                self._tell(str(error) if known else f"{type(error).__name__} in a library")
                await self._sleep(retry_s(failures, self._jitter()))
                continue
            failures = 0
            if self._reason is not None:
                log.info("credentials are fresh", upstream=self._upstream)
            self._current, self._reason = fresh, None
            wait = next_fetch_s(fresh, self._now(), self._jitter())
            if wait is None:
                return
            await self._sleep(wait)

    def _tell(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("no new credentials", upstream=self._upstream, cause=reason)
        self._reason = reason

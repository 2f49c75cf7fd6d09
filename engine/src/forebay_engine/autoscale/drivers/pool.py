"""A pool of engines on one machine, through its forebay-engine agent."""

import logging
from typing import TYPE_CHECKING

import msgspec

from forebay_engine.autoscale.config import Pool
from forebay_engine.autoscale.drivers import DriverError
from forebay_engine.autoscale.drivers.http import send

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)


class _There(msgspec.Struct):
    """A pool's answer, so far as it is used.

    size: its members. places: those that may be warm at a time; None: an agent that does not say.
    """

    size: int
    places: int | None = None


class PoolDriver:
    """`PUT /pool`: as many warm as are desired, and of the rest those parked that are to be.

    A pool refuses more than it has as a whole, so it is asked for what there is first.
    """

    def __init__(self, settings: Pool, most: int, http: "httpx.AsyncClient") -> None:
        self._settings = settings
        self._most = most
        self._http = http

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Set the pool, to all it has where more are desired. Raises: DriverError."""
        settings = self._settings
        url = f"{settings.url.rstrip('/')}/pool"
        headers = {"authorization": f"Bearer {settings.key}"} if settings.key else {}
        answer = await send(self._http, "GET", url, None, headers)
        try:
            there = msgspec.json.decode(answer.content, type=_There)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DriverError(f"GET {url}: {error}") from None
        most = there.size if there.places is None else min(there.places, there.size)
        warm = min(desired, most)
        if warm < desired:
            log.warning("%s: %d are to be warm, and %s has %d", model, desired, url, most)
        rest = min(max(self._most - desired, 0), there.size - warm)
        body = {"warm": warm, "parked": min(settings.parked, rest)}
        await send(self._http, "PUT", url, body, headers)

"""A pool of engines on one machine, through its forebay-engine agent."""

from typing import TYPE_CHECKING

from forebay_engine.autoscale.config import Pool
from forebay_engine.autoscale.drivers.http import send

if TYPE_CHECKING:
    import httpx


class PoolDriver:
    """`PUT /pool`: as many warm as are desired, and of the rest those parked that are to be."""

    def __init__(self, settings: Pool, most: int, http: "httpx.AsyncClient") -> None:
        self._settings = settings
        self._most = most
        self._http = http

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Set the pool. Raises: DriverError."""
        settings = self._settings
        key = settings.key
        body = {"warm": desired, "parked": min(settings.parked, max(self._most - desired, 0))}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        await send(self._http, "PUT", f"{settings.url.rstrip('/')}/pool", body, headers)

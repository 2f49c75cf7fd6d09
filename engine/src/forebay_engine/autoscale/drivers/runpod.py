"""RunPod's serverless endpoints.

API: PATCH https://rest.runpod.io/v1/endpoints/{id} with workersMin and workersMax,
https://docs.runpod.io/api-reference/endpoints/PATCH/endpoints/endpointId. `workersMax` stays at 1
at least, so that a request that meets an idle endpoint can start it; `workersMin` 0 is what ends
workers.
"""

from typing import TYPE_CHECKING

from forebay_engine.autoscale.config import RunPod
from forebay_engine.autoscale.drivers.http import send

if TYPE_CHECKING:
    import httpx


class RunPodDriver:
    """`workersMin` is what is desired, so that RunPod keeps it; `workersMax` that and `spare`."""

    def __init__(self, settings: RunPod, http: "httpx.AsyncClient") -> None:
        self._settings = settings
        self._http = http

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Set the workers. Raises: DriverError."""
        settings = self._settings
        body = {"workersMin": desired, "workersMax": max(desired + settings.spare, 1)}
        url = f"{settings.url.rstrip('/')}/endpoints/{settings.endpoint}"
        await send(self._http, "PATCH", url, body, {"authorization": f"Bearer {settings.key}"})

"""Baseten's deployments.

API: PATCH /v1/models/{model}/deployments/{deployment}/autoscaling_settings with min_replica and
max_replica, `deployment` being an id or `production`; authorization `Api-Key …`.
https://docs.baseten.co/api-reference/updates-a-deployments-autoscaling-settings
"""

from typing import TYPE_CHECKING

from forebay_engine.autoscale.config import Baseten
from forebay_engine.autoscale.drivers.http import send

if TYPE_CHECKING:
    import httpx


class BasetenDriver:
    """`min_replica` is what is desired; `max_replica` that and `spare`, at least 1."""

    def __init__(self, settings: Baseten, http: "httpx.AsyncClient") -> None:
        self._settings = settings
        self._http = http

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Set the replicas. Raises: DriverError."""
        settings = self._settings
        body = {"min_replica": desired, "max_replica": max(desired + settings.spare, 1)}
        url = (
            f"{settings.url.rstrip('/')}/v1/models/{settings.model}"
            f"/deployments/{settings.deployment}/autoscaling_settings"
        )
        await send(self._http, "PATCH", url, body, {"authorization": f"Api-Key {settings.key}"})

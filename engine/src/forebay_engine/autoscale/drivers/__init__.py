"""Who is told how many replicas there are to be. One file for each platform."""

import logging
from typing import TYPE_CHECKING, Protocol

from forebay_engine.autoscale import config as settings

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

NAMES = ("exec", "runpod", "modal", "baseten", "k8s", "pool")


class DriverError(Exception):
    """The platform did not take it. transient: it may another time."""

    def __init__(self, what: str, *, transient: bool = True) -> None:
        super().__init__(what)
        self.transient = transient


class Driver(Protocol):
    """Tells one platform of one model."""

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """From now on there are to be `desired` replicas; idempotent.

        current: what it was told before; None: nothing yet. Raises: DriverError.
        """


class Dry:
    """Tells nobody, and writes what would be told."""

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Log it."""
        log.info("dry run: %s would have %d replicas (now %s)", model, desired, current)


def make(driver: settings.Driver, most: int, http: "httpx.AsyncClient") -> Driver:
    """The driver of these settings. most: replicas that the model may have."""
    match driver:
        case settings.Exec():
            from forebay_engine.autoscale.drivers.exec import ExecDriver

            return ExecDriver(driver)
        case settings.Pool():
            from forebay_engine.autoscale.drivers.pool import PoolDriver

            return PoolDriver(driver, most, http)
        case settings.K8s():
            from forebay_engine.autoscale.drivers.k8s import K8sDriver

            return K8sDriver(driver, http)
        case settings.RunPod():
            from forebay_engine.autoscale.drivers.runpod import RunPodDriver

            return RunPodDriver(driver, http)
        case settings.Baseten():
            from forebay_engine.autoscale.drivers.baseten import BasetenDriver

            return BasetenDriver(driver, http)
        case settings.Modal():
            from forebay_engine.autoscale.drivers.modal import ModalDriver

            return ModalDriver(driver)

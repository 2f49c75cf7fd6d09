"""Modal's functions, by its Python package: Modal has no HTTP API for this.

API: `Function.update_autoscaler(min_containers=, max_containers=)`, for a class that of its
    instance.
https://modal.com/docs/guide/scale. A later `modal deploy` resets it; the next change sets it again.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from forebay_engine.autoscale.config import Modal
from forebay_engine.autoscale.drivers import DriverError


class ModalDriver:
    """`min_containers` is what is desired; `max_containers` that and `spare`, at least 1."""

    def __init__(self, settings: Modal, package: Callable[[], Any] | None = None) -> None:
        self._settings = settings
        self._package = package or _modal

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Set the containers. Raises: DriverError."""
        try:
            await asyncio.to_thread(self._update, desired)
        except DriverError:
            raise
        except Exception as error:
            # Modal's errors are many; none may end the loop.
            raise DriverError(f"modal: {type(error).__name__}: {error}"[:200]) from None

    def _update(self, desired: int) -> None:
        modal, settings = self._package(), self._settings
        where = {"environment_name": settings.environment} if settings.environment else {}
        name, _, method = settings.function.partition(".")
        if method:
            found = modal.Cls.from_name(settings.app, name, **where)()
        else:
            found = modal.Function.from_name(settings.app, name, **where)
        found.update_autoscaler(
            min_containers=desired, max_containers=max(desired + settings.spare, 1)
        )


def _modal() -> Any:
    try:
        from importlib import import_module

        return import_module("modal")
    except ImportError:
        raise DriverError("modal: pip install modal", transient=False) from None

"""Runs a command: for what has no driver of its own."""

import asyncio
import os

from forebay_engine.autoscale.config import Exec
from forebay_engine.autoscale.drivers import DriverError


class ExecDriver:
    """The command has `MODEL`, `DESIRED` and `CURRENT` (empty at first) in its environment."""

    def __init__(self, settings: Exec) -> None:
        self._settings = settings

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Run it. Raises: DriverError where it fails, is not there, or takes too long."""
        given = {"MODEL": model, "DESIRED": str(desired)}
        given["CURRENT"] = "" if current is None else str(current)
        command = self._settings.command
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **given},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise DriverError(f"{command[0]}: {error.strerror}", transient=False) from None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                _, said = await process.communicate()
        except TimeoutError:
            raise DriverError(f"{command[0]}: took longer than its time-out") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            raise DriverError(f"{command[0]}: exit {process.returncode} {' '.join(last)[:200]}")

"""Reading the configuration again while the process runs, on SIGHUP and when its file changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from forebay.config import Config, ConfigError
from forebay.config.live import merged

log = structlog.get_logger("forebay.reload")

LOOK_S = 0.5
"""Seconds between two looks at the file. It is read once two of them in a row find it the same, as
an editor may write it piece by piece."""

FIGURES = """\
# HELP forebay_config_reloads_total Times the configuration was read again.
# TYPE forebay_config_reloads_total counter
forebay_config_reloads_total{{outcome="applied"}} {applied}
forebay_config_reloads_total{{outcome="refused"}} {refused}
forebay_config_reloads_total{{outcome="unchanged"}} {unchanged}
# HELP forebay_config_refused 1 while the configuration is an older one than was read last.
# TYPE forebay_config_refused gauge
forebay_config_refused {is_refused}
"""

Apply = Callable[[Config], None]
"""Puts a configuration in force, whole. Raises: ValueError, when nothing has changed."""


class _Stamp(NamedTuple):
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    changed_ns: int


def _stamp(path: Path | None) -> _Stamp | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Reloader:
    """Reads the configuration, and again when it may have changed.

    path: the file that is looked at; None: there is none, and the environment does not change.
    read: gives the whole configuration. Raises: ConfigError; so does making a reloader.
    """

    def __init__(self, path: Path | None, read: Callable[[], Config]) -> None:
        self._path = path
        self._read = read
        # Taken first, so that what changes while it is read is read again.
        self._known = _stamp(path)
        self.current = read()
        """What is in force."""
        self._before = self.current
        self._asked = asyncio.Event()
        self._is_refused = False
        self._counts = {"applied": 0, "refused": 0, "unchanged": 0}

    def ask(self) -> None:
        """Have it read now: SIGHUP."""
        self._asked.set()

    def state(self) -> str:
        """``ok``, or ``degraded: …``; the reasons are in the log alone, they may name secrets."""
        if self._is_refused:
            return "degraded: what was read last is refused (see the log), an older one is in force"
        return "ok"

    def figures(self) -> str:
        """Metrics in the Prometheus text format."""
        return FIGURES.format(**self._counts, is_refused=int(self._is_refused))

    def refused(self, reason: str) -> bool:
        """What was put in force last was refused after all: `current` is the one before again.

        Returns whether there is one.
        """
        found = self.current is not self._before
        self.current = self._before
        self._counts["applied"] -= found
        self._refuse(reason=reason)
        return found

    async def run(self, apply: Apply, after: Callable[[], None] = lambda: None) -> None:
        """Until cancelled. after: called after each reading, whatever came of it."""
        last = self._known
        while True:
            asked = await self._wait()
            found = _stamp(self._path)
            if asked or (found == last and found != self._known):
                self._known = found
                await self._reload(apply)
                after()
            last = found

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _reload(self, apply: Apply) -> None:
        try:
            wanted = await asyncio.to_thread(self._read)
            config, left = merged(self.current, wanted)
            if changed := config != self.current:
                apply(config)
        except ConfigError as error:
            self._refuse(line=error.line, field=error.field, reason=error.reason)
            return
        except ValueError as error:
            self._refuse(reason=str(error))
            return
        except Exception as error:
            # A fault in reading must not end what works.
            self._refuse(reason=f"{type(error).__name__} while it was read", exc_info=True)
            return
        self._is_refused = False
        if changed:
            self._before, self.current = self.current, config
            self._counts["applied"] += 1
            log.info("configuration reloaded", file=self._name, **_told(self._before, config))
        else:
            self._counts["unchanged"] += 1
            log.info("configuration is unchanged", file=self._name)
        if left:
            log.warning("settings need a restart", file=self._name, fields=left)

    def _refuse(self, **why: object) -> None:
        self._is_refused = True
        self._counts["refused"] += 1
        log.error("configuration refused; nothing changes", file=self._name, **why)

    @property
    def _name(self) -> str:
        return str(self._path or "environment")


def _told(before: Config, after: Config) -> dict[str, list[str]]:
    """What became other, for the log: names, no values."""
    told: dict[str, list[str]] = {}
    for section in ("upstreams", "models"):
        old, new = getattr(before, section), getattr(after, section)
        told[f"{section}_added"] = sorted(new.keys() - old.keys())
        told[f"{section}_removed"] = sorted(old.keys() - new.keys())
        told[f"{section}_changed"] = sorted(n for n in old.keys() & new.keys() if old[n] != new[n])
    told["changed"] = [
        field
        for field in Config.__struct_fields__
        if field not in ("upstreams", "models") and getattr(before, field) != getattr(after, field)
    ]
    return {what: names for what, names in told.items() if names}

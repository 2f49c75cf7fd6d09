"""Where the weights are: found, synced, and read into the page cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from forebay_engine.serve.pagecache import Preloaded, files_of, read_files

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile, Weights

__all__ = ["Located", "Preloaded", "locate", "preload"]


@dataclass(frozen=True)
class Located:
    """The profile as the engine is started with it. folder: the weights, where they are here."""

    profile: Profile
    folder: Path | None
    prepared: bool


def locate(profile: Profile, say: Callable[[str], None]) -> Located:
    """Find the weights, or fetch them first. Blocks. Raises OSError, ValueError."""
    source = profile.weights.source or profile.model
    path = source.removeprefix("file://")
    if path.startswith(("/", "./", "../", "~")):
        folder = Path(path).expanduser()
        if not folder.exists():
            raise FileNotFoundError(f"{folder}: no such model")
        if not profile.weights.source:
            return Located(profile, folder, False)
        return Located(msgspec.structs.replace(profile, model=str(folder)), folder, False)
    return Located(profile, None, False)


async def preload(located: Located, settings: Weights) -> Preloaded | None:
    """Read the weight files into the page cache, beside the engine's import."""
    if located.folder is None or not settings.preload:
        return None
    return await read_files(files_of(located.folder), settings.preload_threads)

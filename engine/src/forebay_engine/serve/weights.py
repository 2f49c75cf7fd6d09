"""Where the weights are: found, synced, and read into the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from forebay_engine.serve import modelcache, stores
from forebay_engine.serve.engines import make
from forebay_engine.serve.pagecache import Preloaded, files_of, read_files

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile, Weights

__all__ = ["Located", "Preloaded", "locate", "preload"]


@dataclass(frozen=True)
class Located:
    """The profile as the engine is started with it. folder: the weights, where they are here."""

    profile: Profile
    folder: Path | None = None
    lease: modelcache.Lease | None = None
    """Of a synced model; the caller closes it when the engine has ended."""


def locate(
    profile: Profile, say: Callable[[str], None], stop: stores.Stop = lambda: False
) -> Located:
    """Find the weights, or fetch them first. Blocks. Raises OSError, ValueError, stores.Stopped."""
    settings = profile.weights
    if not settings.source:
        folder = local(profile.model)
        if folder is None:
            env = {**os.environ, **make(profile.kind).env(profile, ()), **profile.env}
            return Located(profile, hub_folder(profile.model, env))
        if not folder.exists():
            raise FileNotFoundError(f"model: {folder}: no such file or folder")
        return Located(profile, folder)
    if settings.transfer == "stream":
        return Located(_at(profile, settings.source))
    folder = local(settings.source)
    if folder is not None:
        if not folder.exists():
            raise FileNotFoundError(f"weights.source: {folder}: no such file or folder")
        return Located(_at(profile, str(folder)), folder)
    limit = settings.cache_limit_gb
    lease = modelcache.sync(
        Path(profile.cache_dir or "") / "weights",
        settings.source,
        stores.open_store(settings.source),
        limit_bytes=None if limit is None else int(limit * 1e9),
        checksums=settings.checksums,
        say=say,
        stop=stop,
    )
    return Located(_at(profile, str(lease.folder)), lease.folder, lease)


def local(place: str) -> Path | None:
    """The path that a place is; None for a URL, or a name at a hub."""
    if place.startswith(("/", "./", "../", "~")) or place in (".", ".."):
        return Path(place).expanduser()
    return None


def hub_folder(name: str, env: Mapping[str, str]) -> Path | None:
    """Where Hugging Face's cache has a model's last known version; None: not there yet."""
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    model = Path(cache).expanduser() / f"models--{name.replace('/', '--')}"
    try:
        folder = model / "snapshots" / (model / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None


async def preload(located: Located, settings: Weights) -> Preloaded | None:
    """Read the weight files into the page cache, beside the engine's import."""
    if located.folder is None or not settings.preload:
        return None
    return await read_files(files_of(located.folder), settings.preload_threads)


def _at(profile: Profile, place: str) -> Profile:
    """Served from there, under its name of before."""
    return msgspec.structs.replace(profile, model=place, name=profile.served_name)

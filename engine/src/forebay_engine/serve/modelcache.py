"""Synced models on this machine: complete or resumed, checked, and the oldest out when it is full.

CACHE_DIR/weights/NAME-DIGEST/          one source
    FILE …, FILE.part                   fetched, being fetched
    .complete                           JSON: its source, its files with their sizes
    .files                              JSON lines: what each file and begun file was, see `records`
CACHE_DIR/weights/NAME-DIGEST.lock      flock: exclusive to sync and evict, shared to serve
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from forebay_engine.serve import records
from forebay_engine.serve.stores import SUMS, Entry, Stop, Stopped, Store, parse_sums, safe

COMPLETE = ".complete"
THREADS = 4
"""Files fetched at once."""

Say = Callable[[str], None]


@dataclass
class Lease:
    """A model that may not be evicted until this is closed. fetched: bytes that came over."""

    folder: Path
    fetched: int
    _lock: int

    def close(self) -> None:
        """Give it up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def folder_of(root: Path, source: str) -> Path:
    """Where a source's files are."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rstrip("/").rpartition("/")[2]).strip(".-")
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    return root / f"{name or 'model'}-{digest}"


def sync(
    root: Path,
    source: str,
    store: Store,
    *,
    limit_bytes: int | None,
    checksums: bool,
    say: Say,
    stop: Stop = lambda: False,
) -> Lease:
    """Have a source's files here, whole. Blocks; waits for another process that syncs the same.

    Where the store cannot be reached, a complete copy of before is used. Raises OSError, Stopped,
    ValueError (it cannot fit, or the store's names or sums are wrong).
    """
    folder = folder_of(root, source)
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while not _try_lock(lock, fcntl.LOCK_EX):
            # It is served from, so it is whole; or it is being synced, which is waited for.
            if _try_lock(lock, fcntl.LOCK_SH):
                if (folder / COMPLETE).exists():
                    _used(folder)
                    return Lease(folder, 0, lock)
                fcntl.flock(lock, fcntl.LOCK_UN)  # or those that wait would wait for each other
            if stop():
                raise Stopped
            time.sleep(random.uniform(0.1, 0.3))
        fetched = _bring(root, folder, source, store, limit_bytes, checksums, say, stop)
        # Between the two locks there is none: it may be evicted then.
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not (folder / COMPLETE).exists():
            raise ConnectionError(f"{folder}: evicted by another process as it came")
        return Lease(folder, fetched, lock)
    except BaseException:
        os.close(lock)
        raise


def _bring(
    root: Path,
    folder: Path,
    source: str,
    store: Store,
    limit_bytes: int | None,
    checksums: bool,
    say: Say,
    stop: Stop,
) -> int:
    try:
        entries = store.list(stop)
    except OSError as error:
        if not (folder / COMPLETE).exists():
            raise
        say(f"{error}; the copy of before is used")
        _used(folder)
        return 0
    if not entries:
        raise ValueError(f"weights.source: {source}: there is nothing")
    for entry in entries:
        if not safe(entry.name):
            raise ValueError(f"weights.source: {source}: {entry.name}: not a name of a file there")
    folder.mkdir(exist_ok=True)
    known = records.Records(folder)
    sums = _sums(folder, entries, store, stop) if checksums else {}
    missing = [
        entry
        for entry in entries
        if not (checksums and entry.name == SUMS) and not known.holds(entry, sums.get(entry.name))
    ]
    total = sum(entry.size for entry in entries)
    absent = sum(entry.size - _partial(folder, entry, store, known, sums) for entry in missing)
    if missing:
        (folder / COMPLETE).unlink(missing_ok=True)
        make_room(root, folder, total, limit_bytes, say)
        free = shutil.disk_usage(folder).free
        if free < absent:
            raise OSError(f"{folder}: {absent} bytes are to come and {free} are free")
        say(f"{source}: {len(missing)} of {len(entries)} files to fetch, {absent / 1e9:.3g} GB")
    began = time.monotonic()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sync") as pool:
        tasks = [pool.submit(_fetch, folder, entry, store, known, sums, stop) for entry in missing]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    if missing:
        seconds = time.monotonic() - began
        say(f"{source}: fetched {absent / 1e9:.3g} GB in {seconds:.1f} s")
    _forget_others(folder, {entry.name for entry in entries})
    told = {"source": source, "files": {entry.name: entry.size for entry in entries}}
    (folder / COMPLETE).write_text(json.dumps(told))
    return absent


def make_room(root: Path, keep: Path, needed: int, limit_bytes: int | None, say: Say) -> None:
    """Evict the least recently used until `needed` bytes fit beside the rest.

    What is served from, or being synced, stays. Raises ValueError: that leaves too little.
    """
    if limit_bytes is None:
        return
    if needed > limit_bytes:
        raise ValueError(
            f"weights.cache_limit_gb: {limit_bytes / 1e9:g} GB are less than the model's "
            f"{needed / 1e9:.3g} GB"
        )
    others = [path for path in root.iterdir() if path.is_dir() and path != keep]
    others.sort(key=_last_used)
    held = {path: _bytes(path) for path in others}
    for path in others:
        if sum(held.values()) + needed <= limit_bytes:
            return
        if _evict(path):
            say(f"{path.name}: {held.pop(path) / 1e9:.3g} GB evicted")
    if sum(held.values()) + needed > limit_bytes:
        raise ValueError(
            f"weights.cache_limit_gb: other models in use take {sum(held.values()) / 1e9:.3g} of "
            f"{limit_bytes / 1e9:g} GB, and {needed / 1e9:.3g} GB are needed"
        )


def _evict(folder: Path) -> bool:
    lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(lock, fcntl.LOCK_EX):
            return False
        shutil.rmtree(folder)
        return True
    finally:
        os.close(lock)


def _fetch(
    folder: Path,
    entry: Entry,
    store: Store,
    known: records.Records,
    sums: dict[str, str],
    stop: Stop,
) -> None:
    """One file, whole and checked. What a piece of before makes wrong is fetched again from 0."""
    final = folder / entry.name
    part = final.with_name(final.name + ".part")
    final.parent.mkdir(parents=True, exist_ok=True)
    offset = _partial(folder, entry, store, known, sums)
    resumed = offset > 0
    known.begun(entry)
    if offset < entry.size or not part.exists():
        store.fetch(entry, part, offset, stop)
    if wrong := _wrong(part, entry, sums.get(entry.name)):
        part.unlink(missing_ok=True)
        if not resumed:
            raise OSError(f"{entry.name}: {wrong}")
        store.fetch(entry, part, 0, stop)
        if wrong := _wrong(part, entry, sums.get(entry.name)):
            part.unlink(missing_ok=True)
            raise OSError(f"{entry.name}: {wrong}")
    part.replace(final)
    known.has(entry, sums.get(entry.name))


def _wrong(part: Path, entry: Entry, digest: str | None) -> str:
    """Why a file is not the announced one. Raises ConnectionError: it is not whole yet."""
    size = _size(part)
    if size < entry.size:
        raise ConnectionError(f"{entry.name}: {size} of {entry.size} bytes came")
    if size > entry.size:
        return f"{size} bytes came, and {entry.size} were announced"
    if digest is None:
        return ""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == digest else f"its SHA-256 is {found}, and {SUMS} says {digest}"


def _sums(folder: Path, entries: Sequence[Entry], store: Store, stop: Stop) -> dict[str, str]:
    """The store's sums, fetched first; empty where it has none."""
    entry = next((entry for entry in entries if entry.name == SUMS), None)
    if entry is None:
        return {}
    part = folder / f"{SUMS}.part"
    part.unlink(missing_ok=True)
    store.fetch(entry, part, 0, stop)
    part.replace(folder / SUMS)
    return parse_sums((folder / SUMS).read_text())


def _partial(
    folder: Path, entry: Entry, store: Store, known: records.Records, sums: dict[str, str]
) -> int:
    """Bytes that an earlier try has left, of the version that is there now or to be checked."""
    size = _size(folder / f"{entry.name}.part")
    same = known.began(entry) or entry.name in sums
    return size if store.resumes and same and 0 < size <= entry.size else 0


def _forget_others(folder: Path, names: set[str]) -> None:
    """Files that the store does not have any more."""
    for path in list(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in names and name not in (COMPLETE, records.FILE):
            path.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _bytes(folder: Path) -> int:
    """What another process renames or removes meanwhile is not counted."""
    paths = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
    return sum(max(0, _size(path)) for path in paths)


def _last_used(folder: Path) -> float:
    """The mark's time; a copy that was never whole goes first."""
    try:
        return (folder / COMPLETE).stat().st_mtime
    except OSError:
        return 0.0


def _used(folder: Path) -> None:
    os.utime(folder / COMPLETE)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

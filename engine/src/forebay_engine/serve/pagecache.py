"""Weight files read into the page cache, so that the engine maps them from memory."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHUNK = 8 << 20
"""Bytes a read: large enough for a disk's bandwidth, small enough to stop soon."""
SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz"})


@dataclass(frozen=True)
class Preloaded:
    """What was read. seconds: of the whole, by the wall."""

    files: int
    bytes: int
    seconds: float


def files_of(folder: Path) -> list[Path]:
    """The weight files of a model; links are followed, as the hub's cache has them."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())


async def read_files(files: Sequence[Path], threads: int) -> Preloaded:
    """Read all in parallel, in pieces, so that one large file keeps all threads busy.

    Cancelled, it stops within one piece. A file that cannot be read is the engine's to complain of.
    """
    stop = threading.Event()
    began = time.monotonic()
    pieces = list(_pieces(files))
    done = [0] * len(pieces)

    def read(index: int) -> None:
        if not stop.is_set():
            done[index] = _touch(*pieces[index])

    pool = ThreadPoolExecutor(threads, thread_name_prefix="preload")
    try:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(pool, read, i) for i in range(len(pieces))))
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return Preloaded(len(files), sum(done), time.monotonic() - began)


def _pieces(files: Sequence[Path]) -> Iterator[tuple[Path, int, int]]:
    for path in files:
        try:
            size = path.stat().st_size
        except OSError:
            continue
        for offset in range(0, size, CHUNK):
            yield path, offset, min(CHUNK, size - offset)


def _touch(path: Path, offset: int, length: int) -> int:
    """Have the kernel read a piece, and wait for it. Returns its bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        # The advice starts the whole piece's readahead; reading waits for it.
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        buffer = bytearray(min(length, 1 << 20))
        total = 0
        while total < length:
            view = memoryview(buffer)[: length - total]
            count = os.preadv(descriptor, [view], offset + total)
            if count == 0:
                break
            total += count
        return total
    except OSError:
        return 0
    finally:
        os.close(descriptor)

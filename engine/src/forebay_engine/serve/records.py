"""What the files of a synced model were when they came, so that a start tells what has changed.

FOLDER/.files is a line of JSON for each event, the last one of a name counting:

    {"name", "version", "sum", "mtime_ns"}    it came whole; mtime_ns: of the copy here
    {"name", "begun"}                         its `.part` is of this version
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from forebay_engine.serve.stores import Entry

FILE = ".files"


class Records:
    """Of one folder, whose exclusive lock the caller holds. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; a line that is cut tells nothing. Raises OSError."""
        self._folder = folder
        self._path = folder / FILE
        self._files: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, str] = {}
        self._lock = threading.Lock()
        try:
            lines = self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue
        kept = [*self._files.values()]
        kept += [{"name": name, "begun": version} for name, version in self._begun.items()]
        draft = folder / f"{FILE}.part"
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept))
        draft.replace(self._path)

    def holds(self, entry: Entry, digest: str | None) -> bool:
        """Whether the copy here is that file. digest: the SHA-256 that the store announces.

        One that has been checked is read again only where it was written to since. Without a
        digest it is the one whose version the store still tells. Blocks. Raises OSError.
        """
        path = self._folder / entry.name
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size != entry.size:
            return False
        record = self._files.get(entry.name, {})
        untouched = record.get("mtime_ns") == stat.st_mtime_ns
        if digest is None:
            return untouched and record.get("version") == entry.version
        if untouched and record.get("sum") is not None:
            return bool(record["sum"] == digest)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return False
        self.has(entry, digest)
        return True

    def has(self, entry: Entry, digest: str | None) -> None:
        """It is here, whole, and checked where there is a digest. Raises OSError."""
        mtime_ns = (self._folder / entry.name).stat().st_mtime_ns
        self._write(
            {"name": entry.name, "version": entry.version, "sum": digest, "mtime_ns": mtime_ns}
        )

    def begun(self, entry: Entry) -> None:
        """Its part is of this version from now on. Raises OSError."""
        self._write({"name": entry.name, "begun": entry.version})

    def began(self, entry: Entry) -> bool:
        """Whether its part is known to be of this version."""
        return bool(entry.version) and self._begun.get(entry.name) == entry.version

    def _write(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._take(record)
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _take(self, record: dict[str, Any]) -> None:
        name = str(record["name"])
        if "begun" in record:
            self._begun[name] = str(record["begun"])
        else:
            self._files[name] = record
            self._begun.pop(name, None)

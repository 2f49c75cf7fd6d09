"""Places that weights are fetched from: a mounted folder, a web server, S3, Google Cloud Storage.

For the last two their own commands are run (`aws`, `gcloud`), which know their credentials.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

SUMS = "SHA256SUMS"
"""A file of a store in the form of `sha256sum`: what is there, and what it is."""
PIECE = 4 << 20
CONNECT_S = 30.0

Stop = Callable[[], bool]
"""Whether to give up: nobody waits for it any more."""
Runner = Callable[[Sequence[str], Stop], str]
"""Runs a command and returns what it prints. Raises OSError, with the command's own message."""


class Stopped(Exception):
    """Given up, as asked. What was fetched stays for the next time."""


@dataclass(frozen=True)
class Entry:
    """One file. name: its path in the store, relative, with slashes.

    version: what changes with its content, in the store's own form; empty where it does not say.
    """

    name: str
    size: int
    version: str = ""


class Store(Protocol):
    """A folder somewhere. All block, and raise OSError (ConnectionError: not reachable)."""

    resumes: bool
    """`fetch` can begin in the middle of a file."""

    def list(self, stop: Stop) -> list[Entry]:
        """The files."""

    def fetch(self, entry: Entry, target: Path, offset: int, stop: Stop) -> None:
        """Write a file, from `offset` on behind what `target` has. Raises Stopped."""


def open_store(source: str, run: Runner | None = None) -> Store:
    """The store of a URL. Raises ValueError: there is none for it."""
    scheme, mark, rest = source.partition("://")
    run = run or run_command
    if scheme == "file" and mark:
        return FolderStore(Path(rest))
    if scheme in ("https", "http") and mark:
        return WebStore(source)
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and bucket:
        return S3Store(bucket, prefix.strip("/"), run)
    if scheme == "gs" and bucket:
        return GoogleStore(bucket, prefix.strip("/"), run)
    raise ValueError(f"weights.source: {source}: must be file://, https://, s3:// or gs://")


def safe(name: str) -> bool:
    """Whether a name stays below the folder that it is put in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def parse_sums(text: str) -> dict[str, str]:
    """Names and their SHA-256, in hex. Raises ValueError."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        digest, _, name = line.partition(" ")
        name = name.removeprefix(" ").removeprefix("*").removeprefix("./")
        if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef") or not name:
            raise ValueError(f"{SUMS}: line {number} is not of sha256sum's form")
        found[name] = digest.lower()
    return found


class FolderStore:
    """A folder of this machine, which may be a mounted share."""

    resumes = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self, stop: Stop) -> list[Entry]:
        if not self._folder.is_dir():
            raise FileNotFoundError(f"{self._folder}: no such folder")
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        found = [(path.relative_to(self._folder).as_posix(), path.stat()) for path in files]
        return [Entry(name, stat.st_size, str(stat.st_mtime_ns)) for name, stat in found]

    def fetch(self, entry: Entry, target: Path, offset: int, stop: Stop) -> None:
        with (self._folder / entry.name).open("rb") as source, target.open("ab") as sink:
            source.seek(offset)
            sink.truncate(offset)
            _copy(source, sink, stop)


class WebStore:
    """A web server. What is there it says in `SHA256SUMS`, as listings of servers differ."""

    resumes = True

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/"

    def list(self, stop: Stop) -> list[Entry]:
        with self._open(SUMS) as answer:
            text = answer.read(PIECE).decode()
        names = [name for name in parse_sums(text) if name != SUMS]
        with ThreadPoolExecutor(8) as pool:
            entries = list(pool.map(self._entry, names))
        return [*entries, Entry(SUMS, len(text.encode()))]

    def fetch(self, entry: Entry, target: Path, offset: int, stop: Stop) -> None:
        with self._open(entry.name, offset) as answer, target.open("ab") as sink:
            # A server that knows no ranges sends all of it.
            sink.truncate(offset if answer.status == 206 else 0)
            try:
                _copy(answer, sink, stop)
            except http.client.HTTPException as error:
                raise ConnectionError(f"{self._url}{entry.name}: {error}") from None

    def _entry(self, name: str) -> Entry:
        with self._open(name, method="HEAD") as answer:
            size = answer.headers["content-length"] or ""
            if not (size.isascii() and size.isdigit()):
                raise OSError(f"{self._url}{name}: its server does not tell its size")
            version = answer.headers["etag"] or answer.headers["last-modified"] or ""
            return Entry(name, int(size), version)

    def _open(self, name: str, offset: int = 0, method: str = "GET") -> Any:
        url = urllib.parse.urljoin(self._url, urllib.parse.quote(name))
        request = urllib.request.Request(url, method=method)
        request.add_header("accept-encoding", "identity")
        if offset:
            request.add_header("range", f"bytes={offset}-")
        try:
            return urllib.request.urlopen(request, timeout=CONNECT_S)
        except urllib.error.HTTPError as error:
            raise OSError(f"{url}: {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            raise ConnectionError(f"{url}: {error.reason}") from None
        except http.client.HTTPException as error:
            raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from None


class S3Store:
    """S3, by `aws`. A file is begun anew: `aws s3 cp` fetches its parts in parallel, from 0."""

    resumes = False

    def __init__(self, bucket: str, prefix: str, run: Runner) -> None:
        self._bucket, self._prefix, self._run = bucket, prefix, run

    def list(self, stop: Stop) -> list[Entry]:
        command = ["aws", "s3api", "list-objects-v2", "--output", "json", "--bucket", self._bucket]
        if self._prefix:
            command += ["--prefix", f"{self._prefix}/"]
        found = json.loads(self._run(command, stop) or "{}").get("Contents") or ()
        keys = ((str(i["Key"]), int(i["Size"]), str(i.get("ETag") or "")) for i in found)
        return _entries(keys, self._prefix)

    def fetch(self, entry: Entry, target: Path, offset: int, stop: Stop) -> None:
        key = f"{self._prefix}/{entry.name}" if self._prefix else entry.name
        source = f"s3://{self._bucket}/{key}"
        self._run(["aws", "s3", "cp", "--only-show-errors", source, str(target)], stop)


class GoogleStore:
    """Google Cloud Storage, by `gcloud`. A file is begun anew."""

    resumes = False

    def __init__(self, bucket: str, prefix: str, run: Runner) -> None:
        self._bucket, self._prefix, self._run = bucket, prefix, run

    def list(self, stop: Stop) -> list[Entry]:
        pattern = "/".join(filter(None, (self._bucket, self._prefix, "**")))
        command = ["gcloud", "storage", "objects", "list", f"gs://{pattern}"]
        found = json.loads(
            self._run([*command, "--format=json(name,size,generation)"], stop) or "[]"
        )
        keys = ((str(i["name"]), int(i["size"]), str(i.get("generation") or "")) for i in found)
        return _entries(keys, self._prefix)

    def fetch(self, entry: Entry, target: Path, offset: int, stop: Stop) -> None:
        source = "/".join(filter(None, (self._bucket, self._prefix, entry.name)))
        self._run(["gcloud", "storage", "cp", "--quiet", f"gs://{source}", str(target)], stop)


def _entries(keys: Iterable[tuple[str, int, str]], prefix: str) -> list[Entry]:
    """Without the prefix, and without the markers that stand for folders."""
    skip = len(prefix) + 1 if prefix else 0
    return [
        Entry(key[skip:], size, version)
        for key, size, version in keys
        if not key.endswith("/") and key[skip:]
    ]


def _copy(source: Any, sink: Any, stop: Stop) -> None:
    # Not `read`, which on a slow line would look at `stop` once in a whole piece.
    while piece := source.read1(PIECE):
        if stop():
            raise Stopped
        sink.write(piece)


def run_command(command: Sequence[str], stop: Stop) -> str:
    """The runner for real. It stops the command when asked to."""
    try:
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise OSError(f"{command[0]}: not installed, and weights.source needs it") from None
    with running:
        while True:
            try:
                out, err = running.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if stop():
                    running.terminate()
                    raise Stopped from None
    if running.returncode != 0:
        raise OSError(f"{' '.join(command[:3])}: " + " ".join(err.strip().splitlines()[-3:]))
    return out

"""Weights: synced from folders and web servers, checked, resumed, evicted, read into memory."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import http.server
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from forebay_engine.serve import modelcache, pagecache, profile, stores, weights
from forebay_engine.serve.stores import Entry, FolderStore, Stopped, WebStore
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = {
    "config.json": b"{}",
    "model-1.safetensors": os.urandom(100_000),
    "model-2.safetensors": os.urandom(70_001),
    "nested/tokenizer.json": b"x" * 999,
}


def silent(_: str) -> None:
    """Nobody listens."""


def fill(folder: Path, files: dict[str, bytes], sums: bool = True) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if sums:
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in files.items()]
        (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    return folder


def whole(folder: Path, files: dict[str, bytes]) -> bool:
    return all((folder / name).read_bytes() == data for name, data in files.items())


def bring(
    root: Path,
    source: Path,
    *,
    limit: int | None = None,
    say: Callable[[str], None] = silent,
    stop: Callable[[], bool] = lambda: False,
) -> modelcache.Lease:
    return modelcache.sync(
        root,
        f"file://{source}",
        FolderStore(source),
        limit_bytes=limit,
        checksums=True,
        say=say,
        stop=stop,
    )


def test_a_folder_is_synced_once(tmp_path: Path) -> None:
    source = fill(tmp_path / "model", FILES)
    first = bring(tmp_path / "cache", source)
    assert whole(first.folder, FILES)
    assert first.fetched >= sum(map(len, FILES.values()))
    first.close()
    second = bring(tmp_path / "cache", source)
    assert (second.folder, second.fetched) == (first.folder, 0)
    second.close()


def test_what_changed_is_fetched_and_what_went_is_removed(tmp_path: Path) -> None:
    source = fill(tmp_path / "model", FILES, sums=False)
    bring(tmp_path / "cache", source).close()
    (source / "config.json").write_bytes(b'{"new": 1}')
    (source / "model-2.safetensors").unlink()
    lease = bring(tmp_path / "cache", source)
    assert lease.fetched == 10
    assert (lease.folder / "config.json").read_bytes() == b'{"new": 1}'
    assert not (lease.folder / "model-2.safetensors").exists()
    lease.close()


@pytest.mark.parametrize("offset", [1, 50_000, 100_000])
def test_a_begun_file_is_gone_on_with(tmp_path: Path, offset: int) -> None:
    source = fill(tmp_path / "model", FILES)
    folder = modelcache.folder_of(tmp_path / "cache", f"file://{source}")
    name = "model-1.safetensors"
    fill(folder, {f"{name}.part": FILES[name][:offset]}, sums=False)
    lease = bring(tmp_path / "cache", source)
    assert whole(lease.folder, FILES)
    assert lease.fetched == sum(map(len, FILES.values())) - offset
    lease.close()


def test_a_begun_file_of_another_version_is_fetched_anew(tmp_path: Path) -> None:
    source = fill(tmp_path / "model", FILES)
    folder = modelcache.folder_of(tmp_path / "cache", f"file://{source}")
    fill(folder, {"model-1.safetensors.part": b"other" * 100}, sums=False)
    lease = bring(tmp_path / "cache", source)
    assert whole(lease.folder, FILES)
    lease.close()


def test_what_does_not_fit_its_sum_is_refused_by_name(tmp_path: Path) -> None:
    source = fill(tmp_path / "model", FILES)
    (source / "model-2.safetensors").write_bytes(os.urandom(70_001))
    with pytest.raises(OSError, match=r"model-2\.safetensors: its SHA-256 is"):
        bring(tmp_path / "cache", source)


def test_a_copy_of_before_is_used_while_the_store_is_away(tmp_path: Path) -> None:
    source = fill(tmp_path / "model", FILES)
    bring(tmp_path / "cache", source).close()
    source.rename(tmp_path / "gone")
    said: list[str] = []
    lease = bring(tmp_path / "cache", source, say=said.append)
    assert whole(lease.folder, FILES)
    assert "the copy of before is used" in said[0]
    lease.close()


def test_a_store_that_is_away_and_never_was_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        bring(tmp_path / "cache", tmp_path / "absent")


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    class Hostile(FolderStore):
        def list(self, stop: stores.Stop) -> list[Entry]:
            return [Entry("../escaped", 1)]

    with pytest.raises(ValueError, match=r"\.\./escaped"):
        modelcache.sync(
            tmp_path / "cache",
            "file:///x",
            Hostile(tmp_path),
            limit_bytes=None,
            checksums=True,
            say=silent,
        )


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    sources = [fill(tmp_path / name, {"w": bytes(1000)}, sums=False) for name in "abc"]
    leases = [bring(root, source) for source in sources[:2]]
    for age, lease in zip((50, 10), leases, strict=True):
        lease.close()
        mark = lease.folder / modelcache.COMPLETE
        os.utime(mark, (mark.stat().st_atime, mark.stat().st_mtime - age))
    said: list[str] = []
    third = bring(root, sources[2], limit=2500, say=said.append)
    assert [lease.folder.exists() for lease in leases] == [False, True]
    assert "evicted" in " ".join(said)
    third.close()


def test_what_is_served_from_is_not_evicted(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    held = bring(root, fill(tmp_path / "a", {"w": bytes(1000)}, sums=False))
    other = fill(tmp_path / "b", {"w": bytes(1000)}, sums=False)
    with pytest.raises(ValueError, match="other models in use"):
        bring(root, other, limit=1500)
    assert held.folder.exists()
    held.close()
    bring(root, other, limit=1500).close()
    assert not held.folder.exists()


def test_a_model_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "a", {"w": bytes(1000)}, sums=False)
    with pytest.raises(ValueError, match="cache_limit_gb"):
        bring(tmp_path / "cache", source, limit=999)


def test_two_that_want_the_same_share_it(tmp_path: Path) -> None:
    source = fill(tmp_path / "a", FILES)
    first = bring(tmp_path / "cache", source)
    second = bring(tmp_path / "cache", source)
    assert (second.folder, second.fetched) == (first.folder, 0)
    second.close()
    first.close()


def test_one_waits_while_another_syncs_and_stops_when_told(tmp_path: Path) -> None:
    source = fill(tmp_path / "a", FILES)
    root = tmp_path / "cache"
    root.mkdir()
    lock = os.open(f"{modelcache.folder_of(root, f'file://{source}')}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    asked = iter([False, False])
    with pytest.raises(Stopped):
        bring(root, source, stop=lambda: next(asked, True))
    os.close(lock)
    bring(root, source).close()


def test_fetching_stops_when_told_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PIECE", 1000)
    source = fill(tmp_path / "a", {"w.bin": os.urandom(10_000)}, sums=False)
    asked = iter([False] * 4)
    with pytest.raises(Stopped):
        bring(tmp_path / "cache", source, stop=lambda: next(asked, True))
    lease = bring(tmp_path / "cache", source)
    assert 0 < lease.fetched < 10_000
    assert whole(lease.folder, {"w.bin": (source / "w.bin").read_bytes()})
    lease.close()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges; `cut` ends an answer after so many bytes, once."""

    cut: int | None = None
    ranges: list[str]
    knows_ranges = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        wanted = self.headers.get("range")
        if wanted and self.knows_ranges:
            type(self).ranges.append(wanted)
            data, status = data[int(wanted[6:].rstrip("-")) :], 206
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        cut, type(self).cut = (type(self).cut, None) if path.suffix == ".bin" else (None, self.cut)
        self.wfile.write(data[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, type[Handler]]]:
    class Own(Handler):
        ranges: ClassVar[list[str]] = []

    folder = tmp_path / "www"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: Own(*a, directory=str(folder))
    )
    server.block_on_close = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder, Own
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(root: Path, url: str, say: Callable[[str], None] = silent) -> modelcache.Lease:
    return modelcache.sync(root, url, WebStore(url), limit_bytes=None, checksums=True, say=say)


def test_a_web_server_is_synced_and_a_cut_file_is_gone_on_with(
    tmp_path: Path, web: tuple[str, Path, type[Handler]]
) -> None:
    url, folder, handler = web
    files = {"w.bin": os.urandom(50_000), "sub/a b.json": b"{}"}
    fill(folder, files)
    handler.cut = 20_000
    with pytest.raises(ConnectionError, match=r"w\.bin"):
        fetch(tmp_path / "cache", url)
    lease = fetch(tmp_path / "cache", url)
    assert whole(lease.folder, files)
    assert handler.ranges == ["bytes=20000-"]
    lease.close()


def test_a_web_server_without_ranges_is_read_anew(
    tmp_path: Path, web: tuple[str, Path, type[Handler]]
) -> None:
    url, folder, handler = web
    files = {"w.bin": os.urandom(50_000)}
    fill(folder, files)
    handler.cut, handler.knows_ranges = 20_000, False
    with pytest.raises(ConnectionError):
        fetch(tmp_path / "cache", url)
    lease = fetch(tmp_path / "cache", url)
    assert whole(lease.folder, files)
    lease.close()


def test_a_web_server_without_a_list_is_an_error(
    tmp_path: Path, web: tuple[str, Path, type[Handler]]
) -> None:
    with pytest.raises(OSError, match="SHA256SUMS: 404"):
        fetch(tmp_path / "cache", web[0])


class Recorder:
    """Stands for `aws` and `gcloud`, which are not here: their commands, what they would say."""

    def __init__(self, listing: object) -> None:
        self.listing = json.dumps(listing)
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str], stop: stores.Stop) -> str:
        self.commands.append(list(command))
        return self.listing


def test_the_commands_for_s3(tmp_path: Path) -> None:
    objects = [{"Key": "m/a.bin", "Size": 3}, {"Key": "m/", "Size": 0}, {"Key": "m/s/b", "Size": 4}]
    run = Recorder({"Contents": objects})
    store = stores.open_store("s3://bucket/m/", run)
    assert store.list(bool) == [Entry("a.bin", 3), Entry("s/b", 4)]
    store.fetch(Entry("s/b", 4), tmp_path / "t", 0, bool)
    assert [" ".join(command) for command in run.commands] == [
        "aws s3api list-objects-v2 --output json --bucket bucket --prefix m/",
        f"aws s3 cp --only-show-errors s3://bucket/m/s/b {tmp_path}/t",
    ]


def test_the_commands_for_google_cloud_storage(tmp_path: Path) -> None:
    run = Recorder([{"name": "m/a.bin", "size": "3"}])
    store = stores.open_store("gs://bucket/m", run)
    assert store.list(bool) == [Entry("a.bin", 3)]
    store.fetch(Entry("a.bin", 3), tmp_path / "t", 0, bool)
    assert [" ".join(command) for command in run.commands] == [
        "gcloud storage objects list gs://bucket/m/** --format=json(name,size,generation)",
        f"gcloud storage cp --quiet gs://bucket/m/a.bin {tmp_path}/t",
    ]


def test_a_command_that_is_not_there_or_fails_says_so() -> None:
    with pytest.raises(OSError, match="no-such-command: not installed"):
        stores.run_command(["no-such-command"], bool)
    with pytest.raises(OSError, match="its own words"):
        stores.run_command(["sh", "-c", "echo its own words >&2; exit 3"], bool)
    with pytest.raises(Stopped):
        stores.run_command(["sleep", "60"], lambda: True)


@pytest.mark.parametrize("line", ["abc  name", "0" * 64, "z" * 64 + "  name", "0" * 64 + " "])
def test_sums_of_another_form_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        stores.parse_sums(line)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("ab/ .é", min_size=1).filter(str.strip), st.binary(), max_size=4))
def test_sums_are_read_as_sha256sum_writes_them(files: dict[str, bytes]) -> None:
    names = {f"x{name.strip()}": hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = "".join(f"{digest} *{name}\n" for name, digest in names.items())
    assert stores.parse_sums(text) == names


@settings(max_examples=100, deadline=None)
@given(st.text("ab./\\", max_size=12))
def test_a_safe_name_stays_below_its_folder(name: str) -> None:
    if stores.safe(name):
        root = "/top/of/cache"
        assert os.path.normpath(f"{root}/{name}").startswith(root)


async def test_weight_files_are_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, "CHUNK", 4096)
    fill(tmp_path, FILES, sums=False)
    files = pagecache.files_of(tmp_path)
    assert [path.name for path in files] == ["model-1.safetensors", "model-2.safetensors"]
    read = await pagecache.read_files(files, 3)
    assert (read.files, read.bytes) == (2, 170_001)
    assert read.seconds > 0


async def test_reading_stops_when_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, "CHUNK", 16)
    path = tmp_path / "w.bin"
    path.write_bytes(bytes(200_000))
    reading = asyncio.ensure_future(pagecache.read_files([path], 1))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_file_that_went_is_left_to_the_engine(tmp_path: Path) -> None:
    assert (await pagecache.read_files([tmp_path / "absent"], 1)).bytes == 0


def located(tmp_path: Path, **fields: object) -> weights.Located:
    given = {"kind": "sglang", "model": "org/m", "cache_dir": str(tmp_path / "c"), **fields}
    return weights.locate(profile.from_values(given), silent)


def test_where_the_engine_is_to_look(tmp_path: Path) -> None:
    source = fill(tmp_path / "m", FILES)
    by_name = located(tmp_path)
    assert (by_name.profile.model, by_name.folder) == ("org/m", None)
    in_place = located(tmp_path, weights={"source": str(source)})
    assert (in_place.profile.model, in_place.folder) == (str(source), source)
    assert in_place.profile.served_name == "org/m"
    synced = located(tmp_path, weights={"source": f"file://{source}"})
    assert synced.lease is not None
    assert synced.profile.model == str(synced.folder)
    assert str(synced.folder).startswith(str(tmp_path / "c" / "weights"))
    synced.lease.close()


def test_a_model_of_the_hub_is_read_from_its_cache(tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path)}
    model = tmp_path / "hub" / "models--org--m"
    assert weights.hub_folder("org/m", env) is None
    fill(model / "snapshots" / "abc", FILES, sums=False)
    fill(model, {"refs/main": b"abc"}, sums=False)
    assert weights.hub_folder("org/m", env) == model / "snapshots" / "abc"
    assert located(tmp_path, env=env).folder == model / "snapshots" / "abc"
    assert located(tmp_path, env=env).profile.model == "org/m"


@pytest.mark.parametrize("fields", [{"model": "/no/model"}, {"weights": {"source": "/no/model"}}])
def test_a_path_that_is_not_there_is_named(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(FileNotFoundError, match="/no/model: no such"):
        located(tmp_path, **fields)


@pytest.mark.parametrize("sums", [True, False])
def test_a_new_version_of_the_same_size_is_fetched(tmp_path: Path, sums: bool) -> None:
    source = fill(tmp_path / "model", FILES, sums=sums)
    bring(tmp_path / "cache", source).close()
    new = {**FILES, "model-2.safetensors": os.urandom(70_001)}
    fill(source, {"model-2.safetensors": new["model-2.safetensors"]}, sums=False)
    if sums:
        fill(source, new)
    os.utime(source / "model-2.safetensors", ns=(1, 1))
    lease = bring(tmp_path / "cache", source)
    assert whole(lease.folder, new)
    assert lease.fetched == 70_001
    lease.close()
    again = bring(tmp_path / "cache", source)
    assert again.fetched == 0
    again.close()


def test_a_copy_that_was_written_to_is_fetched_anew(tmp_path: Path) -> None:
    source = fill(tmp_path / "model", FILES)
    first = bring(tmp_path / "cache", source)
    first.close()
    (first.folder / "model-2.safetensors").write_bytes(bytes(70_001))
    os.utime(first.folder / "model-2.safetensors", ns=(1, 1))
    lease = bring(tmp_path / "cache", source)
    assert whole(lease.folder, FILES)
    lease.close()


def test_a_begun_file_is_not_gone_on_with_by_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PIECE", 1000)
    source = fill(tmp_path / "a", {"w.bin": bytes(10_000)}, sums=False)
    asked = iter([False] * 4)
    with pytest.raises(Stopped):
        bring(tmp_path / "cache", source, stop=lambda: next(asked, True))
    new = {"w.bin": os.urandom(10_000)}
    fill(source, new, sums=False)
    os.utime(source / "w.bin", ns=(1, 1))
    lease = bring(tmp_path / "cache", source)
    assert whole(lease.folder, new)
    lease.close()


def test_sums_that_list_themselves_are_no_file(
    tmp_path: Path, web: tuple[str, Path, type[Handler]]
) -> None:
    url, folder, _ = web
    fill(folder, FILES)
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  SHA256SUMS\n")
    for lease in (fetch(tmp_path / "web", url), bring(tmp_path / "cache", folder)):
        assert whole(lease.folder, FILES)
        lease.close()


def test_a_server_that_does_not_tell_a_size_is_an_error(
    tmp_path: Path, web: tuple[str, Path, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder, handler = web
    fill(folder, FILES)

    def do_HEAD(self: Handler) -> None:
        self.send_response(200)
        self.end_headers()

    monkeypatch.setattr(handler, "do_HEAD", do_HEAD)
    with pytest.raises(OSError, match="does not tell its size"):
        fetch(tmp_path / "cache", url)


def test_a_slow_line_is_given_up_when_told() -> None:
    read, write = os.pipe()
    os.write(write, b"a drop")
    with os.fdopen(read, "rb") as source, pytest.raises(Stopped):
        stores._copy(source, io.BytesIO(), lambda: True)
    os.close(write)


def test_those_that_wait_for_a_copy_do_not_wait_for_each_other(tmp_path: Path) -> None:
    source = fill(tmp_path / "a", FILES)
    root = tmp_path / "cache"
    root.mkdir()
    lock = os.open(f"{modelcache.folder_of(root, f'file://{source}')}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    leases: list[modelcache.Lease] = []
    waiting = [
        threading.Thread(target=lambda: leases.append(bring(root, source)), daemon=True)
        for _ in range(3)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.1)
    os.close(lock)
    for thread in waiting:
        thread.join(30)
    assert len(leases) == 3
    for lease in leases:
        lease.close()


def test_a_file_that_goes_as_it_is_counted_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"a": b"12"}, sums=False)
    monkeypatch.setattr(os, "walk", lambda at: [(str(at), [], ["a", "gone.part"])])
    assert modelcache._bytes(tmp_path) == 2

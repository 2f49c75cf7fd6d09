"""The embedded server: first start, second start, and what killed runs leave behind."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from forebay.store import EmbeddedPostgres, StoreError


@pytest.fixture
def server(scratch: Path, request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    embedded = EmbeddedPostgres(scratch / f"e-{abs(hash(request.node.name)):x}", durable=False)
    yield embedded
    embedded.stop()


def ask(url: str, statement: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_data_outlives_a_stop_and_only_the_owner_may_enter(server: EmbeddedPostgres) -> None:
    url = server.start()
    assert server.start() == url, "starting twice is harmless"
    ask(url, "CREATE TABLE kept AS SELECT 42 AS x")
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert ask(url, "SHOW listen_addresses") == ""
    pid = server.pid
    assert pid is not None
    server.stop()
    server.stop()
    assert gone(pid)
    with pytest.raises(StoreError, match="not started"):
        _ = server.url
    assert ask(server.start(), "SELECT x FROM kept") == 42


def test_a_second_user_of_the_folder_is_refused(server: EmbeddedPostgres) -> None:
    server.start()
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        EmbeddedPostgres(server.data_dir).start()
    assert ask(server.url, "SELECT 1") == 1


def test_a_server_left_by_a_killed_run_is_taken_over(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from forebay.store import EmbeddedPostgres;"
        "s = EmbeddedPostgres(Path(sys.argv[1])); s.start(); print(s.pid, flush=True);"
        "time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(server.data_dir)], stdout=subprocess.PIPE
    )
    with run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.kill()
    assert ask(server.start(), "SELECT 1") == 1
    assert server.pid == pid
    server.stop()
    wait_for(lambda: gone(pid))


def test_a_killed_server_is_recovered(scratch: Path, request: pytest.FixtureRequest) -> None:
    server = EmbeddedPostgres(scratch / "killed", durable=True)
    request.addfinalizer(server.stop)
    ask(server.start(), "CREATE TABLE kept AS SELECT 7 AS x")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert (server.data_dir / "postmaster.pid").exists()
    assert ask(server.start(), "SELECT x FROM kept") == 7


def test_a_pid_file_whose_number_is_somebody_elses(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    pid_file = server.data_dir / "postmaster.pid"
    other = subprocess.Popen(["sleep", "60"])
    try:
        pid_file.write_text(f"{other.pid}\n{server.data_dir}\n1\n5432\n/x\n\n1 1\nready\n")
        assert ask(server.start(), "SELECT 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_folder_half_made_by_a_killed_run_is_made_anew(server: EmbeddedPostgres) -> None:
    half = server.data_dir.with_name(server.data_dir.name + ".new")
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    assert ask(server.start(), "SELECT 1") == 1


def test_a_path_too_long_for_a_socket(scratch: Path) -> None:
    with EmbeddedPostgres(scratch / ("d" * 120), durable=False) as server:
        assert ask(server.url, "SELECT 1") == 1


def test_a_folder_that_is_no_database_is_named(scratch: Path) -> None:
    folder = scratch / "not-a-database"
    folder.mkdir(exist_ok=True)
    (folder / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(StoreError, match="does not start"):
        EmbeddedPostgres(folder).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_in_a_private_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    private = tmp_path_factory.mktemp("private")
    private.chmod(0o700)
    with EmbeddedPostgres(private / "pg", durable=False) as server:
        assert ask(server.url, "SELECT 1") == 1
        assert server.data_dir.is_relative_to("/var/tmp")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    import shutil

    shutil.rmtree(server.data_dir.parent)

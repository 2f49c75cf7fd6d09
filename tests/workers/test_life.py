"""How workers start, die, come back and end."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forebay.workers.supervisor import LONGEST_PAUSE_S, pause_s

from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request
from tests.support.workers import connected, is_alive, owner

WORKERS = 3


def settings(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    """A configuration of one model."""
    return {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "drain_s": 5,
        **more,
    }


@pytest.fixture
def own(tmp_path: Path, database_url: str, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """Three workers that the test may kill; 5 s of drain."""
    process = Gateway(tmp_path / "gateway", settings(upstream), database_url, workers=WORKERS)
    process.start()
    yield process
    workers = process.workers if process.ready_file.exists() else []
    process.stop()
    for pid in workers:
        until(lambda p=pid: not is_alive(p), "gone")  # type: ignore[misc]


@pytest.fixture
def go_on(upstream: ScriptedUpstream) -> Iterator[threading.Event]:
    """The engine sends one token, then waits for the event and finishes."""
    event = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        if event.wait(20):
            connection.event(finish())
            connection.event({"choices": [], "usage": usage(4, 2)})
            connection.event("[DONE]")
            connection.end()

    upstream.script = script
    yield event
    event.set()


def draining(gateway: Gateway) -> set[int]:
    """The numbers of the workers that have begun to drain."""
    return set(map(int, re.findall(r'"event": "draining", "worker": (\d)', gateway.log())))


def begin_streams(clients: dict[int, list[Client]], key: Key) -> list[Client]:
    """One stream at each worker, begun."""
    running = [mine[0] for mine in clients.values()]
    for client in running:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
    return running


def test_a_killed_worker_is_replaced_while_the_others_serve(own: Gateway) -> None:
    key = own.key()
    stop = threading.Event()
    counts = {"answered": 0, "cut": 0}

    def load() -> None:
        while not stop.is_set():
            # Its connection may be the killed one's.
            with suppress(OSError), Client(own.port) as client:
                while not stop.wait(0.005):
                    answer = client.send(request(CHAT, chat(), key=key.secret)).answer()
                    assert answer.status == 200
                    counts["answered"] += 1
                return
            counts["cut"] += 1

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        victim = own.workers[1]
        until(lambda: counts["answered"] > 50, "load")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: victim not in own.workers, "seen")
        before = counts["answered"]
        until(lambda: counts["answered"] > before + 50, "the others serve")
        until(lambda: len(own.workers) == WORKERS, "back")
        # Two seconds, or where the machine is so busy that all needed more to start, as long.
        assert time.monotonic() - killed < max(2.0, own.started_in_s)
        assert victim not in own.workers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # A thread notices once or, where the listener's queue went too, a few times.
    assert counts["cut"] <= 3 * len(threads)
    with connected(own):
        pass
    assert own.stop() == 0
    assert "signal 9 (Killed)" in own.log()
    assert "Traceback (most recent" not in own.log()


def test_what_a_killed_worker_held_comes_back(own: Gateway, go_on: threading.Event) -> None:
    key = own.key(concurrency=1)
    with Client(own.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        client.head()
        assert own.call(CHAT, chat(), key=key.secret).status == 429, "the only permit is taken"
        holder = owner(own, client)
        assert holder is not None
        os.kill(holder, signal.SIGKILL)
        go_on.set()

        def admitted() -> bool:
            with suppress(OSError):
                return own.call(CHAT, chat(stream=True), key=key.secret).status == 200
            return False

        until(admitted, "the permit", timeout_s=2.0)


def test_one_limit_holds_for_all(own: Gateway) -> None:
    key = own.key(rpm=6, rpm_burst=10)
    data = request(CHAT, chat(), key=key.secret)
    with connected(own) as clients:
        statuses = [
            client.send(data).answer().status for mine in clients.values() for client in mine
        ]
    assert statuses.count(200) == 10, "one more would take 10 s"
    assert set(statuses) == {200, 429}


def test_a_drain_reaches_all(own: Gateway, go_on: threading.Event) -> None:
    key = own.key()
    assert own.popen is not None
    with connected(own) as clients:
        running = begin_streams(clients, key)
        answers = [client.head() for client in running]
        own.popen.send_signal(signal.SIGTERM)
        until(lambda: draining(own) == {0, 1, 2}, "all drain")
        assert own.popen.poll() is None
        go_on.set()
        for client, answer in zip(running, answers, strict=True):
            body = b"".join(data for _, data in client.body(answer))
            assert answer.complete
            assert body.endswith(b"data: [DONE]\n\n")
    assert own.popen.wait(10) == 0
    rows = own.usage(WORKERS, key_id=key.id)
    assert {(row["outcome"], row["completion_tokens"]) for row in rows} == {("ok", 2)}
    assert not own.ready_file.exists()
    assert "Traceback (most recent" not in own.log()


def test_one_that_drains_leaves_new_connections_to_the_others(
    own: Gateway, go_on: threading.Event
) -> None:
    key = own.key()
    with Client(own.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        head = client.head()
        leaving = owner(own, client)
        assert leaving is not None
        os.kill(leaving, signal.SIGTERM)
        until(lambda: draining(own), "it drains")
        time.sleep(0.2)
        for _ in range(40):
            # No such model: 404 comes without the engine, and 503 from one that drains.
            assert own.call(CHAT, chat(model="none"), key=key.secret).status == 404
        assert is_alive(leaving)
        go_on.set()
        body = b"".join(data for _, data in client.body(head))
        assert body.endswith(b"data: [DONE]\n\n")
    until(lambda: not is_alive(leaving), "it ends")
    until(lambda: leaving not in own.workers and len(own.workers) == WORKERS, "another came")
    assert "Traceback (most recent" not in own.log()


@pytest.mark.parametrize("to_all", [False, True])
def test_only_a_second_signal_to_the_supervisor_hurries(
    own: Gateway, go_on: threading.Event, to_all: bool
) -> None:
    """The terminal and some service managers signal the workers too."""
    key = own.key()
    assert own.popen is not None
    with connected(own) as clients:
        workers = own.workers
        running = begin_streams(clients, key)
        for client in running:
            client.head()
        for pid in [own.pid, *(workers if to_all else [])]:
            os.kill(pid, signal.SIGINT)
        until(lambda: draining(own) == {0, 1, 2}, "all drain")
        time.sleep(0.3)
        assert own.popen.poll() is None
        assert all(is_alive(pid) for pid in workers)
        started = time.monotonic()
        own.popen.send_signal(signal.SIGINT)
        assert own.popen.wait(10) == 0
        assert time.monotonic() - started < 3.0
    rows = own.usage(WORKERS, key_id=key.id)
    assert {row["outcome"] for row in rows} == {"gateway_died"}


def test_workers_without_their_supervisor_finish_and_end(
    own: Gateway, go_on: threading.Event
) -> None:
    key = own.key()
    workers = own.workers
    assert own.popen is not None
    with connected(own) as clients:
        running = begin_streams(clients, key)
        answers = [client.head() for client in running]
        own.popen.kill()
        own.popen.wait()
        until(lambda: draining(own) == {0, 1, 2}, "all drain")
        assert clients[workers[0]][1].socket.recv(1) == b"", "what is idle is closed"
        go_on.set()
        for client, answer in zip(running, answers, strict=True):
            assert b"".join(data for _, data in client.body(answer)).endswith(b"data: [DONE]\n\n")
    for pid in workers:
        until(lambda p=pid: not is_alive(p), "ended")  # type: ignore[misc]
    assert {row["outcome"] for row in own.usage(WORKERS, key_id=key.id)} == {"ok"}
    assert "the supervisor is gone" in own.log()
    assert "Traceback (most recent" not in own.log()
    own.ready_file.unlink()


def test_a_worker_that_does_not_end_is_killed(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    config = settings(upstream, drain_s=0)
    # The margin is a constant of the program: a short one needs a program of its own.
    process = Gateway(tmp_path / "gateway", config, database_url, workers=2)
    script = (
        "import sys; from forebay.workers import supervisor; supervisor.MARGIN_S = 1.0;"
        " from forebay.cli import main; sys.exit(main())"
    )
    process.arguments[1:3] = ["-c", script]
    process.start()
    stuck, other = process.workers
    os.kill(stuck, signal.SIGSTOP)
    assert process.stop() == 0
    assert not is_alive(stuck)
    assert not is_alive(other)
    assert "is killed" in process.log()


def broken(folder: Path, when: str) -> dict[str, str]:
    """An environment in which a worker ends at its start where `when`, an expression, is true."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import os, sys\nif 'forebay.workers' in sys.orig_argv and ({when}):\n    os._exit(3)\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_workers_that_never_start_end_the_whole(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    env = broken(tmp_path / "broken", "sys.orig_argv[-2] == '1'")
    config = settings(upstream)
    process = Gateway(tmp_path / "gateway", config, database_url, env=env, workers=2)
    process.launch()
    assert process.popen is not None
    assert process.popen.wait(20) == 1
    lines = [line for line in process.log().splitlines() if not line.startswith("{")]
    assert lines == [
        "forebay: the workers do not start: it ended with status 3 (worker 1, 5 times)"
    ]
    assert not process.ready_file.exists()


def test_what_keeps_workers_from_starting_is_told_once(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    env = broken(tmp_path / "broken", "False")
    with (tmp_path / "broken" / "sitecustomize.py").open("a") as program:
        program.write(
            "if 'forebay.workers' in sys.orig_argv:\n"
            "    import forebay.serve\n"
            "    async def serve(*_, **__):\n"
            "        raise OSError('no room')\n"
            "    forebay.serve.serve = serve\n"
        )
    process = Gateway(tmp_path / "gateway", settings(upstream), database_url, env=env, workers=2)
    process.launch()
    assert process.popen is not None
    assert process.popen.wait(20) == 1
    lines = [line for line in process.log().splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert re.fullmatch(
        r"forebay: the workers do not start: no room \(worker [01], 5 times\)", lines[0]
    )


def test_a_worker_that_cannot_start_again_is_tried_again(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    flag = tmp_path / "flag"
    env = broken(tmp_path / "broken", f"os.path.exists({str(flag)!r})")
    config = settings(upstream)
    process = Gateway(tmp_path / "gateway", config, database_url, env=env, workers=2)
    process.start()
    kept, victim = process.workers
    flag.touch()
    os.kill(victim, signal.SIGKILL)
    until(lambda: process.log().count("ended with status 3") >= 6, "tries")
    assert process.workers == [kept]
    assert process.call("/healthz").status == 200
    flag.unlink()
    until(lambda: len(process.workers) == 2, "back")
    assert process.stop() == 0


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"workers": 0}, 2, ["workers", "gateway.yaml"]),
        ({"workers": 257}, 2, ["workers", "gateway.yaml"]),
        ({"models": {"x": {"targets": [{"upstream": "nope"}]}}}, 2, ["nope", "gateway.yaml"]),
        ({"listen": {"http": "192.0.2.1:80"}}, 1, ["cannot listen on 192.0.2.1:80"]),
        ({"listen": {"grpc": "192.0.2.1:80"}}, 1, ["cannot listen on 192.0.2.1:80"]),
    ],
)
def test_bad_settings_are_one_error_before_anything_starts(
    tmp_path: Path,
    upstream: ScriptedUpstream,
    change: dict[str, Any],
    status: int,
    words: list[str],
) -> None:
    config = settings(upstream, workers=2) | change
    process = Gateway(tmp_path / "gateway", config, "postgresql://nobody@127.0.0.1:1/x")
    if "http" in config.get("listen", {}):
        process.arguments.remove("--http")
        process.arguments.remove("127.0.0.1:0")
    process.launch()
    assert process.popen is not None
    assert process.popen.wait(10) == status
    lines = process.log().strip().splitlines()
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["http", "grpc"])
def test_an_address_is_one_gateways(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream, what: str, workers: int
) -> None:
    first = settings(upstream, listen={"grpc": "127.0.0.1:0"})
    running = Gateway(tmp_path / "first", first, database_url, workers=2)
    running.start()
    try:
        taken = running.facts["grpc"] if what == "grpc" else f"127.0.0.1:{running.port}"
        config = settings(upstream, listen={what: taken})
        second = Gateway(tmp_path / "second", config, database_url, workers=workers)
        if what == "http":
            second.arguments.remove("--http")
            second.arguments.remove("127.0.0.1:0")
        second.launch()
        assert second.popen is not None
        assert second.popen.wait(10) == 1
        lines = [line for line in second.log().splitlines() if line.startswith("forebay:")]
        assert len(lines) == 1, second.log()
        assert f"cannot listen on {taken}" in lines[0]
        assert "in use" in lines[0]
        assert "Traceback" not in second.log()
    finally:
        assert running.stop() == 0


def test_the_pause_before_a_start_grows_to_its_bound() -> None:
    assert pause_s(0) == pause_s(1) == 0.0
    pauses = [pause_s(deaths) for deaths in range(2, 40)]
    assert pauses == sorted(pauses)
    assert pauses[0] == 0.1
    assert pauses[-1] == LONGEST_PAUSE_S

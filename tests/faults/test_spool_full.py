"""The spool is full: nothing is served that cannot be recorded, until there is space again."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres

from tests.faults.test_database import fresh
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, Client, chat, request

MIB = 1024 * 1024
TAGS = ("x-forebay-tags", ",".join(f"t{number}={'x' * 256}" for number in range(16)))
"""So that a request takes 8 KiB of the spool."""
MOST = 2_000
"""Requests after which a spool of 2 MiB must be full."""
STREAMS = 4


# The root of a namespace of users may not enter folders of the database's user: who is root stays
# it.
_ISOLATED = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def own_mounts() -> bool:
    """Whether a process may have mounts of its own."""
    command = [*_ISOLATED, "mount", "-t", "tmpfs", "spool", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


on_a_small_disk = pytest.mark.skipif(
    not own_mounts(), reason="no small disk: a process may have no mounts of its own here"
)


class Filled:
    """A gateway whose spool has little space, and what it answered to those who filled it."""

    def __init__(self, gateway: Gateway, key: Key, spool: Path, served: int) -> None:
        self.gateway = gateway
        self.key = key
        self.served = served
        # Its own mounts are seen by way of its root.
        self.disk = Path(f"/proc/{gateway.pid}/root") / spool.relative_to("/")

    def ask(self, *, stream: bool = False) -> Answer:
        """One request; `served` counts those that were."""
        got = self.gateway.call(CHAT, chat(stream=stream), key=self.key.secret, headers=[TAGS])
        self.served += got.status == 200
        return got

    def fill(self) -> Answer:
        """Ask until one is refused; that refusal."""
        for _ in range(MOST):
            got = self.ask()
            if got.status != 200:
                return got
        raise AssertionError("it is never full")

    def rows(self) -> list[dict[str, Any]]:
        """Usage of all that was served, each once."""
        rows = self.gateway.usage(self.served, key_id=self.key.id, timeout_s=30)
        assert len({row["event_id"] for row in rows}) == self.served
        assert sorted(row["seq"] for row in rows) == list(range(self.served)), "no hole"
        return rows


@contextmanager
def running(
    folder: Path,
    server: EmbeddedPostgres,
    upstream: ScriptedUpstream,
    name: str,
    *,
    disk_bytes: int | None = None,
    **spool: Any,
) -> Iterator[Filled]:
    """A gateway with a spool as configured, on a disk of its own where `disk_bytes` is given."""
    url = fresh(server, name)
    where = folder / "spool"
    where.mkdir()
    config = {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "spool": {"dir": str(where), "max_bytes": 2 * MIB, **spool},
    }
    gateway = Gateway(folder / "gateway", config, url)
    if disk_bytes is not None:
        mount = f'mount -t tmpfs -o size={disk_bytes} spool "$0" && exec "$@"'
        gateway.arguments[:0] = [*_ISOLATED, "sh", "-c", mount, str(where)]
    gateway.start()
    try:
        key = gateway.key()
        yield Filled(gateway, key, where, 0)
        assert "Traceback (most recent" not in gateway.log()
    finally:
        server.start()
        assert gateway.stop() == 0, gateway.log()


@pytest.fixture
def go_on(upstream: ScriptedUpstream) -> Iterator[threading.Event]:
    """Streams send one token, then wait for the event and finish; all else is answered at once."""
    event = threading.Event()
    plain = upstream.script

    def script(connection: Connection, received: Received) -> None:
        if not received.json().get("stream"):
            plain(connection, received)
            return
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        if event.wait(30):
            connection.event(finish())
            connection.event({"choices": [], "usage": usage(4, 2)})
            connection.event("[DONE]")
            connection.end()

    upstream.script = script
    yield event
    event.set()


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        pytest.param({}, "", id="max_bytes"),
        pytest.param(
            {"disk_bytes": MIB + MIB // 2, "max_bytes": 4 * MIB},
            "No space left on device",
            id="the disk",
            marks=on_a_small_disk,
        ),
    ],
)
def test_a_full_spool_refuses_and_heals(
    tmp_path: Path,
    own_postgres: EmbeddedPostgres,
    upstream: ScriptedUpstream,
    go_on: threading.Event,
    settings: dict[str, Any],
    cause: str,
) -> None:
    name = f"full_{len(cause)}"
    with running(tmp_path, own_postgres, upstream, name, **settings) as filled:
        gateway = filled.gateway
        clients = [Client(gateway.port) for _ in range(STREAMS)]
        data = request(CHAT, chat(stream=True), key=filled.key.secret, headers=[TAGS])
        heads = [client.send(data).head() for client in clients]
        assert filled.ask().status == 200
        own_postgres.stop()

        refused = filled.fill()
        until(lambda: filled.ask().status == 503, "it stays full")
        assert refused.brief() == (
            503, "service_unavailable_error", "usage_spool_full", None
        )  # fmt: skip
        assert refused.header("retry-after") == "1"
        assert "cannot record usage" in refused.error()["message"]
        health = gateway.call("/readyz")
        assert health.status == 503
        told = health.json()["checks"]["usage"]
        assert told.startswith("down: the spool is full"), told
        assert cause in told, told
        assert gateway.metric("forebay_spool_refused_total") >= 2
        before = len(upstream.requests)
        assert filled.ask(stream=True).status == 503
        assert len(upstream.requests) == before, "nothing reaches the engine"

        # What runs ends as ever, and is recorded.
        go_on.set()
        for client, head in zip(clients, heads, strict=True):
            assert b"".join(data for _, data in client.body(head)).endswith(b"data: [DONE]\n\n")
            client.socket.close()
        filled.served += STREAMS
        assert gateway.metric("forebay_spool_lost_total") == 0

        # Nobody has to ask for it: traffic comes back once it is ready.
        own_postgres.start()
        until(lambda: gateway.call("/readyz").status == 200, "healing", 30)
        assert filled.ask().status == 200
        rows = filled.rows()
        streams = [row for row in rows if row["stream"]]
        assert [row["completion_tokens"] for row in streams] == [2] * STREAMS
        assert {row["outcome"] for row in rows} == {"ok"}
        assert len(upstream.requests) == filled.served


@on_a_small_disk
def test_space_that_returns_is_used_while_the_database_is_away(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    """Somebody else had filled the disk."""
    options = {"disk_bytes": 4 * MIB, "max_bytes": 4 * MIB}
    with running(tmp_path, own_postgres, upstream, "filler", **options) as filled:
        gateway = filled.gateway
        own_postgres.stop()
        filler = filled.disk / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    os.write(file.fileno(), b"x" * 65_536)
                except OSError:
                    break
        refused = filled.fill()
        assert refused.brief()[2] == "usage_spool_full"
        before = filled.served
        filler.unlink()
        until(lambda: not gateway.health()["checks"]["usage"].startswith("down"), "space")
        assert filled.ask().status == 200
        own_postgres.start()
        assert before > 0
        filled.rows()


def test_serving_without_a_record_is_counted_and_told(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    with running(
        tmp_path, own_postgres, upstream, "unmetered", on_full="serve_unmetered"
    ) as filled:
        gateway = filled.gateway
        own_postgres.stop()
        for _ in range(MOST):
            assert filled.ask().status == 200
            if gateway.metric("forebay_spool_unmetered_total"):
                break
        for _ in range(5):
            assert filled.ask().status == 200
        health = gateway.call("/readyz")
        assert health.status == 200
        assert health.json()["checks"]["usage"].startswith("degraded: the spool is full")
        own_postgres.start()
        until(lambda: gateway.health()["checks"]["usage"] == "ok", "healing", 30)
        assert filled.ask().status == 200
        unmetered = gateway.metric("forebay_spool_unmetered_total")
        assert unmetered >= 6
        assert gateway.metric("forebay_spool_refused_total") == 0
        filled.served -= int(unmetered)
        filled.rows()

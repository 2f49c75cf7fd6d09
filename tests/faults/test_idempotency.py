"""Requests with a key while things die: their process, the database, all of the gateway."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from forebay.store import EmbeddedPostgres

from tests.faults.test_database import fresh
from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream, answer
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, Client, chat, request

LEASE_S = 1.0
REPLAY = "x-forebay-idempotent-replay"


def settings(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        "idempotency": {"lease_s": LEASE_S},
        **more,
    }


def asked(key: Key, name: str) -> bytes:
    return request(CHAT, chat(), key=key.secret, headers=(("idempotency-key", name),))


def ask(gateway: Gateway, key: Key, name: str) -> Answer:
    with Client(gateway.port) as client:
        return client.send(asked(key, name)).answer()


def held(upstream: ScriptedUpstream) -> threading.Event:
    """From now on the engine answers once the event is set."""
    go = threading.Event()

    def script(connection: Any, _: Any) -> None:
        assert go.wait(20)
        connection.json(answer())

    upstream.script = script
    return go


def test_a_gateway_that_is_killed_is_taken_over_from(
    tmp_path: Path, session_database_url: str, upstream: ScriptedUpstream
) -> None:
    processes = [
        Gateway(tmp_path / name, settings(upstream, node=name), session_database_url)
        for name in ("one", "two")
    ]
    one, two = processes
    for process in processes:
        process.start()
    try:
        key = one.key()
        two.call("/v1/models", key=key.secret)
        until(lambda: two.call("/v1/models", key=key.secret).status == 200, "the key")
        go = held(upstream)
        with Client(one.port) as client, ThreadPoolExecutor(3) as pool:
            client.send(asked(key, "n"))
            until(lambda: len(upstream.requests) == 1, "the first")
            waiting = [pool.submit(ask, two, key, "n") for _ in range(3)]
            # It holds on to what it works on for as long as it lives.
            done = [future for future in waiting if _ended(future, 3 * LEASE_S)]
            assert done == []
            os.kill(one.pid, signal.SIGKILL)
            until(lambda: len(upstream.requests) == 2, "taken over", LEASE_S + 5)
            go.set()
            answers = [future.result() for future in waiting]
        assert [answer.status for answer in answers] == [200] * 3
        assert len({answer.body for answer in answers}) == 1
        assert sum(answer.header(REPLAY) is None for answer in answers) == 1
        assert len(upstream.requests) == 2
        # The one that was cut off by the death is in the books too, as such.
        rows = two.usage(2, key_id=key.id, timeout_s=20)
        assert sorted(row["outcome"] for row in rows) == ["gateway_died", "ok"]
    finally:
        for process in processes:
            process.stop()


def _ended(future: Any, within_s: float) -> bool:
    try:
        future.result(within_s)
    except TimeoutError:
        return False
    return True


def test_without_the_database_only_requests_with_a_key_are_refused(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    url = fresh(own_postgres, "idempotency_away")
    process = Gateway(tmp_path / "gateway", settings(upstream), url)
    process.start()
    try:
        key = process.key()
        assert ask(process, key, "before").status == 200
        own_postgres.stop()
        got = ask(process, key, "during")
        unavailable = (503, "service_unavailable_error", "service_unavailable", None)
        assert got.brief() == unavailable
        assert got.header("retry-after") == "1"
        assert ask(process, key, "before").status == 503
        assert process.call(CHAT, chat(), key=key.secret).status == 200
        assert len(upstream.requests) == 2
        own_postgres.start()
        until(lambda: ask(process, key, "during").status == 200, "healing", 15)
        assert ask(process, key, "before").header(REPLAY) == "true"
        assert len(upstream.requests) == 3
    finally:
        own_postgres.start()
        assert process.stop() == 0
    assert "Traceback (most recent" not in process.log(), process.log()


def test_the_database_goes_while_a_request_runs(
    tmp_path: Path, own_postgres: EmbeddedPostgres, upstream: ScriptedUpstream
) -> None:
    """Its client gets its answer, which cannot be kept; a repeat is worked on anew."""
    url = fresh(own_postgres, "idempotency_goes")
    process = Gateway(tmp_path / "gateway", settings(upstream), url)
    process.start()
    try:
        key, go = process.key(), held(upstream)
        with Client(process.port) as client:
            client.send(asked(key, "n"))
            until(lambda: upstream.requests, "the first")
            own_postgres.stop()
            go.set()
            assert client.answer().status == 200
        own_postgres.start()
        until(lambda: ask(process, key, "n").status == 200, "healing", 20)
        assert len(upstream.requests) == 2
        assert len(process.usage(2, key_id=key.id, timeout_s=20)) == 2
    finally:
        own_postgres.start()
        assert process.stop() == 0


def test_a_drain_keeps_the_answers_of_what_runs(
    tmp_path: Path, session_database_url: str, upstream: ScriptedUpstream
) -> None:
    process = Gateway(tmp_path / "gateway", settings(upstream), session_database_url)
    process.start()
    key, go = process.key(), held(upstream)
    with Client(process.port) as client:
        client.send(asked(key, "drained"))
        until(lambda: upstream.requests, "the first")
        process.popen.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        until(lambda: "draining" in process.log(), "the drain")
        # Its client does not stay to see it.
        client.reset()
    go.set()
    assert process.stop() == 0
    again = Gateway(tmp_path / "again", settings(upstream), session_database_url)
    again.start()
    try:
        until(lambda: again.call("/v1/models", key=key.secret).status == 200, "the key")
        assert ask(again, key, "drained").header(REPLAY) == "true"
        upstream.only()
    finally:
        assert again.stop() == 0


def test_a_request_that_is_cut_off_by_the_end_is_free_at_once(
    tmp_path: Path, session_database_url: str, upstream: ScriptedUpstream
) -> None:
    slow = settings(upstream, drain_s=0.2, idempotency={"lease_s": 300})
    process = Gateway(tmp_path / "gateway", slow, session_database_url)
    process.start()
    key, go = process.key(), held(upstream)
    with Client(process.port) as client:
        client.send(asked(key, "cut"))
        until(lambda: upstream.requests, "the first")
        assert process.stop() == 0
        assert client.answer().status == 503
    go.set()
    again = Gateway(tmp_path / "again", slow, session_database_url)
    again.start()
    try:
        until(lambda: again.call("/v1/models", key=key.secret).status == 200, "the key")
        got = ask(again, key, "cut")
        assert (got.status, got.header(REPLAY)) == (200, None)
    finally:
        assert again.stop() == 0

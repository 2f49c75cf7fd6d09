"""Several workers behave as one gateway."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from forebay.store import KeyStore
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.processes import Gateway
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, chat, request
from tests.support.workers import connected, owner

WORKERS = 3


def settings(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    """A configuration of one model."""
    return {
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
        **more,
    }


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, session_database_url: str, scripted: ScriptedUpstream
) -> Iterator[Gateway]:
    """Three workers that no test kills."""
    config = settings(scripted, listen={"grpc": "127.0.0.1:0"})
    folder = tmp_path_factory.mktemp("fleet")
    process = Gateway(folder, config, session_database_url, workers=WORKERS)
    process.start()
    yield process
    status = process.stop()
    assert status == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


@pytest.fixture
def own(fleet: Gateway, upstream: ScriptedUpstream) -> Gateway:
    """The same, with an engine that answers as it does without a script."""
    return fleet


def served(gateway: Gateway) -> float:
    """Chats answered, as `/metrics` says."""
    return gateway.metric("forebay_requests_total", endpoint="chat", outcome="ok")


def value(answer: Answer, name: str) -> float:
    """A metric without labels in an answer of `/metrics`."""
    found = re.search(rf"^{name} (\S+)$", answer.body.decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_connections_reach_all_and_any_answers_for_all(own: Gateway) -> None:
    key = own.key()
    assert own.facts["pid"] == own.pid
    assert len({own.pid, *own.workers}) == WORKERS + 1
    before = served(own)
    with connected(own) as clients:
        for mine in clients.values():
            answer = mine[0].send(request(CHAT, chat(), key=key.secret)).answer()
            assert answer.status == 200
        ask = request("/metrics")
        answers = [mine[0].send(ask).answer() for mine in clients.values()]
        for answer in answers:
            shown = f'forebay_requests_total{{endpoint="chat",outcome="ok"}} {before + 3:.0f}\n'
            assert shown in answer.body.decode()
            assert value(answer, "forebay_workers") == 3
            assert answer.body.count(b"# TYPE forebay_requests_total ") == 1
        keys = own.with_keys(lambda keys: keys.list())
        active = sum(not record.revoked for record in keys)
        assert value(answers[0], "forebay_keys") == active, "each has the same ones"
    own.wait_idle()
    own.usage(WORKERS, key_id=key.id)


def test_a_revoked_key_stops_at_all_within_a_second(own: Gateway) -> None:
    key = own.key()
    with connected(own) as clients:
        ask = request("/v1/models", key=key.secret)
        for mine in clients.values():
            until(lambda m=mine: m[0].send(ask).answer().status == 200, "known")  # type: ignore[misc]
        own.with_keys(lambda keys: KeyStore.revoke(keys, key.id))
        for mine in clients.values():
            until(
                lambda m=mine: m[0].send(ask).answer().status == 401,  # type: ignore[misc]
                "revoked",
                timeout_s=1.0,
            )


def test_one_that_does_not_tell_its_figures_is_left_out(own: Gateway) -> None:
    key = own.key()
    silences = own.metric("forebay_worker_silences_total")
    with connected(own) as clients:
        for mine in clients.values():
            assert mine[0].send(request(CHAT, chat(), key=key.secret)).answer().status == 200
        total = f'forebay_requests_total{{endpoint="chat",outcome="ok"}} {served(own):.0f}\n'
        silent, *others = clients
        client = clients[others[0]][0]
        os.kill(silent, signal.SIGSTOP)
        try:
            answer = client.send(request("/metrics")).answer()
            assert value(answer, "forebay_workers") == 2
            assert value(answer, "forebay_worker_silences_total") == silences + 1
            assert total in answer.body.decode(), "what it counted stays"
        finally:
            os.kill(silent, signal.SIGCONT)
        until(lambda: own.metric("forebay_workers") == WORKERS, "heard again")
        assert total in own.call("/metrics").body.decode()


def test_grpc_is_served_by_all(own: Gateway) -> None:
    with grpc.insecure_channel(own.facts["grpc"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_each_line_of_the_log_says_whose_it_is(own: Gateway) -> None:
    lines = [json.loads(line) for line in own.log().splitlines()]
    serving = [line for line in lines if line["event"] == "serving"]
    assert sorted(line["worker"] for line in serving if line["logger"] == "forebay") == [0, 1, 2]
    assert {line["logger"] for line in lines if "worker" not in line} == {"forebay.supervisor"}


def test_counters_do_not_go_down_when_a_worker_dies(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    process = Gateway(tmp_path / "gateway", settings(upstream), database_url, workers=2)
    process.start()
    key = process.key()
    for _ in range(20):
        assert process.call(CHAT, chat(), key=key.secret).status == 200
    assert served(process) == 20
    for pid in process.workers:
        os.kill(pid, signal.SIGKILL)
        until(lambda p=pid: p not in process.workers and len(process.workers) == 2, "back")  # type: ignore[misc]
        assert served(process) == 20
    assert process.metric("forebay_worker_restarts_total") == 2
    assert process.metric("forebay_workers") == 2
    assert process.metric("forebay_worker_silences_total") == 0
    assert process.stop() == 0


def test_granian_listens_in_each(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    config = settings(upstream, listen={"server": "granian"}, workers=WORKERS)
    process = Gateway(tmp_path / "gateway", config, database_url)
    process.start()
    try:
        key = process.key()
        with connected(process) as clients:
            for pid, mine in clients.items():
                answer = mine[0].send(request(CHAT, chat(), key=key.secret)).answer()
                assert answer.status == 200
                assert owner(process, mine[0]) == pid
        assert served(process) == WORKERS
    finally:
        assert process.stop() == 0, process.log()


def test_the_command_goes_before_the_file(
    tmp_path: Path, database_url: str, upstream: ScriptedUpstream
) -> None:
    config = settings(upstream, workers=4)
    process = Gateway(tmp_path / "gateway", config, database_url, workers=2)
    process.start()
    assert len(process.workers) == 2
    assert process.stop() == 0
    process.arguments[process.arguments.index("--workers") + 1] = "1"
    process.start()
    assert "workers" not in process.facts, "one process, as ever"
    assert process.metric("forebay_workers") == 1
    assert process.stop() == 0

"""One gateway for all tests of the wire, in front of a simulated and a scripted engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres

from tests.support.databases import create_database
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until

QUICK = {"first_byte": 0.4, "idle": 0.4, "total": 20}
"""Time-outs of the model `quick`, seconds."""


@pytest.fixture(scope="session")
def session_database_url(postgres: EmbeddedPostgres) -> str:
    """URL of a migrated database that the session's gateway has for itself."""
    return create_database(postgres, "gateway")


@pytest.fixture(scope="session")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A simulated engine with a chat and an embedding model."""
    options = ("--model", "sim", "--embedding", "sim-embed", "--decode-rate", "2000")
    engine = Engine(tmp_path_factory.mktemp("engine"), *options)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedUpstream]:
    """The engine that `upstream` resets for each test."""
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def flaky() -> Iterator[ScriptedUpstream]:
    """An engine of its own that tests stop and start."""
    engine = ScriptedUpstream(models=("flaky",))
    engine.start()
    yield engine
    engine.stop()


def config(sim: Engine, scripted: ScriptedUpstream, flaky: ScriptedUpstream) -> dict[str, Any]:
    """The session gateway's configuration."""
    return {
        "upstreams": {
            "raw": {"kind": "sglang", "url": scripted.url},
            "plain": {"kind": "openai_compatible", "url": scripted.url + "/v1"},
            "billed": {
                "kind": "openai_compatible",
                "url": scripted.url,
                "on_disconnect": "drain",
                "drain_s": 2,
                "drain_bytes": 100_000,
            },
            "native": {"kind": "openai", "url": scripted.url, "api_key": "sk-scripted"},
            "sim": {"kind": "sglang", "url": sim.url},
            "flaky": {"kind": "sglang", "url": flaky.url},
            "gone": {"kind": "sglang", "url": f"http://127.0.0.1:{closed_port()}"},
        },
        "models": {
            "tiny": {"targets": [{"upstream": "raw"}], "aliases": ["also-tiny"]},
            "plain": {"targets": [{"upstream": "plain", "model": "tiny"}]},
            "billed": {"targets": [{"upstream": "billed", "model": "tiny"}]},
            "quick": {"targets": [{"upstream": "raw", "model": "tiny"}], "timeouts": QUICK},
            "native": {"targets": [{"upstream": "native", "model": "tiny"}]},
            "sim": {"targets": [{"upstream": "sim"}]},
            "sim-embed": {"targets": [{"upstream": "sim"}]},
            "flaky": {"targets": [{"upstream": "flaky"}]},
            "gone": {"targets": [{"upstream": "gone"}]},
        },
        "limits": {"header_bytes": 16_384},
        "listen": {"grpc": "127.0.0.1:0"},
    }


@pytest.fixture(scope="session")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    session_database_url: str,
    sim: Engine,
    scripted: ScriptedUpstream,
    flaky: ScriptedUpstream,
) -> Iterator[Gateway]:
    """A running gateway. At the end of the session its log must hold no traceback."""
    folder = tmp_path_factory.mktemp("gateway")
    process = Gateway(folder, config(sim, scripted, flaky), session_database_url)
    process.start()
    until(lambda: process.health()["checks"]["upstream:raw"] == "ok", "the upstream")
    yield process
    status = process.stop()
    assert status == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()
    assert "request failed" not in process.log(), process.log()


@pytest.fixture(scope="session")
def key(gateway: Gateway) -> Key:
    """A key without limits."""
    return gateway.key()


@pytest.fixture
def upstream(gateway: Gateway, scripted: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """The scripted engine behind the models tiny, plain, billed and quick, for this test alone."""
    scripted.wait_idle()
    scripted.reset()
    yield scripted
    scripted.wait_idle()
    assert not scripted.failures, scripted.failures


@pytest.fixture(scope="session")
def own_postgres(scratch: Path) -> Iterator[EmbeddedPostgres]:
    """A database server that tests may stop and start as they like."""
    server = EmbeddedPostgres(scratch / "own", durable=False)
    server.start()
    yield server
    server.stop()

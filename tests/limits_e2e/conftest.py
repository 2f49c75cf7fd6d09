"""One gateway with a database of its own, in front of a simulated and a scripted engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres

from tests.support.admin import Admin
from tests.support.databases import create_database
from tests.support.processes import Engine, Gateway
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until

BYTES_PER_TOKEN = 3
"""What the gateway has to learn of the simulated engine: it begins with 4."""
PRICE = {"input": "1", "output": "2"}
"""Dollars for 10^6 tokens: 1,000 and 2,000 nano-dollars a token."""
PLACES = 4
"""Requests that the engine behind `narrow` takes at once."""


@pytest.fixture(scope="session")
def own_sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A simulated engine that answers without delay."""
    options = ("--model", "sim", "--decode-rate", "0", "--prefill-rate", "100000000")
    folder = tmp_path_factory.mktemp("limited-engine")
    engine = Engine(folder, *options, "--bytes-per-token", str(BYTES_PER_TOKEN))
    engine.start()
    yield engine
    assert engine.stop() == 0


@pytest.fixture(scope="session")
def own_engine() -> Iterator[ScriptedUpstream]:
    """The engine that `engine` resets for each test."""
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()


def config(sim: Engine, engine: ScriptedUpstream) -> dict[str, Any]:
    """Every `raw-…` model is the scripted engine: one for each test that limits a model."""
    queue = {"max_waiting": 500, "timeout": 20}
    raw = {"targets": [{"upstream": "raw", "model": "tiny"}]}
    return {
        "upstreams": {
            "sim": {"kind": "sglang", "url": sim.url},
            "raw": {"kind": "sglang", "url": engine.url},
            "narrow": {
                "kind": "sglang",
                "url": engine.url,
                "max_concurrency": PLACES,
                "queue": queue,
            },
        },
        "models": {
            "sim": {"targets": [{"upstream": "sim"}]},
            "learned": {"targets": [{"upstream": "sim", "model": "sim"}]},
            "capped": {"targets": [{"upstream": "sim", "model": "sim"}]},
            "dear": {"targets": [{"upstream": "sim", "model": "sim"}], "price": PRICE},
            "tiny": {"targets": [{"upstream": "raw"}]},
            "priced": {**raw, "price": PRICE},
            "narrow": {"targets": [{"upstream": "narrow", "model": "tiny"}]},
            **{f"raw-{number}": raw for number in range(20)},
        },
    }


@pytest.fixture(scope="session")
def limited(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: EmbeddedPostgres,
    own_sim: Engine,
    own_engine: ScriptedUpstream,
) -> Iterator[Gateway]:
    """The gateway. At the end of the session its log must hold no traceback."""
    database_url = new_database(postgres, "limited")
    folder = tmp_path_factory.mktemp("limited")
    gateway = Gateway(folder, config(own_sim, own_engine), database_url)
    gateway.start()
    until(lambda: gateway.health()["checks"]["upstream:sim"] == "ok", "the engine")
    yield gateway
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()


def new_database(postgres: EmbeddedPostgres, name: str) -> str:
    """URL of a new migrated database."""
    return create_database(postgres, name)


@pytest.fixture(scope="session")
def admin(limited: Gateway) -> Admin:
    """A client of the gateway's admin API."""
    return Admin(limited)


@pytest.fixture
def engine(limited: Gateway, own_engine: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """The scripted engine, for this test alone."""
    own_engine.wait_idle()
    own_engine.reset()
    yield own_engine
    own_engine.wait_idle()
    limited.wait_idle()
    assert not own_engine.failures, own_engine.failures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a gateway of the test's own may live."""
    return tmp_path / "gateway"

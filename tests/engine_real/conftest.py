"""Two engines and a gateway in front of them, for the whole session.

Only run when asked for: `make engine-test` names the engine's environment in FOREBAY_ENGINE_PYTHON.
ENGINE=gpu runs them on a GPU, MODEL=FOLDER with another model than the tiny one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from forebay.store import EmbeddedPostgres

from tests.engine_real.asking import Door, Grpc, Http
from tests.engine_real.engines import RealEngine, Setup, make_model
from tests.support.admin import Admin
from tests.support.databases import create_database
from tests.support.processes import Gateway, Key
from tests.support.wait import until

HERE = Path(__file__).parent
ENGINES = ("cpu", "gpu")


def why_not() -> str | None:
    """Why these tests do not run here."""
    python = os.environ.get("FOREBAY_ENGINE_PYTHON")
    if not python:
        return "needs a real SGLang: make engine-test"
    if not Path(python).exists():
        return f"FOREBAY_ENGINE_PYTHON: there is no {python}"
    kind = os.environ.get("ENGINE", "cpu")
    if kind not in ENGINES:
        return f"ENGINE: expected one of {', '.join(ENGINES)}, got {kind!r}"
    if kind == "gpu" and shutil.which("nvidia-smi") is None:
        return "ENGINE=gpu: there is no NVIDIA GPU here (no nvidia-smi)"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them where they cannot run."""
    reason = why_not()
    if reason is not None:
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def engine_setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """How engines are run, with a model that was just made."""
    python = Path(os.environ["FOREBAY_ENGINE_PYTHON"])
    gpu = os.environ.get("ENGINE", "cpu") == "gpu"
    given = os.environ.get("MODEL") or None
    model = given or make_model(python, tmp_path_factory.mktemp("model"))
    return Setup(python, model, gpu, known=given is None)


@pytest.fixture
def known(engine_setup: Setup) -> None:
    """The test needs the tiny model's answers."""
    if not engine_setup.known:
        pytest.skip("what MODEL answers is not known")


class Pair:
    """Two engines with the same model. b is the one that tests end."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.a = RealEngine(folder / "a", setup)
        self.b = RealEngine(folder / "b", setup)

    def revive(self) -> None:
        """Start what does not run; both at once, as starting takes a core each."""
        missing = [engine for engine in (self.a, self.b) if not engine.alive()]
        for engine in missing:
            engine.launch()
        for engine in missing:
            engine.wait_ready()

    def stop(self) -> None:
        """End both."""
        for engine in (self.a, self.b):
            engine.stop()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, engine_setup: Setup) -> Iterator[Pair]:
    """The two engines, started."""
    made = Pair(tmp_path_factory.mktemp("engines"), engine_setup)
    try:
        made.revive()
        yield made
    finally:
        made.stop()


@pytest.fixture
def both(pair: Pair) -> Iterator[Pair]:
    """Both engines, running, at full speed and idle before and after."""
    pair.revive()
    yield pair
    for engine in (pair.a, pair.b):
        if engine.alive() and engine.status("/ready") == 200:
            engine.slow_down(None)
            until(lambda e=engine: e.running() == 0, "idle", 30)  # type: ignore[misc]


@pytest.fixture(scope="session")
def house(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres, pair: Pair
) -> Iterator[Gateway]:
    """A gateway in front of both. At the end its log must hold no traceback."""
    config = {
        "upstreams": {
            name: {"kind": "sglang", "url": engine.url, "slow_start": 0}
            for name, engine in (("a", pair.a), ("b", pair.b))
        },
        "models": {
            "tiny": {"targets": [{"upstream": "a"}, {"upstream": "b"}], "policy": "least_load"},
            "on-a": {"targets": [{"upstream": "a", "model": "tiny"}], "policy": "least_load"},
            "on-b": {
                "targets": [
                    {"upstream": "b", "model": "tiny"},
                    {"upstream": "a", "model": "tiny", "tier": 1},
                ],
                "resume": True,
            },
        },
        "listen": {"grpc": "127.0.0.1:0"},
    }
    folder = tmp_path_factory.mktemp("gateway")
    process = Gateway(folder, config, create_database(postgres, "engine_real"))
    process.start()
    try:
        wait_open(process)
        yield process
    finally:
        status = process.stop()
    assert status == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


def wait_open(gateway: Gateway, *names: str) -> None:
    """Wait until upstreams get requests; without names, all."""

    def found() -> bool:
        checks = gateway.health()["checks"]
        wanted = names or [name[9:] for name in checks if name.startswith("upstream:")]
        return bool(wanted) and all(checks.get(f"upstream:{name}") == "ok" for name in wanted)

    until(found, "the upstreams", 60, every_s=0.1)


@pytest.fixture(scope="session")
def house_key(house: Gateway) -> Key:
    """A key without limits."""
    return house.key()


@pytest.fixture(scope="session")
def admin(house: Gateway) -> Admin:
    """The gateway's admin API."""
    return Admin(house)


@pytest.fixture(scope="session")
def doors(house: Gateway, house_key: Key) -> Iterator[dict[str, Door]]:
    """The ways in, by name."""
    grpc = Grpc(house.grpc, house_key.secret)
    yield {"http": Http(house.port, house_key.secret), "grpc": grpc}
    grpc.close()


@pytest.fixture(params=["http", "grpc"])
def door(request: pytest.FixtureRequest, doors: dict[str, Door]) -> Door:
    """Each way in."""
    found: Door = doors[request.param]
    return found

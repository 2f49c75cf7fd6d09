"""One Valkey a session for tests that leave it alone, and one of their own for the others."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forebay._core import Core

from tests.support.valkey import SlowWay, Valkey


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server that no test disturbs."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server to be killed, paused and slowed."""
    server = Valkey(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def slow_way(own_valkey: Valkey) -> Iterator[SlowWay]:
    """A way to `own_valkey` that can be slow."""
    way = SlowWay(own_valkey.port)
    way.start()
    yield way
    way.stop()


@pytest.fixture
def cores() -> Iterator[list[Core]]:
    """Three cores, as three nodes have them."""
    made = [Core() for _ in range(3)]
    yield made
    for core in made:
        core.close()

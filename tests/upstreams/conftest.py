"""The house that all conformance tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from forebay.store import EmbeddedPostgres

    from tests.upstreams.house import House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[House]:
    """Every kind behind one running gateway."""
    from tests.limits_e2e.conftest import new_database
    from tests.upstreams.house import build

    folder = tmp_path_factory.mktemp("conformance")
    with build(folder, new_database(postgres, "conformance")) as made:
        yield made

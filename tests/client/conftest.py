"""Clients of the session's gateway."""

from collections.abc import Iterator

import pytest
from forebay.client import Client

from tests.support.processes import Gateway, Key


@pytest.fixture
def client(gateway: Gateway, key: Key) -> Iterator[Client]:
    """A client for threads."""
    with Client(gateway.grpc, api_key=key.secret) as opened:
        yield opened

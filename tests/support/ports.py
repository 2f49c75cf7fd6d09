"""Ports that nothing listens on, and that nobody is given by chance."""

from __future__ import annotations

import random
import socket

_RANGE = range(12_000, 32_000)
"""Below those that Linux gives whoever leaves the choice to it (`ip_local_port_range`)."""
_given: set[int] = set()


def closed_ports(count: int) -> int:
    """The first of so many ports of 127.0.0.1 in a row; each is given once."""
    for _ in range(1000):
        first = random.randrange(_RANGE.start, _RANGE.stop - count)
        ports = range(first, first + count)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return first
    raise OSError("no ports")


def closed_port() -> int:
    """One."""
    return closed_ports(1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

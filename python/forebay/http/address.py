"""Addresses to listen on: found, reserved, and shown to clients of this machine."""

import socket

from forebay.config import Address


class AddressInUse(OSError):
    """The address cannot be listened on; the message says which and why."""


def local_url(address: Address) -> str:
    """Where a client on this machine reaches the address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"http://{Address(host, address.port)}"


def resolve(address: Address) -> Address:
    """The address with its host as an IP address. Raises: AddressInUse."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: {error.strerror or error}") from None
    host, port = found[0][4][:2]
    return Address(str(host), int(port))


def reserve(address: Address) -> socket.socket:
    """A bound socket that holds the address for those of our processes that share it.

    They listen with SO_REUSEPORT, so that a second gateway would silently get a part of the
    connections: the exclusive bind here tells. As long as the socket is open nobody else gets the
    address that way; it does not listen, so no connection comes to it.

    Raises: AddressInUse.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            name = probe.getsockname()
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(name)
        # It was for connections of an earlier gateway that linger. Linux lets two sockets with it
        # have one address until one of them listens, which here none does.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: {error.strerror or error}") from None
    return held


def bound_to(held: socket.socket) -> Address:
    """The address of a bound socket."""
    host, port = held.getsockname()[:2]
    return Address(host, port)

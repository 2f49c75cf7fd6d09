"""What a service manager is told: that the gateway serves, and that it ends."""

import os
import socket

import structlog

log = structlog.get_logger("forebay")


def notify(state: str, status: str) -> bool:
    """Tell the manager that started this process, if it asked to be told.

    state: such as ``READY=1`` or ``STOPPING=1``. status: for people, one line.
    Returns whether there is one. Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    # Abstract sockets begin with a zero byte, which an environment cannot hold.
    if not address.startswith(("/", "@")):
        return False
    name = "\0" + address[1:] if address.startswith("@") else address
    message = f"{state}\nSTATUS={status.replace(chr(10), ' ')}\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(name)
            sender.send(message.encode())
    except OSError as error:
        log.warning("the service manager cannot be told", state=state, cause=str(error))
        return False
    return True

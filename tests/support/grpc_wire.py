"""HTTP/2 as no gRPC client would speak it."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

TIMEOUT_S = 10.0

Fields = Sequence[tuple[bytes, bytes]]


def frame(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message behind gRPC's prefix. length: as told, which may be a lie."""
    told = len(message) if length is None else length
    return bytes([compressed]) + told.to_bytes(4, "big") + message


@dataclass
class Heard:
    """What came on a stream until it, or the connection, ended."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""
    reset: bool = False
    closed: bool = False

    @property
    def status(self) -> int:
        """gRPC's status."""
        return int(self.fields[b"grpc-status"])


def exchange(
    address: str,
    path: bytes,
    body: bytes,
    *,
    fields: Fields = (),
    content_type: bytes = b"application/grpc",
    method: bytes = b"POST",
) -> Heard:
    """Send one request with exactly these bytes, and end it; what comes back."""
    host, _, port = address.rpartition(":")
    config = h2.config.H2Configuration(
        header_encoding=None,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    head = [
        (b":method", method),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"gateway.test"),
        (b"te", b"trailers"),
        (b"content-type", content_type),
        *fields,
    ]
    connection.send_headers(1, head)
    heard = Heard()
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as opened:
        _send(connection, opened, body)
        while not (heard.closed or heard.reset or _ended(connection, opened, heard)):
            pass
    return heard


def _send(connection: h2.connection.H2Connection, opened: socket.socket, body: bytes) -> None:
    room = min(len(body), connection.local_flow_control_window(1))
    size = connection.max_outbound_frame_size
    for start in range(0, max(room, 1), size):
        part = body[start : min(start + size, room)]
        connection.send_data(1, part, end_stream=start + len(part) == len(body))
    opened.sendall(connection.data_to_send())


def _ended(connection: h2.connection.H2Connection, opened: socket.socket, heard: Heard) -> bool:
    data = opened.recv(65_536)
    if not data:
        heard.closed = True
        return True
    for event in connection.receive_data(data):
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            heard.fields.update((bytes(k), bytes(v)) for k, v in event.headers or ())
        elif isinstance(event, h2.events.DataReceived):
            heard.data += event.data or b""
        elif isinstance(event, h2.events.StreamReset):
            heard.reset = True
        elif isinstance(event, h2.events.StreamEnded):
            return True
        elif isinstance(event, h2.events.ConnectionTerminated):
            heard.closed = True
    opened.sendall(connection.data_to_send())
    return False

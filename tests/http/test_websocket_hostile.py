"""Frames that break the protocol, and clients that misuse it: closed with a code that says why."""

import json
import struct
from collections.abc import Iterator

import pytest

from tests.support.memory import resident_bytes
from tests.support.processes import Gateway, Key
from tests.support.sockets import RawSocket, frame, open_socket
from tests.support.wire import chat

BODY = json.dumps(chat("sim", max_tokens=1)).encode()
LIMIT = 10 * 1024 * 1024


@pytest.fixture(autouse=True)
def still_serves(gateway: Gateway, key: Key) -> Iterator[None]:
    """After each test the gateway answers as before, and nothing is left in flight."""
    yield
    with open_socket(gateway, key.secret) as client:
        client.say(BODY.decode())
        assert client.answer()[-1] == "[DONE]"
    gateway.wait_idle()


HOSTILE = {
    "unmasked": (frame(BODY, masked=False), 1002),
    "reserved bit 1": (frame(BODY, bits=4), 1002),
    "reserved bit 2": (frame(BODY, bits=2), 1002),
    "reserved bit 3": (frame(BODY, bits=1), 1002),
    "reserved opcode": (frame(BODY, opcode=3), 1002),
    "reserved control": (frame(b"", opcode=11), 1002),
    "fragmented control": (frame(b"", opcode=9, final=False), 1002),
    "long ping": (frame(b"x" * 126, opcode=9), 1002),
    "continuation of nothing": (frame(BODY, opcode=0), 1002),
    "fragment in a fragment": (frame(b"{", final=False) + frame(b"}", final=False), 1002),
    "bad UTF-8": (frame(b'{"model":"\xff\xfe"}'), 1007),
    "bad UTF-8 over fragments": (frame(b"\xc3", final=False) + frame(b"(", opcode=0), 1007),
    "huge length": (b"\x81\xff" + struct.pack("!Q", 1 << 62) + bytes(4), 1009),
    "length over the limit": (b"\x81\xff" + struct.pack("!Q", LIMIT + 1) + bytes(4), 1009),
    "negative length": (b"\x81\xff" + b"\xff" * 8 + bytes(4), 1009),
    "close of one byte": (frame(b"\x03", opcode=8), 1002),
    "close with bad UTF-8": (frame(b"\x03\xe8\xff", opcode=8), 1007),
    "close with a reserved code": (frame((1005).to_bytes(2, "big"), opcode=8), 1002),
    "binary": (frame(BODY, opcode=2), 1003),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_frame_is_answered_with_its_code(gateway: Gateway, key: Key, name: str) -> None:
    data, code = HOSTILE[name]
    client = RawSocket(gateway.port, key.secret)
    client.send(data)
    assert client.close_code() == code
    client.close()


def test_fragments_without_an_end_are_bounded(gateway: Gateway, key: Key) -> None:
    client = RawSocket(gateway.port, key.secret)
    piece = b"x" * 65_536
    before = resident_bytes(gateway.pid)
    try:
        client.send(frame(piece, final=False))
        for _ in range(4 * LIMIT // len(piece)):
            client.send(frame(piece, opcode=0, final=False))
    except OSError:
        pass
    assert client.close_code() in (1009, None)
    assert resident_bytes(gateway.pid) - before < 4 * LIMIT
    client.close()


def test_fragments_and_pings_between_them_are_one_request(gateway: Gateway, key: Key) -> None:
    client = RawSocket(gateway.port, key.secret)
    client.send(frame(BODY[:5], final=False) + frame(b"hey", opcode=9))
    pong = client.frame()
    assert (pong.opcode, pong.payload) == (10, b"hey")
    for byte in BODY[5:-1]:
        client.send(frame(bytes([byte]), opcode=0, final=False))
    client.send(frame(BODY[-1:], opcode=0))
    while (got := client.frame()).payload != b"[DONE]":
        assert got.opcode == 1
    client.close()


def test_a_flood_of_pings_is_answered_and_holds_nothing(gateway: Gateway, key: Key) -> None:
    client = RawSocket(gateway.port, key.secret)
    before = resident_bytes(gateway.pid)
    for _ in range(200):
        client.send(frame(b"p", opcode=9) * 50)
    client.send(frame(BODY))
    while client.frame().payload != b"[DONE]":
        pass
    assert resident_bytes(gateway.pid) - before < 8 << 20
    client.close()


def test_bytes_before_the_handshake_is_done_are_kept(gateway: Gateway, key: Key) -> None:
    # In one write with the request's head, as an eager client sends them.
    client = RawSocket(gateway.port, key.secret, eager=frame(BODY))
    while client.frame().payload != b"[DONE]":
        pass
    client.close()

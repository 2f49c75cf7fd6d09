"""Hostile inputs over every door: nothing crashes, hangs or leaks, and nobody else notices."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]
import pytest

from tests.doors import hostile_grpc, hostile_http, hostile_ws
from tests.doors.attack import BOUND_S, Attack, leaks, well_told
from tests.doors.conftest import Stage
from tests.support.memory import anonymous_bytes
from tests.support.processes import Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until
from tests.support.wire import CHAT, chat

ATTACKS: list[Attack] = [
    *hostile_http.bodies(hostile_http.BODIES, seed=1, count=12),
    *hostile_http.heads(),
    *hostile_http.multipart(),
    *hostile_ws.attacks(),
    *hostile_grpc.attacks(),
]
GROWTH_BYTES = 64 << 20
"""What may stay allocated after all of it: pools and caches, not what attacks sent."""


@pytest.fixture(scope="module")
def victim(stage: Stage) -> Iterator[Key]:
    """A key for all attacks. After them the gateway has what it had before."""
    key = stage.admin.make()
    stage.gateway.wait_idle()
    process = psutil.Process(stage.gateway.pid)
    for _ in range(3):
        assert stage.gateway.call(CHAT, chat(), key=key.secret).status == 200
    before, files = anonymous_bytes(stage.gateway.pid), process.num_fds()
    yield key
    stage.gateway.wait_idle()
    until(lambda: process.num_fds() <= files + 10, "connections are closed")
    assert anonymous_bytes(stage.gateway.pid) - before < GROWTH_BYTES


def test_there_are_enough() -> None:
    assert len(ATTACKS) >= 200
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_hostile(stage: Stage, engine: ScriptedUpstream, victim: Key, attack: Attack) -> None:
    began = time.monotonic()
    seen = attack.send(stage, victim.secret)
    assert time.monotonic() - began < BOUND_S
    assert set(seen.statuses) <= attack.statuses, seen
    assert leaks(stage, victim.secret, seen.data) == [], seen
    assert b"\r\nx-injected" not in seen.data, seen
    assert b"'x-injected'" not in seen.data, "a header or a trailer"
    assert not seen.data.startswith(b"HTTP/") or well_told(seen.data), seen
    assert stage.gateway.popen is not None
    assert stage.gateway.popen.poll() is None, "the gateway is dead"
    assert stage.gateway.call("/readyz").status == 200
    assert stage.gateway.call(CHAT, chat(), key=victim.secret).status == 200


@pytest.mark.parametrize("scheme", ["http", "https", "ws"])
def test_addresses_in_a_body_are_not_followed(
    stage: Stage, engine: ScriptedUpstream, victim: Key, scheme: str
) -> None:
    """Images are for the engine to fetch or not; the gateway passes the text on."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        url = f"{scheme}://127.0.0.1:{bait.getsockname()[1]}/latest/meta-data"
        image = {"type": "image_url", "image_url": {"url": url}}
        body = {"model": "tiny", "messages": [{"role": "user", "content": [image]}]}
        assert stage.gateway.call(CHAT, body, key=victim.secret).status == 200
        assert engine.only().json()["messages"] == json.loads(json.dumps(body["messages"]))
        bait.settimeout(0.1)
        with pytest.raises(TimeoutError):
            bait.accept()

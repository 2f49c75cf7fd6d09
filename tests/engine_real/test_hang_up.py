"""Clients that leave end the generation, as the engine's own loads show; and who reads these."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_real.asking import Door, Http
from tests.engine_real.conftest import Pair
from tests.engine_real.engines import RealEngine
from tests.engine_real.scripts import LOOP, NUMBERS
from tests.support.admin import Admin
from tests.support.processes import Gateway, Key
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request

STEP_S = 0.1
"""Of the slowed engine. An answer of `NUMBERS` would take 12 s."""
SOON_S = 2.0
"""By itself SGLang notices a hang-up of a request without a stream after 3.1 to 3.4 s."""

Record = Callable[[str, object], None]


def stops(engine: RealEngine) -> float:
    """Seconds until the engine has nothing to do."""
    began = time.monotonic()
    until(lambda: engine.running() == 0, "generation stops", 20, every_s=0.02)
    return time.monotonic() - began


@pytest.fixture
def slow(both: Pair) -> RealEngine:
    """The engine a, slowed down."""
    both.a.slow_down(STEP_S)
    return both.a


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("legacy", [False, True], ids=["chat", "completion"])
def test_leaving_a_stream_stops_the_engine(
    slow: RealEngine, house: Gateway, door: Door, legacy: bool, record_property: Record
) -> None:
    prompt = NUMBERS.texts[0] if legacy else f"/{NUMBERS.name}"
    fields: dict[str, Any] = {"legacy": legacy, "temperature": 0, "max_tokens": NUMBERS.tokens}
    with door.stream("on-a", prompt, **fields) as stream:
        said = stream.read(5)
        until(lambda: slow.running() == 1, "it runs", 5)
        stream.leave()
        took = stops(slow)
    assert took < SOON_S
    record_property(f"stream left, {door}: engine idle after, s", round(took, 2))
    row = house.usage(1, request_id=said.request_id)[0]
    assert (row["outcome"], row["upstream"]) == ("client_closed", "a")
    assert 5 <= row["completion_tokens"] < 60, "what was delivered, and not the whole answer"


@pytest.mark.usefixtures("known")
def test_leaving_before_a_whole_answer_stops_the_engine(
    slow: RealEngine, house: Gateway, house_key: Key, record_property: Record
) -> None:
    body = chat("on-a", f"/{NUMBERS.name}", temperature=0)
    with Client(house.port) as client:
        client.send(request(CHAT, body, key=house_key.secret, headers=[("x-request-id", "left-1")]))
        until(lambda: slow.running() == 1, "it runs", 10)
        time.sleep(0.3)
    took = stops(slow)
    assert took < SOON_S
    record_property("whole answer left, http: engine idle after, s", round(took, 2))
    assert house.usage(1, request_id="left-1")[0]["outcome"] == "client_closed"


def test_a_deadline_stops_the_engine(slow: RealEngine, doors: dict[str, Door]) -> None:
    """gRPC's: the client is not there any more when it has passed."""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 300, "timeout": 3.0}
    said = doors["grpc"].whole("on-a", f"/{LOOP.name}", **fields)
    assert said.text == ""
    assert stops(slow) < SOON_S


def test_the_gateway_reads_the_engines_load(
    slow: RealEngine, house: Gateway, admin: Admin, doors: dict[str, Door]
) -> None:
    """With what the engine does for others, of whom the gateway knows nothing."""
    others = [
        threading.Thread(
            target=slow.call, args=(CHAT, chat("tiny", f"/{LOOP.name}", max_tokens=120))
        )
        for _ in range(3)
    ]
    for other in others:
        other.start()

    def load() -> int:
        found = admin.send("GET", "/upstreams/a")["load"]
        return int(found["running"]) if found is not None else 0

    until(lambda: slow.running() == 3, "they run", 20)
    until(lambda: load() == 3, "the gateway knows", 10)
    status = admin.send("GET", "/upstreams/a")
    assert status["in_flight"] == 0
    assert status["load"]["tokens"] > 0
    # Least load: all of the gateway's requests go to the other one.
    http = doors["http"]
    assert isinstance(http, Http)
    chosen = set()
    for _ in range(4):
        said = http.whole("tiny", "hi", max_tokens=2)
        chosen.add(house.usage(1, request_id=said.request_id)[0]["upstream"])
    assert chosen == {"b"}
    for other in others:
        other.join()
    until(lambda: load() == 0, "the gateway knows that they ended", 10)

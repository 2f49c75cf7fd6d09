"""Tokens reach the client when the engine has sent them, not later."""

import statistics
import threading
import time

import pytest

from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish
from tests.support.wire import CHAT, Client, chat, request

PROMPT_S = 0.020
"""What a token may take through the gateway, in the median, on a busy machine."""


@pytest.mark.parametrize("model", ["tiny", "plain"])
def test_each_event_arrives_before_the_next_is_sent(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, model: str
) -> None:
    seen = [threading.Event() for _ in range(20)]
    sent_at: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for index, event in enumerate(seen):
            sent_at.append(time.monotonic())
            connection.event(delta(f"t{index}"))
            assert event.wait(5), f"event {index} was held back"
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    delays = []
    with Client(gateway.port) as client:
        client.send(request(CHAT, chat(model, stream=True), key=key.secret))
        answer = client.head()
        body = client.body(answer)
        for index, event in enumerate(seen):
            at, data = next(body)
            assert f'"t{index}"'.encode() in data
            delays.append(at - sent_at[index])
            event.set()
        rest = b"".join(data for _, data in body)
    assert answer.complete
    assert rest.endswith(b"data: [DONE]\n\n")
    assert statistics.median(delays) < PROMPT_S, delays


def test_the_first_token_is_not_held_back(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    gone_on = threading.Event()
    sent_at: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        sent_at.append(time.monotonic())
        connection.event(delta("first"))
        assert gone_on.wait(5), "the first token was held back"
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    delays = []
    for _ in range(11):
        gone_on.clear()
        with Client(gateway.port) as client:
            client.send(request(CHAT, chat(stream=True), key=key.secret))
            answer = client.head()
            body = client.body(answer)
            at, data = next(body)
            assert b'"first"' in data
            delays.append(at - sent_at[-1])
            gone_on.set()
            assert b"".join(part for _, part in body).endswith(b"data: [DONE]\n\n")
        upstream.wait_idle()
    assert statistics.median(delays) < PROMPT_S, delays


def test_half_an_event_is_not_lost_nor_sent_early(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    """A burst that ends inside an event: what is whole goes out, the rest follows later."""
    go_on = threading.Event()
    whole = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"a"}}]}' + b"\n\n"

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.chunk(whole * 3 + whole[:20])
        assert go_on.wait(5)
        connection.chunk(whole[20:])
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with Client(gateway.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        answer = client.head()
        body = client.body(answer)
        got = b""
        while len(got) < len(whole) * 3:
            got += next(body)[1]
        assert got == whole * 3
        go_on.set()
        rest = b"".join(data for _, data in body)
    assert rest.startswith(whole)
    assert rest.endswith(b"data: [DONE]\n\n")

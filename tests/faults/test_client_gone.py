"""Clients that leave, or stop reading: the engine is stopped, the rest is booked, nobody waits."""

import statistics
import threading
import time

import pytest

from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request

CANCEL_S = 0.100
"""In the median; single tries may hit a moment when the machine did something else."""
SLOW_S = 1.0


@pytest.mark.parametrize("model", ["tiny", "plain"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_gone_before_the_first_byte(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, model: str, stream: bool, reset: bool
) -> None:
    noticed: list[float] = []
    upstream.script = lambda c, _: noticed.append(c.hung_up())
    delays = []
    for attempt in range(5):
        name = f"gone-{model}-{stream}-{reset}-{attempt}"
        client = Client(gateway.port)
        headers = [("x-request-id", name)]
        body = chat(model, stream=stream)
        client.send(request(CHAT, body, key=key.secret, headers=headers))
        until(lambda: upstream.active == 1, "the request arrives")
        time.sleep(0.06)  # later than a gateway may take to begin to watch the client
        left = time.monotonic()
        client.reset() if reset else client.socket.close()
        upstream.wait_idle()
        delays.append(noticed[-1] - left)
    assert statistics.median(delays) < CANCEL_S, delays
    assert max(delays) < SLOW_S, delays
    gateway.wait_idle()
    row = gateway.usage(1, request_id=name)[0]
    assert (row["outcome"], row["status"], row["error_kind"]) == (
        "client_closed",
        499,
        "client_closed",
    )
    assert row["completion_tokens"] == 0
    if model == "tiny":
        rids = {received.json()["rid"] for received in upstream.requests}
        assert len(rids) == 5
        # A set, not a count: an earlier test's may still come in, and a try on a kept connection
        # that dies just then is made twice, which is harmless.
        until(lambda: {body["rid"] for _, body in upstream.aborts} >= rids, "the engine is told")


@pytest.mark.parametrize("reset", [False, True])
def test_gone_in_the_middle_of_a_stream(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, reset: bool
) -> None:
    """Booked are the tokens that the engine had counted when the client left."""
    noticed: list[float] = []

    def script(connection: Connection, received: Received) -> None:
        assert received.json()["stream_options"]["continuous_usage_stats"] is True
        connection.begin()
        for count in range(1, 8):
            connection.event(delta("a", usage=usage(11, count)))
        noticed.append(connection.hung_up())

    upstream.script = script
    delays = []
    for attempt in range(5):
        name = f"mid-{reset}-{attempt}"
        client = Client(gateway.port)
        headers = [("x-request-id", name)]
        client.send(request(CHAT, chat(stream=True), key=key.secret, headers=headers))
        answer, got = client.head(), b""
        for _, data in client.body(answer):
            got += data
            if got.count(b"data: ") == 7:
                break
        assert b"usage" not in got
        time.sleep(0.06)
        left = time.monotonic()
        client.reset() if reset else client.socket.close()
        upstream.wait_idle()
        delays.append(noticed[-1] - left)
    assert statistics.median(delays) < CANCEL_S, delays
    assert max(delays) < SLOW_S, delays
    gateway.wait_idle()
    row = gateway.usage(1, request_id=name)[0]
    assert (row["outcome"], row["error_kind"]) == ("client_closed", "client_closed")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (11, 7)
    assert row["source"] == "counted"
    rids = {received.json()["rid"] for received in upstream.requests}
    assert len(rids) == 5
    until(lambda: {body["rid"] for _, body in upstream.aborts} >= rids, "the engine is told")


@pytest.mark.parametrize("stream", [False, True])
def test_a_real_engines_work_ends_too(
    gateway: Gateway, sim: Engine, key: Key, stream: bool
) -> None:
    """The simulator notices a hang-up on unary requests after 3 s only, as SGLang does."""
    client = Client(gateway.port)
    name = f"sim-gone-{stream}"
    body = chat("sim", max_tokens=20_000, ignore_eos=True, stream=stream, user=name)
    headers = [("x-request-id", name)]
    client.send(request(CHAT, body, key=key.secret, headers=headers))

    def mine() -> str:
        found = [r for r in sim.requests() if name in r["body"]]
        return found[0]["outcome"] if found else ""

    until(lambda: mine() == "running", "it runs")
    time.sleep(0.06)
    client.socket.close()
    until(lambda: mine() in ("abort", "disconnected"), "it is stopped", 1)
    row = gateway.usage(1, request_id=name)[0]
    assert row["outcome"] == "client_closed"
    assert row["completion_tokens"] < 20_000


def test_many_clients_leave_at_once(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(concurrency=50)

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.hung_up()

    upstream.script = script
    clients = [Client(gateway.port) for _ in range(50)]
    for client in clients:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
    for client in clients:
        assert client.head().status == 200
    for client in clients:
        client.socket.close()
    upstream.wait_idle()
    gateway.wait_idle()
    rows = gateway.usage(50, key_id=key.id)
    assert {row["outcome"] for row in rows} == {"client_closed"}
    upstream.reset()
    assert gateway.call(CHAT, chat(), key=key.secret).status == 200


def test_a_slow_reader_slows_its_engine_and_nothing_else(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    """The engine's writes block, the gateway's memory does not grow, and all arrives in the end."""
    sent = [0]
    stop = threading.Event()
    event = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 30_000)
    event += b"\n\n"

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        while not stop.is_set() and sent[0] < 256 << 20:
            connection.chunk(event)
            sent[0] += len(event)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    before = gateway.rss_bytes()
    with Client(gateway.port, receive_buffer=32_768) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        answer = client.head()

        def stands_still() -> bool:
            seen = sent[0]
            time.sleep(0.3)
            return seen > 0 and sent[0] == seen

        until(stands_still, "the engine's writes block")
        assert sent[0] < 64 << 20, "only the sockets' buffers may hold it"
        assert gateway.rss_bytes() - before < 24 << 20
        started = time.monotonic()
        assert gateway.call("/v1/models", key=key.secret).status == 200
        assert time.monotonic() - started < SLOW_S
        held = sent[0]
        body, size, tail = client.body(answer), 0, b""
        for _, data in body:
            size += len(data)
            tail = (tail + data)[-100:]
            if sent[0] > held + 4 * len(event):
                stop.set()
        assert answer.complete
    assert tail.endswith(b"data: [DONE]\n\n")
    assert size > sent[0] > held
    assert gateway.rss_bytes() - before < 24 << 20


def test_a_slow_reader_that_leaves(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    event = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 30_000)

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        while True:
            connection.chunk(event + b"\n\n")

    upstream.script = script
    client = Client(gateway.port, receive_buffer=32_768)
    client.send(request(CHAT, chat(stream=True), key=key.secret))
    client.head()
    time.sleep(0.3)
    left = time.monotonic()
    client.socket.close()
    upstream.wait_idle()
    assert time.monotonic() - left < SLOW_S
    gateway.wait_idle()

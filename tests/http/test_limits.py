"""Limits at the wire: exact counts, tokens reserved and settled, permits returned."""

import threading
import time
from typing import Any

import pytest

from tests.support.processes import Gateway, Key
from tests.support.upstream import (
    Connection,
    Received,
    ScriptedUpstream,
    answer,
    delta,
    finish,
    usage,
)
from tests.support.wait import until
from tests.support.wire import CHAT, COMPLETIONS, Answer, Client, chat, request

PROMPT = list(range(1, 11))
"""Ten token ids: a prompt whose size needs no estimate."""


def complete(gateway: Gateway, key: Key, max_tokens: int = 20, **fields: Any) -> Answer:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": max_tokens, **fields}
    return gateway.call(COMPLETIONS, body, key=key.secret)


def remaining(got: Answer) -> int:
    return int(got.header("x-ratelimit-remaining-tokens") or "")


def test_a_burst_of_requests_is_exact(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=6, rpm_burst=5)  # one more every 10 s
    statuses = [gateway.call(CHAT, chat(), key=key.secret).status for _ in range(9)]
    assert statuses == [200] * 5 + [429] * 4
    assert len(upstream.requests) == 5


def test_a_burst_is_exact_for_clients_at_once(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=6, rpm_burst=10)
    statuses: list[int] = []

    def work() -> None:
        for _ in range(5):
            statuses.append(gateway.call(CHAT, chat(), key=key.secret).status)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 10 + [429] * 30
    assert len(upstream.requests) == 10


def test_a_refused_request_costs_nothing(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=6, rpm_burst=2)
    for _ in range(5):
        assert gateway.call(CHAT, b"{", key=key.secret).status == 400
        assert gateway.call(CHAT, chat("nope"), key=key.secret).status == 404
    statuses = [gateway.call(CHAT, chat(), key=key.secret).status for _ in range(3)]
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize(("prompt", "completion"), [(10, 5), (10, 0), (40, 100)])
def test_tokens_are_reserved_then_settled(
    gateway: Gateway, upstream: ScriptedUpstream, prompt: int, completion: int
) -> None:
    key = gateway.key(tpm=60, tpm_burst=10_000)  # a token a second comes back
    upstream.script = lambda c, _: c.json(answer(prompt, completion))
    first = complete(gateway, key)
    assert remaining(first) == 10_000 - 30  # ten of prompt, twenty of answer at most
    gateway.wait_idle()
    second = complete(gateway, key)
    settled = 10_000 - (prompt + completion) - 30
    assert settled <= remaining(second) <= settled + 5
    row = gateway.usage_of(first)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (prompt, completion)
    assert row["source"] == "reported"


def test_a_stream_is_settled_too(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for _token in range(3):
            connection.event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        connection.event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
        connection.event({"choices": [], "usage": usage(10, 3)})
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    key = gateway.key(tpm=60, tpm_burst=10_000)
    first = complete(gateway, key, stream=True)
    assert remaining(first) == 9_970
    assert b"usage" not in first.body
    gateway.wait_idle()
    settled = 10_000 - 13 - 30
    assert settled <= remaining(complete(gateway, key, stream=True)) <= settled + 5


def test_nothing_is_charged_for_what_was_never_sent(gateway: Gateway) -> None:
    key = gateway.key(tpm=60, tpm_burst=10_000)
    body = {"model": "gone", "prompt": PROMPT, "max_tokens": 500}
    for _ in range(3):
        got = gateway.call(COMPLETIONS, body, key=key.secret)
        assert got.status == 503
        assert remaining(got) == 10_000 - 510
        gateway.wait_idle()


def test_a_request_that_no_wait_helps(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(tpm=100, tpm_burst=100)
    body = {"model": "tiny", "prompt": list(range(101)), "max_tokens": 1}
    got = gateway.call(COMPLETIONS, body, key=key.secret)
    assert got.brief() == (429, "rate_limit_error", "request_over_limit", None)
    assert got.header("x-should-retry") == "false"
    assert got.header("retry-after") is None
    assert "Waiting does not help" in got.error()["message"]
    assert upstream.requests == []


def test_a_large_output_cap_never_refuses_the_first_request(
    gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    key = gateway.key(tpm=100, tpm_burst=100)
    assert complete(gateway, key, max_tokens=100_000).status == 200


def test_tokens_used_up(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Debt is kept: the next request waits for what was used, not for what was reserved."""
    key = gateway.key(tpm=60, tpm_burst=100)
    upstream.script = lambda c, _: c.json(answer(10, 190))
    assert complete(gateway, key).status == 200
    gateway.wait_idle()
    got = complete(gateway, key)
    assert got.brief() == (429, "rate_limit_error", "rate_limit_exceeded", None)
    assert 120 <= int(got.header("retry-after") or 0) <= 130  # 100 of debt and 30 of its own


# Concurrency


def hold(upstream: ScriptedUpstream) -> threading.Event:
    """The engine streams one token, then waits for the event."""
    go_on = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        if go_on.wait(5):
            connection.event(finish())
            connection.event("[DONE]")
            connection.end()

    upstream.script = script
    return go_on


def test_one_at_a_time(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(concurrency=1)
    go_on = hold(upstream)
    with Client(gateway.port) as client:
        client.send(request(CHAT, chat(stream=True), key=key.secret))
        first = client.head()
        got = gateway.call(CHAT, chat(), key=key.secret)
        assert got.brief() == (429, "rate_limit_error", "rate_limit_exceeded", None)
        assert int(got.header("retry-after") or 0) >= 1
        assert "1 requests at a time" in got.error()["message"]
        go_on.set()
        assert b"".join(data for _, data in client.body(first)).endswith(b"[DONE]\n\n")
    upstream.reset()
    until(lambda: gateway.call(CHAT, chat(), key=key.secret).status == 200, "the permit", 1)


@pytest.mark.parametrize("body", [chat(), chat(stream=True)])
def test_a_client_that_waits_for_each_answer_is_never_refused(
    gateway: Gateway, upstream: ScriptedUpstream, body: dict[str, Any]
) -> None:
    """The permit is back before the client can know that the answer is whole."""
    if body.get("stream"):
        hold(upstream).set()
    key = gateway.key(concurrency=1)
    data = request(CHAT, body, key=key.secret)
    with Client(gateway.port) as client:
        statuses = [client.send(data).answer().status for _ in range(200)]
    assert statuses == [200] * 200


def test_a_stream_is_over_at_its_end_marker(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """However long the engine takes to end the body after it: the client has all by then."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(finish())
        connection.event("[DONE]")
        time.sleep(0.04)
        connection.end()

    upstream.script = script
    key = gateway.key(concurrency=1)
    data = request(CHAT, chat(stream=True), key=key.secret)
    with Client(gateway.port) as client:
        statuses = [client.send(data).answer().status for _ in range(10)]
    assert statuses == [200] * 10


def test_an_error_gives_the_permit_back(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(concurrency=1)
    upstream.script = lambda c, _: c.json({"error": {"message": "boom"}}, 500)
    data = request(CHAT, chat(), key=key.secret)
    with Client(gateway.port) as client:
        statuses = [client.send(data).answer().status for _ in range(100)]
    assert statuses == [502] * 100


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_a_client_that_leaves_gives_the_permit_back(
    gateway: Gateway, upstream: ScriptedUpstream, fields: dict[str, Any]
) -> None:
    key = gateway.key(concurrency=1)

    def script(connection: Connection, _: Received) -> None:
        connection.hung_up()

    upstream.script = script
    for _ in range(3):
        with Client(gateway.port) as client:
            client.send(request(CHAT, chat(**fields), key=key.secret))
            until(lambda: upstream.active == 1, "the request arrives")
        upstream.wait_idle()
        gateway.wait_idle()
    upstream.reset()
    assert gateway.call(CHAT, chat(), key=key.secret).status == 200

"""Headers: which the client gets, which the engine gets, and which neither."""

import re
from typing import Any

import pytest

from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer, delta, finish
from tests.support.wire import CHAT, Answer, Client, chat, request

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OURS = re.compile(r"req_[0-9a-f]{32}")


@pytest.mark.parametrize("given", ["client-1", "a", "A.b_c-9", "x" * 128])
def test_a_good_request_id_is_kept(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, given: str
) -> None:
    got = gateway.call(CHAT, chat(), key=key.secret, headers=[("x-request-id", given)])
    assert got.header("x-request-id") == given
    assert upstream.only().header("x-request-id") == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a/b", "caf\xe9", "a,b", "<script>"])
def test_a_bad_request_id_is_replaced(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, given: str
) -> None:
    got = gateway.call(CHAT, chat(), key=key.secret, headers=[("x-request-id", given)])
    assert OURS.fullmatch(got.header("x-request-id") or "")
    assert upstream.only().header("x-request-id") == got.header("x-request-id")


def test_request_ids_differ_and_are_on_refusals_too(gateway: Gateway, key: Key) -> None:
    ids = {
        gateway.call(CHAT, chat("nope"), key=secret).header("x-request-id")
        for secret in (key.secret, key.secret, None, "nope")
    }
    assert len(ids) == 4
    assert all(OURS.fullmatch(found or "") for found in ids)


def test_where_it_was_served(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    for model, name in (("tiny", "raw"), ("plain", "plain"), ("also-tiny", "raw")):
        got = gateway.call(CHAT, chat(model), key=key.secret)
        assert got.header("x-forebay-upstream") == name
        assert got.header("x-forebay-attempts") == "1"


def test_rate_limits_are_told_and_move(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=60, rpm_burst=10, tpm=60, tpm_burst=50_000)
    first = gateway.call(CHAT, chat(max_tokens=100), key=key.secret)
    second = gateway.call(CHAT, chat(max_tokens=100), key=key.secret)

    def number(got: Answer, name: str) -> int:
        return int(got.header(f"x-ratelimit-{name}") or "")

    assert number(first, "limit-requests") == 60
    assert number(first, "limit-tokens") == 60
    assert number(first, "remaining-requests") == 9
    assert number(second, "remaining-requests") == 8
    assert 49_800 < number(first, "remaining-tokens") < 49_900
    assert number(second, "remaining-tokens") < number(first, "remaining-tokens")
    shape = re.compile(r"(\d+h)?(\d+m)?\d+s|\d+ms")
    for name in ("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"):
        assert shape.fullmatch(second.header(name) or ""), second.header(name)


def test_no_limit_no_header(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    got = gateway.call(CHAT, chat(), key=key.secret)
    assert not [name for name, _ in got.headers if name.startswith("x-ratelimit")]


def test_retry_after(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    limited = gateway.key(rpm=6, rpm_burst=1)
    assert gateway.call(CHAT, chat(), key=limited.secret).status == 200
    got = gateway.call(CHAT, chat(), key=limited.secret)
    assert got.brief() == (429, "rate_limit_error", "rate_limit_exceeded", None)
    assert got.header("retry-after") in ("9", "10")
    assert 8_000 < int(got.header("retry-after-ms") or 0) <= 10_000
    assert got.header("x-ratelimit-remaining-requests") == "0"
    gone = gateway.call(CHAT, chat("gone"), key=key.secret)
    assert gone.status == 503
    assert gone.header("retry-after") == "1"


def test_an_engines_retry_after_is_passed_on(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    upstream.script = lambda c, _: c.json({"error": "busy"}, 503, ["retry-after: 7"])
    got = gateway.call(CHAT, chat(), key=key.secret)
    assert got.status == 503
    assert got.header("retry-after") == "7"


@pytest.mark.parametrize("state", [None, "vendor=1"])
def test_a_trace_is_passed_on(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, state: str | None
) -> None:
    headers = [("traceparent", TRACE), *([("tracestate", state)] if state else [])]
    gateway.call(CHAT, chat(), key=key.secret, headers=headers)
    assert upstream.only().header("traceparent") == TRACE
    assert upstream.only().header("tracestate") == state


@pytest.mark.parametrize(
    "bad", ["nonsense", TRACE.upper(), TRACE[:-1], "ff" + TRACE[2:], TRACE + "-x", ""]
)
def test_a_bad_trace_is_not(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, bad: str
) -> None:
    headers = [("traceparent", bad), ("tracestate", "vendor=1")]
    assert gateway.call(CHAT, chat(), key=key.secret, headers=headers).status == 200
    assert upstream.only().header("traceparent") is None
    assert upstream.only().header("tracestate") is None


def test_the_engine_gets_nothing_of_the_clients_own(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    headers = [
        ("cookie", "session=1"),
        ("x-forwarded-for", "10.1.2.3"),
        ("x-data-parallel-rank", "1"),
        ("x-override-rid", "mine"),
        ("te", "trailers"),
        ("connection", "keep-alive, x-mine"),
        ("x-mine", "1"),
        ("proxy-authorization", "Basic eDp5"),
        ("x-api-key", key.secret),
        ("user-agent", "client/1"),
    ]
    got = gateway.call(CHAT, chat(rid="mine", user="u1"), key=key.secret, headers=headers)
    assert got.status == 200
    received = upstream.only()
    assert key.secret not in repr(received.headers)
    assert sorted(name for name, _ in received.headers) == [
        "accept",
        "content-length",
        "content-type",
        "host",
        "x-request-id",
    ]
    assert received.header("host") == f"127.0.0.1:{upstream.port}"
    body = received.json()
    assert body["user"] == "u1"
    assert re.fullmatch(r"[0-9a-f]{32}", body["rid"])


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stream": True}, {"n": 2, "stream": True}])
def test_a_clients_rid_never_reaches_the_engine(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, fields: dict[str, Any]
) -> None:
    """It could name another tenant's request; the answer's outcome does not matter here."""
    gateway.call(CHAT, chat(rid="victim", **fields), key=key.secret)
    assert upstream.only().json()["rid"] != "victim"
    assert b"victim" not in upstream.only().body


def test_hop_by_hop_headers_stop_here(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    lines = [
        "server: uvicorn",
        "connection: keep-alive, x-private",
        "x-private: 1",
        "keep-alive: timeout=5",
        "proxy-authenticate: Basic",
        "upgrade: h2c",
        "set-cookie: a=b",
        "x-request-id: theirs",
        "x-ratelimit-limit-requests: 1",
        "access-control-allow-origin: *",
        "x-kept: yes",
    ]
    upstream.script = lambda c, _: c.json(answer(), 200, lines)
    got = gateway.call(CHAT, chat(), key=key.secret)
    assert got.status == 200
    found = dict(got.headers)
    assert found["x-kept"] == "yes"
    assert OURS.fullmatch(found["x-request-id"])
    assert found.get("server") != "uvicorn"
    hidden = {"x-private", "keep-alive", "proxy-authenticate", "upgrade", "set-cookie"}
    hidden |= {"x-ratelimit-limit-requests", "access-control-allow-origin"}
    assert not hidden & set(found)


def test_a_streams_headers(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    got = gateway.call(CHAT, chat(stream=True), key=key.secret)
    assert got.header("x-accel-buffering") == "no"
    assert got.header("cache-control") == "no-cache"
    assert (got.header("content-type") or "").startswith("text/event-stream")
    assert got.header("content-length") is None
    assert got.header("x-forebay-upstream") == "raw"
    assert OURS.fullmatch(got.header("x-request-id") or "")


def test_connections_are_kept(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    with Client(gateway.port) as client:
        for _ in range(5):
            assert client.send(request(CHAT, chat(), key=key.secret)).answer().complete
    assert len(upstream.requests) == 5


def test_the_simulated_engine_sees_no_key(gateway: Gateway, sim: Engine, key: Key) -> None:
    got = gateway.call(CHAT, chat("sim", max_tokens=3), key=key.secret)
    assert got.status == 200
    seen = sim.requests()[-1]
    assert key.secret not in repr(seen)
    assert not [name for name, _ in seen["headers"] if name == "authorization"]

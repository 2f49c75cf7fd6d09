"""`Idempotency-Key`: a request is worked on once, and everyone who repeats it gets its answer."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.support.databases import run_apart
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, COMPLETIONS, EMBEDDINGS, Answer, Client, chat, request
from tests.support.workers import connected

MAX_ANSWER = 20_000
REPLAY = "x-forebay-idempotent-replay"


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, session_database_url: str, scripted: ScriptedUpstream
) -> Iterator[Gateway]:
    """Two workers."""
    config = {
        "upstreams": {"raw": {"kind": "sglang", "url": scripted.url}},
        "models": {
            "tiny": {"targets": [{"upstream": "raw"}], "retry": {"attempts": 1}},
            "hasty": {
                "targets": [{"upstream": "raw", "model": "tiny"}],
                "timeouts": {"total": 1, "first_byte": 1, "idle": 1},
            },
        },
        "idempotency": {"max_answer_bytes": MAX_ANSWER, "lease_s": 2},
    }
    process = Gateway(tmp_path_factory.mktemp("fleet"), config, session_database_url, workers=2)
    process.start()
    yield process
    assert process.stop() == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


@pytest.fixture
def own(fleet: Gateway, upstream: ScriptedUpstream) -> Gateway:
    """The same, with an engine that answers as it does without a script."""
    return fleet


@pytest.fixture(scope="module")
def owner(fleet: Gateway) -> Key:
    """A key without limits."""
    return fleet.key()


def ask(
    gateway: Gateway,
    key: Key,
    name: str,
    body: Any = None,
    path: str = CHAT,
    headers: tuple[tuple[str, str], ...] = (),
) -> Answer:
    body = chat() if body is None else body
    named = (("idempotency-key", name), *headers)
    return gateway.call(path, body, key=key.secret, headers=named)


def fresh() -> str:
    return f"k-{uuid4()}"


def slow(release: threading.Event, answer: Any = None) -> Any:
    """An engine that answers once it may."""

    def script(connection: Connection, received: Received) -> None:
        assert release.wait(20)
        from tests.support.upstream import plain

        (answer or plain)(connection, received)

    return script


def words(connection: Connection, _: Received) -> None:
    """A stream of three words."""
    connection.begin()
    for word in ("a", "b", "c"):
        connection.event(delta(word))
    connection.event(finish())
    connection.event({**delta(""), "choices": [], "usage": usage(3, 3)})
    connection.event("[DONE]")
    connection.end()


def test_a_repeat_gets_the_same_bytes_and_costs_nothing(
    own: Gateway, upstream: ScriptedUpstream
) -> None:
    key = own.key(tpm=10_000, rpm=600)
    name = fresh()
    first = ask(own, key, name)
    left = first.header("x-ratelimit-remaining-tokens")
    again = ask(own, key, name, headers=(("x-request-id", "mine"),))
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert again.header("content-type") == first.header("content-type")
    assert again.header("x-forebay-upstream") == "raw"
    assert (first.header(REPLAY), again.header(REPLAY)) == (None, "true")
    assert again.header("x-request-id") == "mine"
    assert again.header("x-forebay-original-request-id") == first.header("x-request-id")
    assert again.header("x-ratelimit-remaining-tokens") is None
    assert len(upstream.requests) == 1
    assert len(own.usage(1, key_id=key.id)) == 1
    # Nothing more was taken.
    other = ask(own, key, fresh())
    assert left is not None
    assert int(other.header("x-ratelimit-remaining-tokens") or 0) >= int(left) - 100
    own.usage(2, key_id=key.id)


def test_an_answer_belongs_to_its_account(own: Gateway, upstream: ScriptedUpstream) -> None:
    name = fresh()
    one, same, other = own.key(account="a1"), own.key(account="a1"), own.key(account="a2")
    assert ask(own, one, name).header(REPLAY) is None
    assert ask(own, same, name).header(REPLAY) == "true"
    assert ask(own, other, name).header(REPLAY) is None
    assert len(upstream.requests) == 2


def test_another_body_or_path_is_refused(
    own: Gateway, owner: Key, upstream: ScriptedUpstream
) -> None:
    name = fresh()
    assert ask(own, owner, name).status == 200
    for body, path in (
        (chat(content="other"), CHAT),
        (json.dumps(chat()).replace(" ", "").encode(), CHAT),
        (chat(), COMPLETIONS),
    ):
        got = ask(own, owner, name, body, path)
        reused = "idempotency_key_reused"
        assert got.brief() == (422, "invalid_request_error", reused, "Idempotency-Key")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("name", ["", " ", "x" * 256, "caf\xe9", "tab\there"], ids=repr)
def test_keys_that_are_none(
    own: Gateway, owner: Key, upstream: ScriptedUpstream, name: str
) -> None:
    got = ask(own, owner, name)
    bad = "invalid_idempotency_key"
    assert got.brief() == (400, "invalid_request_error", bad, "Idempotency-Key")
    assert upstream.requests == []


@pytest.mark.parametrize(
    "name", ["x" * 255, "'; DROP TABLE idempotency_keys; --", '{"a": "\\u0000"}']
)
def test_keys_that_are_odd(own: Gateway, owner: Key, upstream: ScriptedUpstream, name: str) -> None:
    assert ask(own, owner, name).status == 200
    assert ask(own, owner, name).header(REPLAY) == "true"


def test_a_stream_is_replayed(own: Gateway, owner: Key, upstream: ScriptedUpstream) -> None:
    upstream.script = words
    name, body = fresh(), chat(stream=True)
    first = ask(own, owner, name, body)
    again = ask(own, owner, name, body)
    assert first.data()[-1] == "[DONE]"
    assert again.body == first.body
    assert again.complete
    assert again.header("content-type") == first.header("content-type")
    assert again.header("cache-control") == "no-cache"
    assert again.header(REPLAY) == "true"
    assert len(upstream.requests) == 1


def test_repeats_wait_over_all_workers(own: Gateway, upstream: ScriptedUpstream) -> None:
    key, release, name = own.key(), threading.Event(), fresh()
    upstream.script = slow(release)
    data = request(CHAT, chat(), key=key.secret, headers=(("idempotency-key", name),))
    with connected(own, 12) as clients:
        mine = [client for one in clients.values() for client in one]
        for client in mine:
            client.send(data)
        until(lambda: upstream.requests, "the first")
        release.set()
        answers = [client.answer() for client in mine]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum(answer.header(REPLAY) is None for answer in answers) == 1
    upstream.only()
    assert len(own.usage(1, key_id=key.id)) == 1
    replayed = own.metric("forebay_idempotent_requests_total", outcome="replayed")
    assert replayed >= 11


def test_a_client_that_left_gets_its_answer_when_it_comes_back(
    own: Gateway, upstream: ScriptedUpstream
) -> None:
    key, name, go = own.key(), fresh(), threading.Event()

    def script(connection: Connection, received: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        assert go.wait(20)
        for _ in range(40):  # more than a slot holds
            connection.event(delta("b" * 100))
        connection.event(finish())
        connection.event({**delta(""), "choices": [], "usage": usage(3, 41)})
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    body = chat(stream=True)
    data = request(CHAT, body, key=key.secret, headers=(("idempotency-key", name),))
    with Client(own.port) as client:
        next(client.body(client.send(data).head()))
        client.reset()
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(ask, own, key, name, body)
        go.set()
        got = again.result()
    assert got.data()[-1] == "[DONE]"
    assert len(got.data()) == 43
    assert got.header(REPLAY) == "true"
    upstream.only()
    (row,) = own.usage(1, key_id=key.id)
    assert (row["outcome"], row["completion_tokens"]) == ("ok", 41)


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_failure_is_not_kept(
    own: Gateway, owner: Key, upstream: ScriptedUpstream, status: int
) -> None:
    name = fresh()
    upstream.script = lambda connection, _: connection.json({"message": "no"}, status)
    first = ask(own, owner, name)
    assert first.status >= 400
    upstream.reset()
    # Also with another body: nothing was answered under this key.
    again = ask(own, owner, name, chat(content="other"))
    assert (again.status, again.header(REPLAY)) == (200, None)


def test_a_stream_that_broke_off_is_not_kept(
    own: Gateway, owner: Key, upstream: ScriptedUpstream
) -> None:
    def broken(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.reset()

    name, body = fresh(), chat(stream=True)
    upstream.script = broken
    assert "error" in ask(own, owner, name, body).data()[-1]
    upstream.script = words
    again = ask(own, owner, name, body)
    assert (again.data()[-1], again.header(REPLAY)) == ("[DONE]", None)


def test_what_is_refused_before_it_begins_is_refused_as_ever(
    own: Gateway, owner: Key, upstream: ScriptedUpstream
) -> None:
    name = fresh()
    assert ask(own, owner, name, b"{").error()["code"] == "invalid_json"
    assert ask(own, owner, name, chat("nobody")).status == 404
    assert own.call(CHAT, chat(), headers=(("idempotency-key", name),)).status == 401
    assert own.call(CHAT, chat(), headers=(("idempotency-key", ""),)).status == 401
    limited = own.key(rpm=6)
    statuses = [ask(own, limited, fresh()).status for _ in range(3)]
    assert statuses.count(429) == 2
    assert ask(own, owner, name).status == 200


def test_an_answer_that_is_too_large_is_given_once(
    own: Gateway, owner: Key, upstream: ScriptedUpstream
) -> None:
    def large(connection: Connection, _: Received) -> None:
        connection.begin()
        for _ in range(30):
            connection.event(delta("x" * 1000))
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = large
    name, body = fresh(), chat(stream=True)
    assert len(ask(own, owner, name, body).body) > MAX_ANSWER
    got = ask(own, owner, name, body)
    code = "idempotency_answer_too_large"
    assert got.brief() == (409, "invalid_request_error", code, "Idempotency-Key")
    assert got.header("x-should-retry") == "false"
    upstream.only()


def test_who_waits_longer_than_its_model_may_take_is_told(
    own: Gateway, owner: Key, upstream: ScriptedUpstream
) -> None:
    """The one that runs has the other model's time."""
    release, name = threading.Event(), fresh()
    upstream.script = slow(release)
    # The row of one that works on it elsewhere.
    body = chat("hasty")
    first = ThreadPoolExecutor(1).submit(ask, own, owner, name, chat("hasty"))
    until(lambda: upstream.requests, "the first")

    async def hold() -> None:
        connection = await asyncpg.connect(own.database_url)
        await connection.execute(
            "UPDATE idempotency_keys SET owner = gen_random_uuid(),"
            " lease_until = now() + interval '1 minute' WHERE key = $1",
            name,
        )
        await connection.close()

    run_apart(hold)
    got = ask(own, owner, name, body)
    assert got.brief()[:3] == (409, "invalid_request_error", "idempotency_in_progress")
    assert got.header("retry-after") == "1"
    release.set()
    assert first.result().status == 504


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS])
def test_every_endpoint(own: Gateway, owner: Key, upstream: ScriptedUpstream, path: str) -> None:
    text = {"id": "c", "object": "text_completion", "created": 1, "model": "tiny"}
    choices = [{"index": 0, "text": "ok", "finish_reason": "stop"}]
    vectors = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "model": "tiny",
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    said = vectors if path == EMBEDDINGS else {**text, "choices": choices, "usage": usage(1, 1)}
    upstream.script = lambda connection, _: connection.json(said)
    body = {"model": "tiny", "input" if path == EMBEDDINGS else "prompt": "x"}
    name = fresh()
    first, again = ask(own, owner, name, body, path), ask(own, owner, name, body, path)
    assert first.status == 200
    assert again.body == first.body
    assert again.header(REPLAY) == "true"
    upstream.only()


def test_granian_does_the_same(
    tmp_path: Path, session_database_url: str, upstream: ScriptedUpstream
) -> None:
    config = {
        "listen": {"server": "granian"},
        "upstreams": {"raw": {"kind": "sglang", "url": upstream.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    process = Gateway(tmp_path / "granian", config, session_database_url)
    process.start()
    try:
        key, name = process.key(), fresh()
        upstream.script = words
        first = ask(process, key, name, chat(stream=True))
        again = ask(process, key, name, chat(stream=True))
        assert again.body == first.body
        assert again.header(REPLAY) == "true"
        upstream.only()
    finally:
        assert process.stop() == 0

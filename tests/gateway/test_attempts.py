"""Which target a request goes to, what it looks like there, and what happens when one fails."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import closed_port
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish
from tests.support.wait import until
from tests.support.wire import CHAT, chat


@pytest.fixture(scope="module")
def engines() -> Iterator[list[ScriptedUpstream]]:
    made = [ScriptedUpstream(models=("one", "shared")), ScriptedUpstream(models=("two",))]
    for engine in made:
        engine.start()
    yield made
    for engine in made:
        engine.stop()


@pytest.fixture(scope="module")
def routed(
    tmp_path_factory: pytest.TempPathFactory,
    session_database_url: str,
    engines: list[ScriptedUpstream],
) -> Iterator[Gateway]:
    """A gateway with two engines and one that is not there."""
    first, second = engines
    config = {
        # None is ever out for what its requests come to: that is tests/faults' subject.
        "upstreams": {
            "a": {
                "kind": "sglang",
                "url": first.url,
                "discover": True,
                "api_key": "engine-key",
                "outlier": None,
            },
            "b": {
                "kind": "sglang",
                "url": second.url,
                "outlier": None,
                "max_concurrency": 1,
                "queue": {"max_waiting": 0},
            },
            "gone": {"kind": "sglang", "url": f"http://127.0.0.1:{closed_port()}"},
        },
        "models": {
            "both": {
                "targets": [
                    {"upstream": "a", "model": "org/one"},
                    {"upstream": "b", "model": "org/two"},
                ]
            },
            "half": {"targets": [{"upstream": "gone"}, {"upstream": "b"}]},
            "narrow": {"targets": [{"upstream": "b"}]},
        },
    }
    process = Gateway(tmp_path_factory.mktemp("routed"), config, session_database_url)
    process.start()
    until(lambda: process.health()["checks"]["upstream:a"] == "ok", "discovery")
    yield process
    assert process.stop() == 0
    assert "Traceback (most recent" not in process.log()


@pytest.fixture
def secret(routed: Gateway, engines: list[ScriptedUpstream]) -> Iterator[str]:
    for engine in engines:
        engine.reset()
    yield routed.key().secret
    for engine in engines:
        engine.wait_idle()
        assert not engine.failures


def test_targets_take_turns(routed: Gateway, engines: list[ScriptedUpstream], secret: str) -> None:
    answers = [routed.call(CHAT, chat("both"), key=secret) for _ in range(10)]
    assert Counter(a.header("x-forebay-upstream") for a in answers) == {"a": 5, "b": 5}
    assert {received.json()["model"] for received in engines[0].requests} == {"org/one"}
    assert {received.json()["model"] for received in engines[1].requests} == {"org/two"}


def test_each_upstream_gets_its_own_key(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str
) -> None:
    for _ in range(2):
        routed.call(CHAT, chat("both"), key=secret)
    assert engines[0].only().header("authorization") == "Bearer engine-key"
    assert engines[1].only().header("authorization") is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_byte_is_invisible(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str, stream: bool
) -> None:
    def finishes(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    engines[0].script = lambda connection, _: connection.reset()
    if stream:
        engines[1].script = finishes
    for _ in range(4):
        got = routed.call(CHAT, chat("both", stream=stream), key=secret)
        assert got.status == 200
        assert got.complete
        assert got.header("x-forebay-upstream") == "b"
    attempts = routed.usage_of(got)["attempts"]
    assert got.header("x-forebay-attempts") == str(attempts)
    assert len(engines[0].requests) > 0


def test_an_engine_that_is_known_to_be_away_is_not_tried(routed: Gateway, secret: str) -> None:
    for _ in range(4):
        got = routed.call(CHAT, chat("half"), key=secret)
        assert (got.status, got.header("x-forebay-attempts")) == (200, "1")
        assert got.header("x-forebay-upstream") == "b"


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failing_engine_is_passed_over(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str, status: int
) -> None:
    engines[0].script = lambda c, _: c.json({"error": {"message": "boom"}}, status)
    answers = [routed.call(CHAT, chat("both"), key=secret) for _ in range(6)]
    assert [a.status for a in answers] == [200] * 6
    assert {a.header("x-forebay-upstream") for a in answers} == {"b"}
    rids = [r.json()["rid"] for engine in engines for r in engine.requests]
    assert len(rids) == len(set(rids)), "each attempt has a name of its own"


def test_a_refusal_is_not_tried_elsewhere(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str
) -> None:
    for engine in engines:
        engine.script = lambda c, _: c.json({"message": "no", "code": 400}, 400)
    assert routed.call(CHAT, chat("both"), key=secret).status == 400
    assert sum(len(engine.requests) for engine in engines) == 1


def test_when_all_fail_the_last_error_is_told(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str
) -> None:
    for engine in engines:
        engine.script = lambda c, _: c.json({"error": "x"}, 500)
    got = routed.call(CHAT, chat("both"), key=secret)
    assert got.status == 502
    assert [len(engine.requests) for engine in engines] == [1, 1]
    assert routed.usage_of(got)["attempts"] == 2


def test_an_upstream_at_its_limit(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str
) -> None:
    """One at a time, without a queue: the second is refused at once, or served by the sibling."""
    inner = []

    def script(connection: Connection, _: Received) -> None:
        engines[1].script = lambda c, r: c.json({"id": "x", "choices": []})
        inner.append(routed.call(CHAT, chat("narrow"), key=secret))
        inner.append(routed.call(CHAT, chat("both"), key=secret))
        inner.append(routed.call(CHAT, chat("both"), key=secret))
        connection.json({"id": "x", "choices": []})

    engines[1].script = script
    assert routed.call(CHAT, chat("narrow"), key=secret).status == 200
    narrow, *both = inner
    assert narrow.brief() == (503, "service_unavailable_error", "queue_full", None)
    assert narrow.header("retry-after") == "1"
    assert [(b.status, b.header("x-forebay-upstream")) for b in both] == [(200, "a")] * 2


def test_models_are_discovered(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str
) -> None:
    listed = [m["id"] for m in routed.call("/v1/models", key=secret).json()["data"]]
    assert listed == ["both", "half", "narrow", "one", "shared"]
    assert routed.call(CHAT, chat("one"), key=secret).header("x-forebay-upstream") == "a"


def test_an_address_alone_is_enough(
    tmp_path: Path, session_database_url: str, engines: list[ScriptedUpstream], secret: str
) -> None:
    """`INFERENCE_URL` and `INFERENCE_API_KEY`, as a platform injects them, without a file."""
    engine = engines[0]
    env = {"INFERENCE_URL": engine.url, "INFERENCE_API_KEY": "engine-key"}
    process = Gateway(tmp_path / "gateway", None, session_database_url, env=env)
    process.start()
    try:
        until(lambda: process.call("/readyz").status == 200, "ready")
        key: Key = process.key()
        assert process.call(CHAT, chat("one"), key=key.secret).status == 200
        assert process.call(CHAT, chat("two"), key=key.secret).status == 404
        assert engine.only().header("authorization") == "Bearer engine-key"
    finally:
        assert process.stop() == 0


def test_each_attempt_is_told(
    routed: Gateway, engines: list[ScriptedUpstream], secret: str
) -> None:
    engines[0].script = lambda c, _: c.json({"error": {"message": "busy"}}, 503)
    rows = [routed.call(CHAT, chat("both"), key=secret) for _ in range(4)]
    several = [got for got in rows if got.header("x-forebay-attempts") == "2"]
    assert several
    for got in rows:
        log = got.header("x-forebay-attempt-log")
        row = routed.usage_of(got)
        kept = json.loads(row["attempt_log"] or "null")
        if got not in several:
            assert (log, kept) == (None, None)
            continue
        assert log is not None
        assert log.startswith('"a";reason=unavailable;status=503;ms=')
        assert ', "b";reason=ok' in log
        said = [(one["upstream"], one["model"], one["why"], one["reason"]) for one in kept]
        assert said == [
            ("a", "org/one", "first", "unavailable"),
            ("b", "org/two", "retry", "ok"),
        ]
        assert kept[0]["start_us"] + kept[0]["duration_us"] <= kept[1]["start_us"]
    id = several[0].header("x-request-id") or ""
    until(lambda: id in routed.log(), "the log")
    [line] = [
        fields
        for text in routed.log().splitlines()
        if text.startswith("{") and (fields := json.loads(text)).get("request_id") == id
    ]
    assert (line["upstream"], line["attempt"], line["why"]) == ("a", 1, "first")
    assert (line["reason"], line["status"]) == ("unavailable", 503)
    assert line["duration_ms"] >= 0

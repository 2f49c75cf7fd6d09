"""`Idempotency-Key` at every door: what a repeat gets is told in the door's own shape."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.support import grpc_calls
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
from tests.support.wire import Answer

REPLAY = "x-forebay-idempotent-replay"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"


@pytest.fixture(scope="module")
def doors(
    tmp_path_factory: pytest.TempPathFactory, session_database_url: str, scripted: ScriptedUpstream
) -> Iterator[Gateway]:
    """A gateway with all of them."""
    config = {
        "listen": {"grpc": "127.0.0.1:0"},
        "upstreams": {"raw": {"kind": "sglang", "url": scripted.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    process = Gateway(tmp_path_factory.mktemp("doors"), config, session_database_url)
    process.start()
    yield process
    assert process.stop() == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


@pytest.fixture
def own(doors: Gateway, upstream: ScriptedUpstream) -> Gateway:
    """The same, with an engine that answers as it does without a script."""
    return doors


@pytest.fixture(scope="module")
def owner(doors: Gateway) -> Key:
    return doors.key()


def either(connection: Connection, received: Received) -> None:
    """Answers as it is asked to."""
    if not received.json().get("stream"):
        connection.json(answer())
        return
    connection.begin()
    for word in ("a", "b"):
        connection.event(delta(word))
    connection.event(finish())
    connection.event({**delta(""), "choices": [], "usage": usage(3, 2)})
    connection.event("[DONE]")
    connection.end()


def body_of(path: str, content: str = "hi", **fields: Any) -> dict[str, Any]:
    if path == RESPONSES:
        return {"model": "tiny", "input": content, **fields}
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "max_tokens": 5, "messages": messages, **fields}


def ask(gateway: Gateway, key: Key, path: str, name: str, body: dict[str, Any]) -> Answer:
    return gateway.call(path, body, key=key.secret, headers=(("idempotency-key", name),))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_http(
    own: Gateway, owner: Key, upstream: ScriptedUpstream, path: str, stream: bool
) -> None:
    upstream.script = either
    name, body = str(uuid4()), body_of(path, stream=stream)
    first, again = ask(own, owner, path, name, body), ask(own, owner, path, name, body)
    assert first.status == 200, first.body
    assert again.body == first.body
    assert again.header("content-type") == first.header("content-type")
    assert again.header(REPLAY) == "true"
    assert again.header("x-request-id") != first.header("x-request-id")
    if path == MESSAGES:
        assert again.header("request-id") == again.header("x-request-id")
    upstream.only()


def test_refusals_have_the_doors_shape(
    own: Gateway, owner: Key, upstream: ScriptedUpstream
) -> None:
    upstream.script = either
    for path in (MESSAGES, RESPONSES):
        name = str(uuid4())
        assert ask(own, owner, path, name, body_of(path)).status == 200
        reused = ask(own, owner, path, name, body_of(path, "other"))
        bad = ask(own, owner, path, "x" * 256, body_of(path))
        assert (reused.status, bad.status) == (422, 400)
        for got in (reused, bad):
            if path == MESSAGES:
                assert got.json()["type"] == "error"
                assert got.json()["error"]["type"] == "invalid_request_error"
            else:
                assert got.error()["param"] == "Idempotency-Key"
    # The same key and body at another door is another request.
    assert len(upstream.requests) == 2


def test_a_response_is_stored_once(own: Gateway, owner: Key, upstream: ScriptedUpstream) -> None:
    upstream.script = either
    name, body = str(uuid4()), body_of(RESPONSES)
    first = ask(own, owner, RESPONSES, name, body).json()
    again = ask(own, owner, RESPONSES, name, body).json()
    assert again["id"] == first["id"]
    stored = own.call(f"{RESPONSES}/{first['id']}", key=owner.secret)
    assert stored.status == 200, stored.body
    assert stored.json()["output"] == first["output"]
    items = own.call(f"{RESPONSES}/{first['id']}/input_items", key=owner.secret).json()
    assert [item["content"] for item in items["data"]] == [[{"type": "input_text", "text": "hi"}]]
    then = body_of(RESPONSES, "and then?", previous_response_id=first["id"])
    assert ask(own, owner, RESPONSES, str(uuid4()), then).status == 200
    said = [message["content"] for message in upstream.requests[-1].json()["messages"]]
    assert json.dumps(said).count("hi") == 1
    assert len(said) == 3
    own.call(f"{RESPONSES}/{first['id']}", {}, key=owner.secret, method="DELETE")
    gone = ask(own, owner, RESPONSES, str(uuid4()), then)
    assert (gone.status, gone.error()["param"]) == (404, "previous_response_id")


@pytest.mark.parametrize("name", ["ChatCompletion", "StreamChatCompletion"])
def test_grpc(own: Gateway, owner: Key, upstream: ScriptedUpstream, name: str) -> None:
    upstream.script = either
    key = str(uuid4())

    def call(content: str = "hi") -> grpc_calls.Told:
        return grpc_calls.ask(
            opened,
            name,
            grpc_calls.chat(content=content),
            key=owner.secret,
            metadata=(("idempotency-key", key),),
        )

    with grpc_calls.channel(own.facts["grpc"]) as opened:
        first, again, reused = call(), call(), call("other")
    assert first.code.name == again.code.name == "OK", (first, again)
    assert again.messages == first.messages
    assert (len(first.messages) > 1) == name.startswith("Stream")
    assert {**again.initial, **again.trailing}[REPLAY] == "true"
    assert reused.brief[:2] == ("FAILED_PRECONDITION", "IDEMPOTENCY_KEY_REUSED")
    upstream.only()


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/files"])
def test_forms_refuse_a_key(
    own: Gateway, owner: Key, upstream: ScriptedUpstream, path: str
) -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ntiny\r\n--x--\r\n'
    form = "multipart/form-data; boundary=x"
    named = (("idempotency-key", "k"),)
    got = own.call(path, part, key=owner.secret, headers=named, content_type=form)
    code = "idempotency_key_unsupported"
    assert got.brief() == (400, "invalid_request_error", code, "Idempotency-Key")
    assert own.call(path, part, headers=named, content_type=form).status == 401
    assert upstream.requests == []

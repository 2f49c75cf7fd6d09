"""OpenAI's WebSocket mode of the Responses API: turns on one connection, and what it remembers."""

import json
import threading
from typing import Any

import pytest
from openai import OpenAI

from tests.support.processes import Gateway, Key
from tests.support.sockets import Socket, open_socket
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage

PATH = "/v1/responses"


def create(model: str = "tiny", **fields: Any) -> dict[str, Any]:
    """A turn."""
    return {"type": "response.create", "model": model, "input": "hi", **fields}


def streams(*contents: str) -> Any:
    """A script that streams these."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for content in contents:
            connection.event(delta(content))
        connection.event(finish())
        connection.event({**delta(""), "choices": [], "usage": usage(7, len(contents))})
        connection.event("[DONE]")
        connection.end()

    return script


def turn(client: Socket, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a turn."""
    client.say(asked)
    events = [client.next()]
    while events[-1]["type"] not in ("response.completed", "response.failed", "error"):
        events.append(client.next())
    return events


def test_a_turn_is_the_events_of_its_stream(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key()
    upstream.script = streams("a", "b")
    with open_socket(gateway, key.secret, PATH) as client:
        events = turn(client, create())
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    said = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert said == ["a", "b"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))
    (row,) = gateway.usage(1, key_id=key.id)
    assert (row["front"], row["completion_tokens"], row["outcome"]) == ("ws", 2, "ok")


def test_the_latest_response_is_known_though_nobody_stores_it(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    upstream.script = streams("one")
    with open_socket(gateway, key.secret, PATH) as client:
        first = turn(client, create(store=False, input="first"))[-1]["response"]
        upstream.script = streams("two")
        again = create(store=False, input="second", previous_response_id=first["id"])
        second = turn(client, again)[-1]["response"]
        turn(client, create(store=False, input="third", previous_response_id=second["id"]))
    asked = [
        [(m["role"], m["content"]) for m in received.json()["messages"]]
        for received in upstream.requests
    ]

    def text(content: Any) -> str:
        return content if isinstance(content, str) else content[0]["text"]

    third = [(role, text(content)) for role, content in asked[2]]
    assert third == [
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
        ("assistant", "two"),
        ("user", "third"),
    ]


@pytest.mark.parametrize("begin", [{"store": False}, {"generate": False}])
def test_a_chain_may_begin_at_a_stored_response(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, begin: dict[str, bool]
) -> None:
    upstream.script = streams("ok")
    with open_socket(gateway, key.secret, PATH) as client:
        previous = turn(client, create(input="first"))[-1]["response"]["id"]
        for fields in ({**begin, "input": "second"}, {"store": False, "input": "third"}):
            end = turn(client, create(previous_response_id=previous, **fields))[-1]
            assert end["type"] == "response.completed", end
            previous = end["response"]["id"]
    messages = upstream.requests[-1].json()["messages"]
    said = [m["content"] for m in messages if m["role"] == "user"]
    assert [c if isinstance(c, str) else c[0]["text"] for c in said] == ["first", "second", "third"]


def test_a_warm_up_costs_nothing_and_is_gone_on_from(
    gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    key = gateway.key()
    upstream.script = streams("ok")
    with open_socket(gateway, key.secret, PATH) as client:
        warm = turn(client, create(generate=False, input="context"))
        assert [event["type"] for event in warm] == ["response.created", "response.completed"]
        assert upstream.requests == []
        warm_id = warm[-1]["response"]["id"]
        turn(client, create(store=False, input="go", previous_response_id=warm_id))
        assert len(upstream.requests[0].json()["messages"]) == 2
        unknown = turn(client, create("nowhere", generate=False))
        assert unknown[-1]["error"]["code"] == "model_not_found"
    assert len(gateway.usage(1, key_id=key.id)) == 1


def test_events_may_be_larger_than_an_engines(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    part = "x" * 700_000
    upstream.script = streams(part, part)
    with open_socket(gateway, key.secret, PATH) as client:
        events = turn(client, create(instructions=part * 2))
    # Each repeats what an engine said in more than one event, or was never in one.
    assert events[0]["response"]["instructions"] == part * 2
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert done["text"] == part * 2
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == part * 2


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"type": "response.steer"}, 400, "type"),
        ({"model": "tiny", "input": "hi"}, 400, "type"),
        (create(background=True), 400, "background"),
        (create("nowhere"), 404, "model"),
        (create(temperature="hot"), 400, "temperature"),
        (create(previous_response_id="resp_gone", store=False), 404, "previous_response_id"),
    ],
)
def test_an_error_is_an_event(
    gateway: Gateway,
    upstream: ScriptedUpstream,
    key: Key,
    asked: dict[str, Any],
    status: int,
    param: str,
) -> None:
    upstream.script = streams("a")
    with open_socket(gateway, key.secret, PATH) as client:
        event = turn(client, asked)[-1]
        assert event["type"] == "error"
        assert (event["status"], event["error"]["param"]) == (status, param)
        assert turn(client, create())[-1]["type"] == "response.completed"


def test_turns_wait_for_each_other(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    upstream.script = streams("a")
    with open_socket(gateway, key.secret, PATH) as client:
        for _ in range(3):
            client.say(create())
        completed = 0
        while completed < 3:
            completed += client.next()["type"] == "response.completed"
    assert len(upstream.requests) == 3


def test_a_message_too_many_is_not_the_turn_that_runs(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    go = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("one"))
        assert go.wait(5)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    with open_socket(gateway, key.secret, PATH) as client:
        client.say(create(store=False))
        while client.next()["type"] != "response.output_text.delta":
            pass
        for _ in range(9):
            client.say({"type": "response.steer"})
        assert client.next()["error"]["code"] == "queue_full"
        go.set()
        while (event := client.next())["type"] != "response.completed":
            pass
        for _ in range(8):
            assert client.next()["error"]["param"] == "type"
        again = create(store=False, previous_response_id=event["response"]["id"])
        assert turn(client, again)[-1]["type"] == "response.completed"
    assert len(upstream.requests[1].json()["messages"]) == 3


@pytest.mark.filterwarnings("ignore:connect.. must be used as:DeprecationWarning")
def test_the_official_sdk(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    upstream.script = streams("a", "b")
    client = OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=key.secret)
    options: Any = {"proxy": None}
    with client.responses.connect(websocket_connection_options=options) as connection:
        previous: str | None = None
        for _ in range(2):
            connection.response.create(
                model="tiny", input="hi", store=False, previous_response_id=previous
            )
            text = ""
            for event in connection:
                if event.type == "response.output_text.delta":
                    text += event.delta
                if event.type == "response.completed":
                    previous = event.response.id
                    break
            assert text == "ab"
    assert len(json.loads(upstream.requests[1].body)["messages"]) == 3

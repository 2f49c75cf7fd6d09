"""Inference over gRPC: what engines are asked, and what clients are told."""

import json
from typing import Any

import grpc
import pytest
from forebay.grpc.v1 import inference_pb2 as pb

from tests.support.grpc_calls import INFERENCE, ask, chat
from tests.support.grpc_wire import exchange, frame
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

INITIAL = ("x-request-id", "x-forebay-upstream", "x-forebay-attempts")


def streamed(connection: Connection, _: Received) -> None:
    """An engine that says two words."""
    connection.begin()
    connection.event(delta("one"))
    connection.event(delta(" two"))
    connection.event(finish())
    connection.event({**finish(), "choices": [], "usage": usage(4, 2)})
    connection.event("[DONE]")
    connection.end()


def test_a_chat(
    gateway: Gateway, opened: grpc.Channel, upstream: ScriptedUpstream, key: Key
) -> None:
    named = [("x-request-id", "grpc-chat"), ("x-forebay-tags", "team=search")]
    told = ask(opened, "ChatCompletion", chat(), key=key.secret, metadata=named)
    found = told.only
    assert found.choices[0].message.content == "ok"
    assert found.choices[0].finish_reason == pb.FINISH_REASON_STOP
    assert (found.model, found.usage.total_tokens) == ("tiny", 5)
    assert {name: told.initial[name] for name in INITIAL} == {
        "x-request-id": "grpc-chat",
        "x-forebay-upstream": "raw",
        "x-forebay-attempts": "1",
    }
    asked = upstream.only().json()
    assert asked["messages"] == [{"role": "user", "content": "hi"}]
    assert "stream" not in asked or asked["stream"] is False
    row = gateway.usage(1, request_id="grpc-chat")[0]
    assert (row["front"], row["outcome"], row["stream"]) == ("grpc", "ok", False)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 2)
    assert json.loads(row["tags"]) == {"team": "search"}


def test_a_stream_to_a_client_that_sends_nothing_more(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key
) -> None:
    """Without window updates or answers to pings, what gRPC's core has leaves by itself."""
    upstream.script = streamed
    path = f"/{INFERENCE}/StreamChatCompletion".encode()
    fields = [(b"authorization", f"Bearer {key.secret}".encode())]
    heard = exchange(gateway.grpc, path, frame(chat().SerializeToString()), fields=fields)
    assert heard.status == 0
    assert b"one" in heard.data
    assert b"two" in heard.data


def test_a_stream(
    gateway: Gateway, opened: grpc.Channel, upstream: ScriptedUpstream, key: Key
) -> None:
    upstream.script = streamed
    told = ask(opened, "StreamChatCompletion", chat(), key=key.secret)
    assert told.code is grpc.StatusCode.OK, told.message
    said = [choice.delta.content for chunk in told.messages for choice in chunk.choices]
    assert "".join(said) == "one two"
    assert told.messages[-1].usage.completion_tokens == 2
    assert told.initial["x-forebay-upstream"] == "raw"
    asked = upstream.only().json()
    assert asked["stream"] is True
    row = gateway.usage(1, request_id=told.initial["x-request-id"])[0]
    assert (row["front"], row["outcome"], row["stream"]) == ("grpc", "ok", True)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (4, 2)


def test_rates_are_told_at_the_end(gateway: Gateway, opened: grpc.Channel) -> None:
    key = gateway.key(rpm=60, tpm=60_000)
    for name in ("ChatCompletion", "StreamChatCompletion"):
        told = ask(opened, name, chat("sim", max_tokens=4), key=key.secret)
        assert told.code is grpc.StatusCode.OK, told.message
        assert told.trailing["x-ratelimit-limit-requests"] == "60"
        for kind in ("requests", "tokens"):
            assert int(told.trailing[f"x-ratelimit-remaining-{kind}"]) > 0
            assert f"x-ratelimit-reset-{kind}" in told.trailing
        assert not [name for name in told.initial if name.startswith("x-ratelimit")]


def test_tools(opened: grpc.Channel, upstream: ScriptedUpstream, key: Key) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Bern"}'},
    }

    def script(connection: Connection, _: Received) -> None:
        found = answer()
        found["choices"][0]["message"] = {
            "role": "assistant",
            "content": None,
            "tool_calls": [call],
        }
        found["choices"][0]["finish_reason"] = "tool_calls"
        connection.json(found)

    upstream.script = script
    request = chat()
    tool = request.tools.add().function
    tool.name = "weather"
    tool.parameters.update({"type": "object", "properties": {"city": {"type": "string"}}})
    request.tool_choice.function.name = "weather"
    found = ask(opened, "ChatCompletion", request, key=key.secret).only.choices[0]
    assert found.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert found.message.tool_calls[0].id == "call_1"
    assert json.loads(found.message.tool_calls[0].function.arguments) == {"city": "Bern"}
    asked = upstream.only().json()
    assert asked["tools"][0]["type"] == "function"
    assert asked["tools"][0]["function"]["parameters"]["properties"]["city"]["type"] == "string"
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


def test_engines_own_fields(opened: grpc.Channel, upstream: ScriptedUpstream, key: Key) -> None:
    request = chat(temperature=0.0, stop=["a", "b"])
    request.extra.update({"top_k": 5, "regex": "[0-9]+"})
    assert ask(opened, "ChatCompletion", request, key=key.secret).only
    asked = upstream.only().json()
    assert (asked["top_k"], asked["regex"], asked["temperature"]) == (5, "[0-9]+", 0)
    assert asked["stop"] == ["a", "b"]


def test_completions_and_embeddings(opened: grpc.Channel, key: Key) -> None:
    request = pb.CompletionRequest(model="sim", prompt="once", max_tokens=3)
    found = ask(opened, "Completion", request, key=key.secret).only
    assert found.usage.completion_tokens == 3
    told = ask(opened, "StreamCompletion", request, key=key.secret)
    assert told.messages[-1].usage.completion_tokens == 3
    vectors = ask(
        opened, "Embed", pb.EmbedRequest(model="sim-embed", inputs=["a", "b"]), key=key.secret
    ).only
    assert [vector.index for vector in vectors.data] == [0, 1]
    assert len(vectors.data[0].values) > 1


def test_models(gateway: Gateway, opened: grpc.Channel) -> None:
    key = gateway.key(models=["tiny", "sim"])
    found = ask(opened, "ListModels", pb.ListModelsRequest(), key=key.secret).only
    assert {"tiny", "sim"} <= {model.id for model in found.data}
    assert "plain" not in {model.id for model in found.data}
    names = []
    page = pb.ListModelsRequest(page_size=1)
    while True:
        part = ask(opened, "ListModels", page, key=key.secret).only
        names += [model.id for model in part.data]
        if not part.next_page_token:
            break
        page.page_token = part.next_page_token
    assert names == [model.id for model in found.data]
    one = ask(opened, "GetModel", pb.GetModelRequest(id="tiny"), key=key.secret)
    assert one.only.id == "tiny"
    assert one.initial["x-request-id"]
    missing = ask(opened, "GetModel", pb.GetModelRequest(id="plain"), key=key.secret)
    assert missing.brief == ("NOT_FOUND", "MODEL_NOT_FOUND", "model_not_found")
    bad = ask(opened, "ListModels", pb.ListModelsRequest(page_size=-1), key=key.secret)
    assert bad.detail("BadRequest").field_violations[0].field == "page_size"


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_keys(opened: grpc.Channel, key: Key, name: str) -> None:
    value = f"Bearer {key.secret}" if name == "authorization" else key.secret
    told = ask(opened, "ChatCompletion", chat("sim", max_tokens=1), metadata=[(name, value)])
    assert told.only


def test_a_body_may_be_large(opened: grpc.Channel, upstream: ScriptedUpstream, key: Key) -> None:
    text = "x" * 4_000_000
    assert ask(opened, "ChatCompletion", chat(content=text), key=key.secret).only
    assert upstream.only().json()["messages"][0]["content"] == text


def test_an_answer_may_be_large(opened: grpc.Channel, upstream: ScriptedUpstream, key: Key) -> None:
    text = "y" * 900_000

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for _ in range(20):
            connection.event(delta(text))
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    told = ask(opened, "StreamChatCompletion", chat(), key=key.secret)
    said: Any = "".join(c.delta.content for chunk in told.messages for c in chunk.choices)
    assert said == text * 20

"""The Python client against a running gateway."""

import asyncio
import json
import threading
import time
from typing import Any

import grpc
import pytest
from forebay.client import (
    AsyncClient,
    BudgetExhausted,
    Cancelled,
    Client,
    DeadlineExceeded,
    Error,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
    text_of,
    types,
)

from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer, delta, usage
from tests.support.wait import until

HI = [{"role": "user", "content": "hi"}]


def test_a_chat(client: Client) -> None:
    found = client.chat(model="sim", messages=HI, max_tokens=5)
    assert found.usage.completion_tokens == 5
    assert text_of(found) == found.choices[0].message.content != ""
    message = types.ChatMessage(role=types.ROLE_USER, content="hi")
    again = client.chat(model="sim", messages=[message, found.choices[0].message], max_tokens=1)
    assert again.choices[0].finish_reason == types.FINISH_REASON_LENGTH


def test_streams(client: Client) -> None:
    with client.stream_chat(model="sim", messages=HI, max_tokens=5) as stream:
        assert stream.request_id
        chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 5
    pieces = list(client.stream_complete(model="sim", prompt="once", max_tokens=4))
    assert pieces[-1].usage.completion_tokens == 4


def test_the_rest(client: Client) -> None:
    assert client.complete(model="sim", prompt="once", max_tokens=3).usage.completion_tokens == 3
    vectors = client.embed(model="sim-embed", input=["a", "b"])
    assert [vector.index for vector in vectors.data] == [0, 1]
    assert len(client.embed(model="sim-embed", input="a").data) == 1
    assert {"sim", "tiny"} <= {model.id for model in client.models()}
    assert client.model("sim").id == "sim"


def test_documents_in_order(client: Client, upstream: ScriptedUpstream) -> None:
    ranked = [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
    ]
    upstream.script = lambda connection, _: connection.json(
        {"id": "r", "model": "x", "results": ranked, "usage": {"total_tokens": 7}}
    )
    found = client.rerank(
        model="plain", query="which?", documents=["a", "b"], top_n=2, return_documents=True
    )
    assert [(r.index, r.relevance_score, r.document.text) for r in found.results] == [
        (1, 0.9, "b"),
        (0, 0.1, "a"),
    ]
    assert found.usage.total_tokens == 7
    asked = upstream.only()
    assert asked.path == "/v1/rerank"
    sent = asked.json()
    assert (sent["query"], sent["documents"], sent["top_n"]) == ("which?", ["a", "b"], 2)
    assert sent["return_documents"] is True
    with pytest.raises(InvalidRequest):
        client.rerank(model="plain", query="which?", documents=[])


async def test_documents_in_order_with_asyncio(
    gateway: Gateway, key: Key, upstream: ScriptedUpstream
) -> None:
    upstream.script = lambda connection, _: connection.json(
        {"results": [{"index": 0, "relevance_score": 0.5}]}
    )
    async with AsyncClient(gateway.grpc, api_key=key.secret) as client:
        found = await client.rerank(model="plain", query="which?", documents=["a"])
    assert [(r.index, r.relevance_score) for r in found.results] == [(0, 0.5)]


async def test_asyncio(gateway: Gateway, key: Key) -> None:
    async with AsyncClient(gateway.grpc, api_key=key.secret) as client:
        found = await client.chat(model="sim", messages=HI, max_tokens=5)
        assert found.usage.completion_tokens == 5
        async with client.stream_chat(model="sim", messages=HI, max_tokens=5) as stream:
            assert await stream.request_id()
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage.completion_tokens == 5
        assert (await client.complete(model="sim", prompt="once", max_tokens=1)).choices
        assert len((await client.embed(model="sim-embed", input=["a", "b"])).data) == 2
        assert "sim" in {model.id for model in await client.models()}
        assert (await client.model("sim")).id == "sim"
        with pytest.raises(NotFound) as caught:
            await client.chat(model="nope", messages=HI)
        assert caught.value.kind == "model_not_found"
        with pytest.raises(NotFound):
            _ = [chunk async for chunk in client.stream_chat(model="nope", messages=HI)]


async def test_close_while_others_wait(
    gateway: Gateway, key: Key, upstream: ScriptedUpstream
) -> None:
    upstream.script = lambda connection, _: connection.hung_up()
    client = AsyncClient(gateway.grpc, api_key=key.secret)
    stream = client.stream_chat(model="plain", messages=HI)
    left = client.stream_chat(model="plain", messages=HI)
    calls = [
        asyncio.create_task(client.chat(model="plain", messages=HI)),
        asyncio.create_task(stream.__anext__()),
        asyncio.create_task(left.__anext__()),
    ]
    own = asyncio.create_task(client.chat(model="plain", messages=HI))
    await asyncio.sleep(0.5)
    own.cancel()
    left.close()
    await client.close()
    for call in calls:
        with pytest.raises(Cancelled):
            await call
    with pytest.raises(asyncio.CancelledError):
        await own


def test_what_an_engine_is_asked(
    gateway: Gateway, client: Client, upstream: ScriptedUpstream
) -> None:
    client.chat(
        model="tiny",
        messages=HI,
        temperature=0.5,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice="required",
        response_format={"type": "json_object"},
        extra={"top_k": 7},
        request_id="client-asked",
        tags={"team": "a", "env": "b"},
        metadata={"x-session-id": "s"},
    )
    asked = upstream.only().json()
    assert (asked["temperature"], asked["tool_choice"], asked["top_k"]) == (0.5, "required", 7)
    assert asked["response_format"] == {"type": "json_object"}
    row = gateway.usage(1, request_id="client-asked")[0]
    assert json.loads(row["tags"]) == {"team": "a", "env": "b"}


def test_errors_say_what_is_wrong(gateway: Gateway, client: Client) -> None:
    with pytest.raises(NotFound) as missing:
        client.chat(model="nope", messages=HI)
    error = missing.value
    assert (error.kind, error.reason, error.code) == (
        "model_not_found",
        "MODEL_NOT_FOUND",
        grpc.StatusCode.NOT_FOUND,
    )
    assert error.request_id
    assert error.request_id in str(error)
    with pytest.raises(InvalidRequest) as bad:
        client.chat(model="", messages=HI)
    assert bad.value.param == "model"
    with Client(gateway.grpc, api_key="fb-none") as other, pytest.raises(Unauthenticated):
        other.models()
    with Client(gateway.grpc, api_key="fb-none") as other, pytest.raises(Unauthenticated):
        list(other.stream_chat(model="sim", messages=HI))


def test_the_key_is_in_the_environment(
    gateway: Gateway, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(f"grpc://{gateway.grpc}") as client:
        monkeypatch.delenv("FOREBAY_API_KEY", raising=False)
        with pytest.raises(ValueError, match="FOREBAY_API_KEY"):
            client.models()
        monkeypatch.setenv("FOREBAY_API_KEY", key.secret)
        assert client.models()


def test_waits_that_are_worth_it(gateway: Gateway) -> None:
    key = gateway.key(rpm=120, rpm_burst=1)
    with Client(gateway.grpc, api_key=key.secret) as client:
        client.chat(model="sim", messages=HI, max_tokens=1)
        began = time.monotonic()
        client.chat(model="sim", messages=HI, max_tokens=1)
        assert time.monotonic() - began > 0.2, "it came back when it was told to"
    with Client(gateway.grpc, api_key=key.secret, retries=False) as client:
        with pytest.raises(RateLimited) as caught:
            client.chat(model="sim", messages=HI, max_tokens=1)
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after < 1


def test_what_no_wait_cures_is_told_at_once(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(rpm=1, rpm_burst=1)
    with Client(gateway.grpc, api_key=key.secret) as client:
        client.chat(model="tiny", messages=HI)
        began = time.monotonic()
        with pytest.raises(RateLimited) as caught:
            client.chat(model="tiny", messages=HI)
        assert time.monotonic() - began < 5
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 40
    assert not issubclass(RateLimited, BudgetExhausted)


def test_engines_that_fail_once(client: Client, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        if len(upstream.requests) == 1:
            connection.json({"error": {"message": "no"}}, 500)
        else:
            connection.json(answer())

    upstream.script = script
    assert text_of(client.chat(model="plain", messages=HI)) == "ok"


def test_a_stream_that_has_begun_is_not_tried_again(
    client: Client, upstream: ScriptedUpstream
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        time.sleep(0.1)
        connection.close()

    upstream.script = script
    stream = client.stream_chat(model="plain", messages=HI)
    assert next(stream).choices[0].delta.content == "a"
    with pytest.raises(Unavailable) as caught:
        list(stream)
    assert caught.value.kind == "upstream_error"
    assert len(upstream.requests) == 1


def test_leaving_a_stream_stops_the_engine(
    gateway: Gateway, client: Client, upstream: ScriptedUpstream
) -> None:
    gone = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        connection.hung_up()
        gone.set()

    upstream.script = script
    with client.stream_chat(model="tiny", messages=HI) as stream:
        assert next(stream)
    assert gone.wait(5)
    until(lambda: upstream.aborts, "the engine is told to stop")
    gateway.wait_idle()


def test_deadlines(client: Client, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.hung_up()

    upstream.script = script
    with pytest.raises(DeadlineExceeded):
        client.chat(model="tiny", messages=HI, timeout=0.3)


def test_nobody_there() -> None:
    with Client("127.0.0.1:1", api_key="fb-x", timeout=2) as client, pytest.raises(Error) as caught:
        client.models()
    assert caught.value.code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    assert caught.value.kind is None


@pytest.mark.parametrize("address", ["http://x:1", "ftp://x"])
def test_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        Client(address, api_key="fb-x")


def test_stream_is_a_method(client: Client) -> None:
    options: dict[str, Any] = {"stream": True}
    with pytest.raises(TypeError, match="stream_chat"):
        client.chat(model="tiny", messages=HI, **options)

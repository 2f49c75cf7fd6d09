"""OpenAI's Responses, as its SDK meets them: bridged over chat."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
SHELL: Any = {"type": "custom", "name": "shell", "description": "Runs a line."}


@pytest.fixture
def client(gateway: Gateway, key: Key) -> Iterator[OpenAI]:
    base = gateway.url + "/v1"
    with OpenAI(base_url=base, api_key=key.secret, max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture
async def aclient(gateway: Gateway, key: Key) -> AsyncIterator[AsyncOpenAI]:
    base = gateway.url + "/v1"
    async with AsyncOpenAI(base_url=base, api_key=key.secret, max_retries=0) as opened:
        yield opened


def says(upstream: ScriptedUpstream, message: dict[str, Any], reason: str = "stop") -> None:
    """Let the engine answer with this message."""

    def script(connection: Connection, _: Received) -> None:
        whole = {"role": "assistant", "content": None, **message}
        choice = {"index": 0, "message": whole, "finish_reason": reason}
        value = {**delta(""), "object": "chat.completion", "choices": [choice]}
        connection.json({**value, "usage": usage(7, 5)})

    upstream.script = script


def streams(upstream: ScriptedUpstream, deltas: list[dict[str, Any]], reason: str = "stop") -> None:
    """Let the engine stream these deltas."""

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        for one in deltas:
            chunk = delta("")
            chunk["choices"][0]["delta"] = one
            connection.event(chunk)
        connection.event(finish(reason))
        connection.event({**delta(""), "choices": [], "usage": usage(7, 5)})
        connection.event("[DONE]")
        connection.end()

    upstream.script = script


def checked(events: list[Any]) -> list[str]:
    """The events' types, once each is as the SDK's own types have it and numbered in order."""
    for number, event in enumerate(events):
        EVENT.validate_python(event.model_dump(warnings=False))
        assert event.sequence_number == number
    return [event.type.removeprefix("response.") for event in events]


# What works


def test_text(client: OpenAI) -> None:
    got = client.responses.create(
        model="sim",
        input="Say something.",
        max_output_tokens=8,
        temperature=0.5,
        metadata={"a": "b"},
    )
    assert got.output_text
    assert got.id.startswith("resp_")
    assert got.model == "sim"
    assert got.usage is not None
    assert 0 < got.usage.output_tokens <= 8
    assert (got.max_output_tokens, got.temperature, got.metadata) == (8, 0.5, {"a": "b"})
    assert got.error is None


async def test_async(aclient: AsyncOpenAI) -> None:
    got = await aclient.responses.create(model="sim", input="Say something.", max_output_tokens=8)
    events = await aclient.responses.create(
        model="sim", input="Say something.", max_output_tokens=8, stream=True
    )
    collected = [event async for event in events]
    checked(collected)
    assert collected[-1].response.output_text == got.output_text
    async with aclient.responses.stream(
        model="sim", input="Say something.", max_output_tokens=8
    ) as stream:
        async for _ in stream:
            pass


def test_stream(client: OpenAI) -> None:
    whole = client.responses.create(model="sim", input="Say something.", max_output_tokens=300)
    events = list(
        client.responses.create(
            model="sim", input="Say something.", max_output_tokens=300, stream=True
        )
    )
    types = checked(events)
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(types[4:-4]) == {"output_text.delta"}
    end = ["output_text.done", "content_part.done", "output_item.done"]
    assert types[-4:] == [*end, "completed" if whole.status == "completed" else "incomplete"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[0].response.id == events[-1].response.id
    assert events[-1].response.usage == whole.usage


def test_the_sdks_own_stream(client: OpenAI, upstream: ScriptedUpstream) -> None:
    streams(upstream, [{"content": "Hel"}, {"content": "lo"}])
    with client.responses.stream(model="tiny", input="x") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert deltas == ["Hel", "lo"]
    assert final.output_text == "Hello"
    assert final.usage is not None
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 5)


def test_the_engine_gets_a_chat(client: OpenAI, upstream: ScriptedUpstream) -> None:
    client.responses.create(
        model="tiny",
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Go on."},
        ],
        max_output_tokens=9,
        reasoning={"effort": "low"},
        text={"verbosity": "low"},
        extra_body={"top_k": 3, "chat_template_kwargs": {"a": 1}},
    )
    sent = upstream.requests[-1]
    assert sent.path == "/v1/chat/completions"
    body = sent.json()
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert body["messages"][0]["content"] == "Be brief."
    assert body["max_completion_tokens"] == 9
    assert body["reasoning_effort"] == "low"
    assert body["verbosity"] == "low"
    assert body["top_k"] == 3
    assert body["chat_template_kwargs"] == {"a": 1}
    assert not {"input", "instructions", "store", "max_output_tokens"} & body.keys()


class City(BaseModel):
    name: str


def test_structured_output(client: OpenAI, upstream: ScriptedUpstream) -> None:
    says(upstream, {"content": '{"name": "Oslo"}'})
    got = client.responses.parse(model="tiny", input="Which city?", text_format=City)
    assert got.output_parsed == City(name="Oslo")
    sent = upstream.requests[-1].json()["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["strict"] is True


def test_a_loop_of_tools(client: OpenAI, upstream: ScriptedUpstream) -> None:
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    says(
        upstream, {"tool_calls": [{"id": "c1", "type": "function", "function": call}]}, "tool_calls"
    )
    asked: Any = [{"role": "user", "content": "Weather in Oslo?"}]
    got = client.responses.create(model="tiny", input=asked, tools=[WEATHER])
    [item] = got.output
    assert item.type == "function_call"
    assert (item.name, item.call_id, json.loads(item.arguments)) == (
        "weather",
        "c1",
        {"city": "Oslo"},
    )
    says(upstream, {"content": "Sunny."})
    output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    after = client.responses.create(model="tiny", input=[*asked, item, output], tools=[WEATHER])
    assert after.output_text == "Sunny."
    messages = upstream.requests[-1].json()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[2] == {"role": "tool", "tool_call_id": "c1", "content": "sunny"}


def test_calls_are_streamed(client: OpenAI, upstream: ScriptedUpstream) -> None:
    begin = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    more = [{"index": 0, "function": {"arguments": part}} for part in ('{"city":', '"Oslo"}')]
    streams(upstream, [{"tool_calls": [call]} for call in (begin, *more)], "tool_calls")
    events = list(client.responses.create(model="tiny", input="x", tools=[WEATHER], stream=True))
    assert checked(events)[2:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[-3].arguments == '{"city":"Oslo"}'
    assert events[-1].response.output == [events[-2].item]


def test_custom_tools(client: OpenAI, upstream: ScriptedUpstream) -> None:
    function = {"name": "shell", "arguments": '{"input": "ls"}'}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    streams(upstream, [{"tool_calls": [call]}], "tool_calls")
    events = list(client.responses.create(model="tiny", input="x", tools=[SHELL], stream=True))
    assert checked(events)[2:6] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    [item] = events[-1].response.output
    assert (item.type, item.input) == ("custom_tool_call", "ls")
    sent = upstream.requests[-1].json()["tools"][0]["function"]
    assert sent["parameters"]["required"] == ["input"]


@pytest.mark.parametrize("summary", [None, "auto"])
def test_reasoning(client: OpenAI, upstream: ScriptedUpstream, summary: Any) -> None:
    streams(
        upstream, [{"reasoning_content": "Hm"}, {"reasoning_content": "."}, {"content": "Yes."}]
    )
    asked: Any = {"effort": "high"} | ({"summary": summary} if summary else {})
    events = list(client.responses.create(model="tiny", input="x", reasoning=asked, stream=True))
    kind = "reasoning_summary_text" if summary else "reasoning_text"
    added = "reasoning_summary_part.added" if summary else "content_part.added"
    assert checked(events)[2:6] == ["output_item.added", added, f"{kind}.delta", f"{kind}.delta"]
    thought, message = events[-1].response.output
    assert thought.type == "reasoning"
    said = thought.summary if summary else thought.content
    assert [part.text for part in said] == ["Hm."]
    assert message.content[0].text == "Yes."
    says(upstream, {"content": "Go."})
    client.responses.create(
        model="tiny", input=[*events[-1].response.output, {"role": "user", "content": "And?"}]
    )
    first = upstream.requests[-1].json()["messages"][0]
    assert (first["reasoning_content"], first["content"]) == ("Hm.", "Yes.")


def test_logprobs(client: OpenAI, upstream: ScriptedUpstream) -> None:
    one = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        chunk = delta("Hi")
        chunk["choices"][0]["logprobs"] = {"content": [one]}
        connection.event(chunk)
        connection.event(finish())
        connection.event("[DONE]")
        connection.end()

    upstream.script = script
    events = list(
        client.responses.create(
            model="tiny",
            input="x",
            include=["message.output_text.logprobs"],
            top_logprobs=2,
            stream=True,
        )
    )
    checked(events)
    sent = upstream.requests[-1].json()
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)
    [got] = events[-1].response.output[0].content[0].logprobs
    assert (got.token, got.logprob) == ("Hi", -0.5)


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_incomplete(client: OpenAI, upstream: ScriptedUpstream, reason: str, why: str) -> None:
    says(upstream, {"content": "Half"}, reason)
    got = client.responses.create(model="tiny", input="x")
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == why
    streams(upstream, [{"content": "Half"}], reason)
    events = list(client.responses.create(model="tiny", input="x", stream=True))
    assert checked(events)[-1] == "incomplete"
    assert events[-1].response.output[0].status == "incomplete"


def test_refusal(client: OpenAI, upstream: ScriptedUpstream) -> None:
    streams(upstream, [{"refusal": "No"}, {"refusal": "."}])
    events = list(client.responses.create(model="tiny", input="x", stream=True))
    assert "refusal.done" in checked(events)
    assert events[-1].response.output[0].content[0].refusal == "No."


# What is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": ["x", {"role": "user", "content": "x"}]},
            "input[0]",
        ),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "msg_none"}]}, "input[0].id"),
    ],
)
def test_refused_by_name(client: OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        client.post("/responses", body={"model": "sim", **body}, cast_to=object)
    assert failed.value.status_code in (400, 404)
    assert failed.value.body["param"] == param  # type: ignore[index]


def test_errors_of_admission(client: OpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="nope", input="x")
    assert missing.value.code == "model_not_found"
    with (
        OpenAI(base_url=gateway.url + "/v1", api_key="fb-wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.responses.create(model="sim", input="x")


def test_an_engines_refusal_names_the_clients_field(
    client: OpenAI, upstream: ScriptedUpstream
) -> None:
    def script(connection: Connection, _: Received) -> None:
        error = {"message": "max_completion_tokens is too large", "param": "max_completion_tokens"}
        connection.json({"error": {**error, "type": "BadRequestError", "code": 400}}, status=400)

    upstream.script = script
    with pytest.raises(openai.BadRequestError) as failed:
        client.responses.create(model="tiny", input="x", max_output_tokens=99)
    assert failed.value.param == "max_output_tokens"


def test_an_engine_that_dies_mid_stream(client: OpenAI, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("Half"))
        connection.close()

    upstream.script = script
    events = list(client.responses.create(model="tiny", input="x", stream=True))
    assert checked(events)[-2:] == ["error", "failed"]
    failed = events[-1].response
    assert failed.status == "failed"
    assert failed.error.code == "server_error"
    assert failed.output[0].content[0].text == "Half"


def test_a_stream_is_metered_as_chat_is(gateway: Gateway, client: OpenAI) -> None:
    rows = []
    for path, body in (
        ("/chat/completions", {"messages": [{"role": "user", "content": "Say something."}]}),
        ("/responses", {"input": "Say something."}),
    ):
        bound = {"max_tokens": 8} if path == "/chat/completions" else {"max_output_tokens": 8}
        answer = client._client.post(
            gateway.url + "/v1" + path,
            json={"model": "sim", "stream": True, **bound, **body},
            headers={"authorization": f"Bearer {client.api_key}"},
        )
        assert answer.status_code == 200
        rows.append(gateway.usage(1, request_id=answer.headers["x-request-id"])[0])
    first, second = rows
    for name in ("prompt_tokens", "completion_tokens", "outcome", "finish_reason", "source"):
        assert first[name] == second[name], name

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
    got: Any = client.responses.create(
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
    got: Any = await aclient.responses.create(
        model="sim", input="Say something.", max_output_tokens=8
    )
    events = await aclient.responses.create(
        model="sim", input="Say something.", max_output_tokens=8, stream=True
    )
    collected: list[Any] = [event async for event in events]
    checked(collected)
    assert collected[-1].response.output_text == got.output_text
    async with aclient.responses.stream(
        model="sim", input="Say something.", max_output_tokens=8
    ) as stream:
        async for _ in stream:
            pass


def test_stream(client: OpenAI) -> None:
    whole: Any = client.responses.create(model="sim", input="Say something.", max_output_tokens=300)
    events: list[Any] = list(
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
    got: Any = client.responses.parse(model="tiny", input="Which city?", text_format=City)
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
    got: Any = client.responses.create(model="tiny", input=asked, tools=[WEATHER])
    [item] = got.output
    assert item.type == "function_call"
    assert (item.name, item.call_id, json.loads(item.arguments)) == (
        "weather",
        "c1",
        {"city": "Oslo"},
    )
    says(upstream, {"content": "Sunny."})
    output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    after: Any = client.responses.create(
        model="tiny", input=[*asked, item, output], tools=[WEATHER]
    )
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
    events: list[Any] = list(
        client.responses.create(model="tiny", input="x", tools=[WEATHER], stream=True)
    )
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
    events: list[Any] = list(
        client.responses.create(model="tiny", input="x", tools=[SHELL], stream=True)
    )
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
    events: list[Any] = list(
        client.responses.create(model="tiny", input="x", reasoning=asked, stream=True)
    )
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
    events: list[Any] = list(
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
    got: Any = client.responses.create(model="tiny", input="x")
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == why
    streams(upstream, [{"content": "Half"}], reason)
    events: list[Any] = list(client.responses.create(model="tiny", input="x", stream=True))
    assert checked(events)[-1] == "incomplete"
    assert events[-1].response.output[0].status == "incomplete"


def test_refusal(client: OpenAI, upstream: ScriptedUpstream) -> None:
    streams(upstream, [{"refusal": "No"}, {"refusal": "."}])
    events: list[Any] = list(client.responses.create(model="tiny", input="x", stream=True))
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
    events: list[Any] = list(client.responses.create(model="tiny", input="x", stream=True))
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


# What came before


def test_a_chain(client: OpenAI, upstream: ScriptedUpstream) -> None:
    says(upstream, {"content": "One."})
    first: Any = client.responses.create(model="tiny", input="First?", instructions="Be brief.")
    assert first.store is True
    says(upstream, {"content": "Two."})
    second: Any = client.responses.create(
        model="tiny", input="Second?", previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    streams(upstream, [{"content": "Three."}])
    events: list[Any] = list(
        client.responses.create(
            model="tiny", input="Third?", previous_response_id=second.id, stream=True
        )
    )
    checked(events)
    assert events[-1].response.output_text == "Three."
    said = [(m["role"], m["content"]) for m in upstream.requests[-1].json()["messages"]]
    assert said == [
        ("user", "First?"),
        ("assistant", "One."),
        ("user", "Second?"),
        ("assistant", "Two."),
        ("user", "Third?"),
    ]
    # What is told as stored is there.
    again: Any = client.responses.retrieve(events[-1].response.id)
    assert again.output_text == "Three."
    listed = client.responses.input_items.list(second.id, order="asc")
    assert [item.type for item in listed] == ["message", "message", "message"]


def test_a_loop_of_tools_by_id(client: OpenAI, upstream: ScriptedUpstream) -> None:
    call = {"name": "weather", "arguments": "{}"}
    calls = [{"id": "c1", "type": "function", "function": call}]
    says(upstream, {"tool_calls": calls}, "tool_calls")
    got: Any = client.responses.create(model="tiny", input="Weather?", tools=[WEATHER])
    says(upstream, {"content": "Sunny."})
    after: Any = client.responses.create(
        model="tiny",
        previous_response_id=got.id,
        input=[{"type": "function_call_output", "call_id": "c1", "output": "sunny"}],
        tools=[WEATHER],
    )
    assert after.output_text == "Sunny."
    assert [m["role"] for m in upstream.requests[-1].json()["messages"]] == [
        "user",
        "assistant",
        "tool",
    ]


def test_items_by_reference(client: OpenAI, upstream: ScriptedUpstream) -> None:
    says(upstream, {"content": "One."})
    first: Any = client.responses.create(model="tiny", input="First?")
    says(upstream, {"content": "Two."})
    client.responses.create(
        model="tiny",
        input=[
            {"role": "user", "content": "First?"},
            {"type": "item_reference", "id": first.output[0].id},  # type: ignore[typeddict-item]
            {"role": "user", "content": "Second?"},
        ],
    )
    said = [m["content"] for m in upstream.requests[-1].json()["messages"]]
    assert said == ["First?", "One.", "Second?"]


def test_what_is_not_stored_is_not_found(
    client: OpenAI, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    says(upstream, {"content": "One."})
    kept = client.responses.create(model="tiny", input="x")
    loose = client.responses.create(model="tiny", input="x", store=False)
    other = gateway.key(account="another")
    with OpenAI(base_url=gateway.url + "/v1", api_key=other.secret, max_retries=0) as stranger:
        for who, name in ((client, loose.id), (client, "resp_none"), (stranger, kept.id)):
            with pytest.raises(openai.NotFoundError) as failed:
                who.responses.create(model="tiny", input="x", previous_response_id=name)
            assert failed.value.code == "previous_response_not_found"
            assert failed.value.param == "previous_response_id"


def test_a_fault_after_a_previous_response_is_numbered_as_the_client_counts(
    client: OpenAI, upstream: ScriptedUpstream
) -> None:
    says(upstream, {"content": "One."})
    first: Any = client.responses.create(model="tiny", input="First?")
    with pytest.raises(openai.BadRequestError) as failed:
        client.responses.create(
            model="tiny",
            previous_response_id=first.id,
            input=[{"role": "user", "content": "x"}, {"role": "nobody", "content": "x"}],  # type: ignore[list-item]
        )
    assert failed.value.param == "input[1].role"
    assert "input[1].role" in failed.value.message


# Upstreams that have Responses themselves


def own(output: list[dict[str, Any]], status: str = "completed", **more: Any) -> dict[str, Any]:
    """A response of the upstream's."""
    counts = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }
    base = {"id": "resp_own", "object": "response", "created_at": 1, "model": "tiny"}
    given = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None}
    told = {"store": False, "previous_response_id": None, "incomplete_details": None}
    ended = counts if status != "in_progress" else None
    return {**base, **given, **told, "status": status, "output": output, "usage": ended, **more}


SAID = {
    "id": "msg_own",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Found.", "annotations": [], "logprobs": []}],
}


def test_native(client: OpenAI, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.json(own([SAID]))

    upstream.script = script
    raw = client.responses.with_raw_response.create(
        model="native", input="Find it.", tools=[{"type": "web_search"}], metadata={"a": "b"}
    )
    got: Any = raw.parse()
    assert (got.id, got.output_text) == ("resp_own", "Found.")
    sent = upstream.requests[-1]
    assert sent.path == "/v1/responses"
    body = sent.json()
    assert body["model"] == "tiny"
    assert body["tools"] == [{"type": "web_search"}]
    assert body["store"] is False
    assert body["metadata"] == {"a": "b"}
    [row] = gateway.usage(1, request_id=raw.headers["x-request-id"])
    assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 5)
    assert (row["outcome"], row["source"]) == ("ok", "reported")


def test_a_native_stream_passes_as_it_is(
    client: OpenAI, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    name = f"resp_own{upstream.port}"

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        number = 0

        def event(kind: str, **fields: Any) -> None:
            nonlocal number
            value = {"type": f"response.{kind}", "sequence_number": number, **fields}
            connection.chunk(f"event: response.{kind}\ndata: {json.dumps(value)}\n\n".encode())
            number += 1

        begun = own([], "in_progress", id=name)
        event("created", response=begun)
        event("in_progress", response=begun)
        event("web_search_call.searching", item_id="ws_1", output_index=0)
        where = {"output_index": 1}
        empty = {**SAID, "content": [], "status": "in_progress"}
        event("output_item.added", item=empty, **where)
        at = {**where, "content_index": 0, "item_id": "msg_own"}
        event("content_part.added", part={**SAID["content"][0], "text": ""}, **at)  # type: ignore[index, dict-item]
        event("output_text.delta", delta="Found.", logprobs=[], obfuscation="x", **at)
        event("output_text.done", text="Found.", logprobs=[], **at)
        event("content_part.done", part=SAID["content"][0], **at)  # type: ignore[index]
        event("output_item.done", item=SAID, **where)
        event("completed", response=own([SAID], id=name))
        connection.end()

    upstream.script = script
    raw = client.responses.with_raw_response.create(model="native", input="Find it.", stream=True)
    events: list[Any] = list(raw.parse())
    types = [event.type.removeprefix("response.") for event in events]
    assert types[2] == "web_search_call.searching"
    assert types[-1] == "completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[5].model_extra == {"obfuscation": "x"}
    assert events[-1].response.id == name
    assert events[-1].response.model_extra["store"] is True
    [row] = gateway.usage(1, request_id=raw.headers["x-request-id"])
    assert (row["completion_tokens"], row["outcome"], row["finish_reason"]) == (5, "ok", "stop")
    # It goes on at another upstream, which has all of it.
    says(upstream, {"content": "Two."})
    client.responses.create(model="tiny", input="And?", previous_response_id=name)
    said = [m["content"] for m in upstream.requests[-1].json()["messages"]]
    assert said == ["Find it.", "Found.", "And?"]


def test_a_native_stream_that_dies(client: OpenAI, upstream: ScriptedUpstream) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        begun = own([], "in_progress")
        said = {"output_index": 0, "content_index": 0, "item_id": "msg_own", "delta": "Half"}
        for number, value in enumerate(
            (
                {"type": "response.created", "response": begun},
                {"type": "response.output_text.delta", "logprobs": [], **said},
            )
        ):
            connection.event({**value, "sequence_number": number})
        connection.close()

    upstream.script = script
    events: list[Any] = list(client.responses.create(model="native", input="x", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.output_text.delta",
        "error",
        "response.failed",
    ]
    assert [event.sequence_number for event in events] == [0, 1, 2, 3]
    assert events[-1].response.id == "resp_own"


def test_what_is_sealed_elsewhere_does_not_reach_an_upstream(
    client: OpenAI, upstream: ScriptedUpstream
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.json(own([SAID], id="resp_sealed"))

    upstream.script = script
    thoughts = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "gAAA"},
        {
            "type": "reasoning",
            "id": "rs_3",
            "summary": [],
            "encrypted_content": "anthropic-claude-v1:c2ln",
        },
    ]
    user = {"role": "user", "content": "x"}
    asked: Any = [user, *thoughts, user]
    client.responses.create(model="native", input=asked)
    body = upstream.requests[-1].json()
    assert body["input"] == [user, thoughts[1], user]
    assert body["include"] == ["reasoning.encrypted_content"]

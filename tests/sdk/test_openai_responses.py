"""OpenAI's SDK on the Responses API, of an engine that has chats alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.sdk.conftest import TOOL_PARAMETERS
from tests.support.processes import Gateway

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": TOOL_PARAMETERS,
    "strict": True,
}


class Reply(BaseModel):
    """What the model is to say."""

    answer: str
    score: int


@pytest.fixture
def client(base: str, secret: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base, api_key=secret, max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture
async def aclient(base: str, secret: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base, api_key=secret, max_retries=0) as opened:
        yield opened


def test_create(client: OpenAI) -> None:
    got = client.responses.create(model="sim", input="Say something.", store=False)
    assert got.status == "completed"
    assert got.output_text
    assert got.usage is not None
    assert got.usage.output_tokens > 0
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens


def test_stream(client: OpenAI) -> None:
    whole = client.responses.create(model="sim", input="Say something.", store=False)
    events = list(
        client.responses.create(model="sim", input="Say something.", store=False, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text
    assert last.response.usage is not None


def test_stream_helper(client: OpenAI) -> None:
    with client.responses.stream(model="sim", input="Say something.", store=False) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text


def test_structured_output(client: OpenAI) -> None:
    got = client.responses.parse(model="sim", input="x", text_format=Reply, store=False)
    assert isinstance(got.output_parsed, Reply)


def test_tools_and_back(client: OpenAI) -> None:
    got = client.responses.create(model="sim", input="/tool", tools=[TOOL], store=False)
    calls = [item for item in got.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["get_weather"]
    after: Any = [
        {"role": "user", "content": "/tool"},
        *(item.model_dump(exclude_none=True) for item in got.output),
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "Rain."},
    ]
    last = client.responses.create(model="sim", input=after, tools=[TOOL], store=False)
    assert last.output_text


def test_tools_stream(client: OpenAI) -> None:
    events = list(
        client.responses.create(model="sim", input="/tool", tools=[TOOL], store=False, stream=True)
    )
    deltas = "".join(
        event.delta for event in events if event.type == "response.function_call_arguments.delta"
    )
    (done,) = (e for e in events if e.type == "response.function_call_arguments.done")
    assert done.arguments == deltas == '{"city": "Paris"}'


def test_the_cap_makes_it_incomplete(client: OpenAI) -> None:
    got = client.responses.create(model="sim", input="/words 50", max_output_tokens=16, store=False)
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_is_kept(client: OpenAI) -> None:
    first = client.responses.create(model="sim", input="Say something.")
    second = client.responses.create(model="sim", input="And?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    items = [item.type for item in client.responses.input_items.list(second.id)]
    assert "message" in items
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


async def test_async(aclient: AsyncOpenAI) -> None:
    whole = await aclient.responses.create(model="sim", input="Say something.", store=False)
    stream = await aclient.responses.create(
        model="sim", input="Say something.", store=False, stream=True
    )
    text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
    assert text == whole.output_text


def test_errors(gateway: Gateway, base: str, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="sim", input="x", max_output_tokens=-1, store=False)
    assert caught.value.param == "max_output_tokens"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nope", input="x", store=False)
    with (
        OpenAI(base_url=base, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.responses.create(model="sim", input="x", store=False)
    key = gateway.key(rpm=6, rpm_burst=1)
    with OpenAI(base_url=base, api_key=key.secret, max_retries=0) as limited:
        limited.responses.create(model="sim", input="x", store=False)
        with pytest.raises(openai.RateLimitError):
            limited.responses.create(model="sim", input="x", store=False)

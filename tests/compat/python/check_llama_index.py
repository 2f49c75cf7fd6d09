"""LlamaIndex's OpenAI package against a running gateway; run by `make compat`."""

import asyncio
import os
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

BASE = os.environ["FOREBAY_COMPAT_URL"] + "/v1"
KEY = os.environ["FOREBAY_COMPAT_KEY"]
USER = [ChatMessage(role="user", content="Say something.")]


class Reply(BaseModel):
    """What the model is to say."""

    answer: str
    score: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def model(**settings: Any) -> OpenAI:
    # The package knows the context of OpenAI's models alone, so one's name is an alias here.
    return OpenAI(
        **{"model": "gpt-4o-mini", "api_base": BASE, "api_key": KEY, "max_retries": 0, **settings}
    )


def test_chat_and_stream() -> None:
    whole = model().chat(USER)
    assert whole.message.content
    pieces = [str(piece.delta or "") for piece in model().stream_chat(USER)]
    assert "".join(pieces) == whole.message.content


def test_complete() -> None:
    assert model().complete("Say something.").text


def test_async() -> None:
    async def run() -> None:
        whole = await model().achat(USER)
        stream = await model().astream_chat(USER)
        pieces = [str(piece.delta or "") async for piece in stream]
        assert "".join(pieces) == whole.message.content

    asyncio.run(run())


def test_tools() -> None:
    llm = model()
    tool = FunctionTool.from_defaults(get_weather)
    got = llm.chat_with_tools([tool], user_msg="/tool")
    (call,) = llm.get_tool_calls_from_response(got)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})


def test_structured_output() -> None:
    got = model().as_structured_llm(Reply).complete("x")
    assert isinstance(got.raw, Reply)


def test_errors() -> None:
    with pytest.raises(openai.AuthenticationError):
        model(api_key="sk-wrong").chat(USER)

"""LangChain's OpenAI package."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langchain_openai.chat_models import _client_utils
from pydantic import BaseModel, SecretStr

from tests.sdk.conftest import SGLANG_METADATA
from tests.support.processes import Gateway

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", autouse=True)
def _its_connections() -> Iterator[None]:
    """LangChain caches its connections and closes none: they go with the tests of this module."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        _client_utils._cached_sync_httpx_client.cache_clear()
        _client_utils._cached_async_httpx_client.cache_clear()
        gc.collect()


class Reply(BaseModel):
    """What the model is to say."""

    answer: str
    score: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


@pytest.fixture
def model(base: str, secret: str) -> ChatOpenAI:
    return ChatOpenAI(model="sim", base_url=base, api_key=SecretStr(secret), max_retries=0)


def test_invoke_and_stream(model: ChatOpenAI) -> None:
    whole = model.invoke("Say something.")
    assert isinstance(whole.content, str)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    total = AIMessageChunk(content="")
    for chunk in model.stream("Say something.", stream_usage=True):
        total += chunk
    assert total.content == whole.content
    assert total.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


async def test_async(model: ChatOpenAI) -> None:
    whole = await model.ainvoke("Say something.")
    pieces = [str(chunk.content) async for chunk in model.astream("Say something.")]
    assert "".join(pieces) == whole.content
    both = await model.abatch(["Say something.", "/uni"])
    assert both[0].content == whole.content


def test_tools_and_back(model: ChatOpenAI) -> None:
    bound = model.bind_tools([get_weather])
    ask = HumanMessage("/tool")
    got: Any = bound.invoke([ask])
    (call,) = got.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert bound.invoke([ask, got, result]).content
    streamed: Any = None
    for chunk in bound.stream([ask]):
        streamed = chunk if streamed is None else streamed + chunk
    assert [c["args"] for c in streamed.tool_calls] == [{"city": "Paris"}]


@SGLANG_METADATA
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: ChatOpenAI, method: Any) -> None:
    shaped = model.with_structured_output(Reply, method=method)
    if method == "json_schema":
        assert isinstance(shaped.invoke("x"), Reply)
        return
    # The engine calls the tool that it is forced to, with arguments of its own choice.
    raw: Any = model.with_structured_output(Reply, method=method, include_raw=True).invoke("x")
    assert raw["raw"].tool_calls or raw["raw"].invalid_tool_calls


def test_responses_api(base: str, secret: str) -> None:
    model = ChatOpenAI(
        model="sim", base_url=base, api_key=SecretStr(secret), use_responses_api=True, store=False
    )
    whole = model.invoke("Say something.")
    assert whole.text
    assert "".join(chunk.text for chunk in model.stream("Say something.")) == whole.text


def test_completions(base: str, secret: str) -> None:
    model = OpenAI(model="sim", base_url=base, api_key=SecretStr(secret), max_tokens=5)
    whole = model.invoke("Once upon")
    assert whole
    assert "".join(model.stream("Once upon")) == whole


async def test_embeddings(base: str, secret: str) -> None:
    model = OpenAIEmbeddings(
        model="sim-embed",
        base_url=base,
        api_key=SecretStr(secret),
        check_embedding_ctx_length=False,
    )
    vectors = model.embed_documents(["one", "two"])
    assert [len(vector) for vector in vectors] == [64, 64]
    assert await model.aembed_query("one") == pytest.approx(vectors[0], rel=1e-5)


def test_errors(gateway: Gateway, base: str) -> None:
    stranger = ChatOpenAI(model="sim", base_url=base, api_key=SecretStr("sk-x"), max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.invoke("x")
    key = gateway.key(rpm=6, rpm_burst=1)
    limited = ChatOpenAI(model="sim", base_url=base, api_key=SecretStr(key.secret), max_retries=0)
    limited.invoke("x")
    with pytest.raises(openai.RateLimitError):
        limited.invoke("x")

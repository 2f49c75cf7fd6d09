"""The requests of all methods, made of their arguments."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from forebay.client.build import build
from forebay.client.connection import CALL_OPTIONS, CallOptions
from forebay.grpc.v1 import inference_pb2 as pb

MessageLike = Mapping[str, Any] | pb.ChatMessage
ToolLike = Mapping[str, Any] | pb.Tool
Texts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""One text, several, one as token ids, or several as token ids."""


class ChatOptions(CallOptions, total=False):
    """Arguments of a chat beside model and messages, as OpenAI has them, and a call's own.

    extra: what engines take beside them, by its name in their JSON.
    """

    max_completion_tokens: int | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    stop: str | Sequence[str] | None
    tools: Iterable[ToolLike] | None
    tool_choice: str | Mapping[str, Any] | pb.ToolChoice | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, Any] | pb.ResponseFormat | None
    reasoning_effort: str | None
    stream_options: Mapping[str, Any] | pb.StreamOptions | None
    seed: int | None
    logprobs: bool | None
    top_logprobs: int | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    frequency_penalty: float | None
    presence_penalty: float | None
    user: str | None
    service_tier: str | None
    store: bool | None
    verbosity: str | None
    modalities: Sequence[str] | None
    audio: Mapping[str, Any] | pb.AudioOutput | None
    prediction: Mapping[str, Any] | pb.Prediction | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    safety_identifier: str | None
    extra: Mapping[str, Any] | None


class CompletionOptions(CallOptions, total=False):
    """Arguments of a completion beside model and prompt."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    stream_options: Mapping[str, Any] | pb.StreamOptions | None
    logprobs: int | None
    echo: bool | None
    suffix: str | None
    best_of: int | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    frequency_penalty: float | None
    presence_penalty: float | None
    user: str | None
    extra: Mapping[str, Any] | None


class EmbedOptions(CallOptions, total=False):
    """Arguments of embeddings beside model and input."""

    dimensions: int | None
    user: str | None
    extra: Mapping[str, Any] | None


class RerankOptions(CallOptions, total=False):
    """Arguments of a rerank beside model, query and documents."""

    top_n: int | None
    return_documents: bool | None
    user: str | None
    extra: Mapping[str, Any] | None


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], CallOptions]:
    """Arguments of the request, and those of the call."""
    mine = {name: value for name, value in values.items() if name not in CALL_OPTIONS}
    call = {name: value for name, value in values.items() if name in CALL_OPTIONS}
    return mine, cast("CallOptions", call)


def chat(
    model: str, messages: Iterable[MessageLike], values: Mapping[str, Any]
) -> pb.ChatCompletionRequest:
    """A conversation to answer."""
    return build(pb.ChatCompletionRequest, {"model": model, "messages": messages, **_known(values)})


def completion(model: str, prompt: Texts, values: Mapping[str, Any]) -> pb.CompletionRequest:
    """Texts to continue."""
    return build(pb.CompletionRequest, {"model": model, "prompt": prompt, **_known(values)})


def embed(model: str, input: Texts, values: Mapping[str, Any]) -> pb.EmbedRequest:
    """Texts to turn into vectors."""
    return build(pb.EmbedRequest, {"model": model, "input": input, **_known(values)})


def rerank(
    model: str, query: str, documents: Sequence[str], values: Mapping[str, Any]
) -> pb.RerankRequest:
    """Documents to put in order."""
    fixed = {"model": model, "query": query, "documents": documents}
    return build(pb.RerankRequest, {**fixed, **_known(values)})


def _known(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises: TypeError on `stream`, which is a method of its own here."""
    if "stream" in values:
        raise TypeError("stream: call stream_chat or stream_complete instead")
    return values

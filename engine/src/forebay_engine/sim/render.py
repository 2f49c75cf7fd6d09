"""JSON of answers, byte for byte in the field order of SGLang 0.5.23."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.text import Delta

DONE = b"data: [DONE]\n\n"


@lru_cache(maxsize=4096)
def quote(text: str) -> bytes:
    """A JSON string in UTF-8."""
    return json.dumps(text, ensure_ascii=False).encode()


def opt(text: str | int | None) -> bytes:
    """A JSON string, number or null."""
    if text is None:
        return b"null"
    return b"%d" % text if isinstance(text, int) else quote(text)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used. cached: None unless the server reports its cache."""

    prompt: int
    completion: int
    reasoning: int = 0
    cached: int | None = None

    def full(self) -> bytes:
        """As on chat answers and unary completions."""
        cached = b"null" if self.cached is None else b'{"cached_tokens":%d}' % self.cached
        thought = b'{"reasoning_tokens":%d}' % self.reasoning if self.reasoning else b"null"
        return (
            b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
            b'"prompt_tokens_details":%s,"reasoning_tokens":%d,"completion_tokens_details":%s}'
        ) % (
            self.prompt,
            self.prompt + self.completion,
            self.completion,
            cached,
            self.reasoning,
            thought,
        )

    def bare(self) -> bytes:
        """As on the last chunk of streamed completions: without what is null."""
        cached = b""
        if self.cached is not None:
            cached = b'"prompt_tokens_details":{"cached_tokens":%d},' % self.cached
        return (
            b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,%s"reasoning_tokens":%d}'
        ) % (self.prompt, self.prompt + self.completion, self.completion, cached, self.reasoning)


def metadata(tokens: int) -> bytes:
    """The `metadata` field of unary answers."""
    return (
        b'{"weight_version":"default","weight_versions":'
        b'[{"version":"default","start":0,"end":%d}]}' % tokens
    )


class ChatChunks:
    """Events of one choice of a streamed chat answer."""

    __slots__ = ("_content", "_head", "_tail", "id", "index", "model")

    def __init__(self, rid: str, created: int, model: str, index: int) -> None:
        self.id, self.model, self.index = rid, model, index
        self._head = (
            b'data: {"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,"choices":['
            % (quote(rid), created, quote(model))
        )
        self._content = b'%s{"index":%d,"delta":{"reasoning_content":null,"content":' % (
            self._head,
            index,
        )
        self._tail = b'},"logprobs":null,"finish_reason":null,"matched_stop":null}]'

    def role(self) -> bytes:
        """The first event of a choice."""
        return (
            b'%s{"index":%d,"delta":{"reasoning_content":null,"role":"assistant","content":""%s}\n\n'
            % (
                self._head,
                self.index,
                self._tail,
            )
        )

    def content(self, piece: str, usage: bytes = b"", logprobs: bytes = b"null") -> bytes:
        """A piece of the answer. `usage`: JSON for `continuous_usage_stats`, or empty."""
        extra = b',"usage":' + usage if usage else b""
        tail = self._tail
        if logprobs != b"null":
            tail = tail.replace(b'"logprobs":null', b'"logprobs":' + logprobs, 1)
        return b"%s%s%s%s}\n\n" % (self._content, quote(piece), tail, extra)

    def delta(self, delta: Delta, call_id: str | None, usage: bytes = b"") -> bytes:
        """A piece of a parsed answer."""
        if delta.kind == "content":
            return self.content(delta.text, usage)
        extra = b',"usage":' + usage if usage else b""
        if delta.kind == "reasoning":
            return b'%s{"index":%d,"delta":{"reasoning_content":%s%s%s}\n\n' % (
                self._head,
                self.index,
                quote(delta.text),
                self._tail,
                extra,
            )
        name = quote(delta.text) if delta.kind == "tool_name" else b"null"
        arguments = quote(delta.text) if delta.kind == "tool_args" else b'""'
        return (
            b'%s{"index":%d,"delta":{"role":null,"content":null,"reasoning_content":null,'
            b'"tool_calls":[{"id":%s,"index":%d,"type":"function","function":{"name":%s,'
            b'"arguments":%s}}]%s%s}\n\n'
        ) % (
            self._head,
            self.index,
            opt(call_id),
            delta.call,
            name,
            arguments,
            self._tail,
            extra or b',"usage":null',
        )

    def finish(self, index: int, reason: str, matched: int | str | None) -> bytes:
        """The event that ends choice `index`."""
        return (
            b'%s{"index":%d,"delta":{"reasoning_content":null},"logprobs":null,'
            b'"finish_reason":%s,"matched_stop":%s}]}\n\n'
        ) % (self._head, index, quote(reason), opt(matched))

    def usage(self, usage: Usage) -> bytes:
        """The event with the whole answer's usage."""
        return b'%s],"usage":%s}\n\n' % (self._head, usage.full())


class TextChunks:
    """Events of one choice of a streamed completion."""

    __slots__ = ("_head", "id", "index")

    def __init__(self, rid: str, created: int, model: str, index: int) -> None:
        self.id, self.index = rid, index
        self._head = (
            b'data: {"id":%s,"object":"text_completion","created":%d,"model":%s,"choices":['
            % (quote(rid), created, quote(model))
        )

    def piece(
        self,
        text: str,
        finish: str | None,
        matched: int | str | None,
        usage: bytes,
        logprobs: bytes = b"null",
    ) -> bytes:
        """A piece of the answer; the last one carries the finish reason."""
        return (
            b'%s{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s,"matched_stop":%s}],'
            b'"usage":%s}\n\n'
        ) % (
            self._head,
            self.index,
            quote(text),
            logprobs,
            opt(finish),
            opt(matched),
            usage or b"null",
        )

    def usage(self, usage: Usage) -> bytes:
        """The event with the whole answer's usage."""
        return b'%s],"usage":%s}\n\n' % (self._head, usage.bare())


def chat_choice(
    index: int,
    content: str,
    reasoning: str | None,
    calls: list[dict[str, Any]],
    logprobs: bytes,
    finish: str | None,
    matched: int | str | None,
) -> bytes:
    """One choice of a unary chat answer."""
    tools = b',"tool_calls":' + dump(calls) if calls else b""
    return (
        b'{"index":%d,"message":{"role":"assistant","content":%s,"reasoning_content":%s%s},'
        b'"logprobs":%s,"finish_reason":%s,"matched_stop":%s}'
    ) % (index, quote(content), opt(reasoning), tools, logprobs, opt(finish), opt(matched))


def text_choice(
    index: int, text: str, logprobs: bytes, finish: str | None, matched: int | str | None
) -> bytes:
    """One choice of a unary completion."""
    return b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s,"matched_stop":%s}' % (
        index,
        quote(text),
        logprobs,
        opt(finish),
        opt(matched),
    )


def whole(
    rid: str,
    kind: bytes,
    created: int,
    model: str,
    choices: list[bytes],
    usage: bytes,
    tokens: int,
) -> bytes:
    """A unary answer. `usage`: JSON, or empty to leave it out."""
    return b'{"id":%s,"object":"%s","created":%d,"model":%s,"choices":[%s]%s,"metadata":%s}' % (
        quote(rid),
        kind,
        created,
        quote(model),
        b",".join(choices),
        b',"usage":' + usage if usage else b"",
        metadata(tokens),
    )


def chat_logprobs(pieces: list[str], top: int) -> bytes:
    """`logprobs` of chat: the token itself at 0.0, then an exclamation mark far behind."""
    content = []
    for piece in pieces:
        one = {"token": piece, "bytes": list(piece.encode()), "logprob": 0.0}
        other = {"token": "!", "bytes": [33], "logprob": -35.78125}
        content.append({**one, "top_logprobs": [one, other][:top]})
    return dump({"content": content})


def text_logprobs(prompt: str, pieces: list[str], top: int) -> bytes:
    """`logprobs` of completions. `prompt`: echoed text, each character a token, or empty."""
    echoed = list(prompt)
    values: list[float | None] = [None if i == 0 else -35.78125 for i in range(len(echoed))]
    tops: list[dict[str, float] | None] = [
        None if i == 0 else {" Hello": 0.0} for i in range(len(echoed))
    ]
    values += [0.0] * len(pieces)
    tops += [{piece: 0.0} if top else None for piece in pieces]
    tokens = echoed + pieces
    offsets = [-1] * len(tokens)
    return dump(
        {
            "text_offset": offsets,
            "token_logprobs": values,
            "tokens": tokens,
            "top_logprobs": tops,
        }
    )


def vector(text: str, seed: int, dimensions: int) -> list[float]:
    """A vector of length 1 that depends on text and seed alone; half-precision values."""
    data = text.encode()
    values = []
    for i in range(dimensions):
        mixed = zlib.crc32(data, (seed * 0x9E3779B1 + i * 0x85EBCA6B) & 0xFFFFFFFF)
        values.append(mixed / 0x7FFFFFFF - 1.0)
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    packed = struct.pack(f"<{dimensions}e", *(value / norm for value in values))
    return list(struct.unpack(f"<{dimensions}e", packed))


def embeddings(vectors: list[list[float]], model: str, tokens: int, as_base64: bool) -> bytes:
    """The answer of `/v1/embeddings`."""
    data = []
    for index, values in enumerate(vectors):
        embedding: object = values
        if as_base64:
            embedding = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        data.append({"embedding": embedding, "index": index, "object": "embedding"})
    usage = Usage(tokens, 0).full()
    return b'{"data":%s,"model":%s,"object":"list","usage":%s}' % (dump(data), quote(model), usage)

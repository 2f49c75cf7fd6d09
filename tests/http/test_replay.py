"""Recorded exchanges with a real SGLang 0.5.23, replayed through the gateway in every chunking.

The table below says what becomes of each; a trace that is in no class or in two fails the suite.
"""

import itertools
import json
import random
import re
import zlib
from typing import Any

import pytest

from tests.support import traces
from tests.support.processes import Gateway, Key
from tests.support.traces import Trace
from tests.support.upstream import Connection, Received, ScriptedUpstream
from tests.support.wire import Answer, call, events


def names(listed: str) -> list[str]:
    """Names apart by white space."""
    return listed.split()


UNCHANGED = names("""
010-chat 011-chat-length 012-chat-logprobs 013-chat-n2 014-chat-stop-string
015-chat-rid-priority-extras 020-chat-stream 021-chat-stream-usage
022-chat-stream-continuous-usage 023-chat-stream-n2-usage 024-chat-stream-unicode
025-chat-stream-logprobs 026-chat-stream-length-one 027-chat-stream-keepalive-conn
030-completions 031-completions-stream 032-completions-stream-usage
033-completions-two-prompts-stream-usage 034-completions-echo-logprobs 128-chat-json-schema
129-expect-100-continue
137-abort-by-rid-prefix 138-dup-rid-first 142-chat-while-paused 146-chat-during-flush
148-chat-during-health 209-good-key 220-tool-call 221-tool-call-stream-usage
222-two-tool-calls-stream 223-two-tool-calls 224-tool-choice-required-stream 225-reasoning
226-reasoning-stream-usage 227-reasoning-not-separated-stream 228-cache-report
229-cache-report-stream-usage 301-running 308-higher-priority-evicts-queued 310-running
323-new-chat-during-drain 411-chunked-request-body 413-accept-encoding-gzip 600-embeddings
601-embeddings-batch 602-embeddings-token-ids 603-embeddings-base64 902-override-rid-header
""")
"""The client gets the engine's body byte for byte."""

USAGE_TAKEN_OUT = names("300-stream-interval-4-default-usage 320-stream-across-sigterm")
"""The engine was started to report usage always; the client did not ask for it."""

BROKEN_OFF = {
    "131-disconnect-stream-fin": "upstream_error",
    "135-abort-by-rid-stream": "upstream_error",
    "132-disconnect-stream-rst": "upstream_error",
    "700-stream-when-scheduler-killed": "upstream_error",
    "910-running-timeout-stream": "service_unavailable",
}
"""Streams that failed after their first token: an error event, by code, ends them."""

FAILED_EARLY = {
    "302-queued": "The request is aborted by a higher priority request.",
    "304-queue-full-stream": "The request queue is full.",
    "912-waiting-timeout-stream": "Request waiting timeout reached.",
}
"""200 streams whose first event is an error: a real 503."""

REFUSED_BY_ENGINE = {
    "102-chat-bad-role": ("messages[0]", "'role' must be one of"),
    "105-chat-bad-temperature": (None, "temperature must be a non-negative finite number"),
    "106-chat-bad-temperature-stream": (None, "temperature must be a non-negative finite number"),
    "108-chat-context-overflow": (None, "The input (920 tokens) is longer"),
    "109-chat-context-overflow-stream": (None, "The input (920 tokens) is longer"),
    "110-chat-max-tokens-over-context": (None, "limit."),
    "115-embeddings-on-generative": (None, "does not appear to be an embedding model"),
    "126-chat-bad-dp-rank": (None, "must be an integer"),
    "127-chat-dp-rank-out-of-range": (None, "out of range"),
    "139-dup-rid-second": (None, "Duplicate request ID"),
    "303-queue-full": (None, "The request queue is full."),
    "305-queue-full-completions": (None, "The request queue is full."),
    "604-embeddings-dimensions": (None, "matryoshka"),
    "605-embeddings-empty": (None, "Input cannot be empty"),
    "606-embeddings-overflow": (None, "The input (3600 tokens) is longer"),
    "911-waiting-timeout": (None, "Request waiting timeout reached."),
    "913-running-timeout": (None, "Request running timeout reached."),
}
"""The engine's error with its status, in OpenAI's shape: param and a part of the message."""

NO_ANSWER = names("""
136-abort-by-rid-nonstream 608-chat-on-embedding 701-nonstream-when-scheduler-killed
""")
"""The engine closed the connection without a byte, or says in its answer that it gave up: 502."""

REFUSED_BY_GATEWAY = {
    "914-token-id-out-of-vocab": (400, "invalid_value", "prompt"),
    "016-chat-no-model-field": (400, "missing_required_parameter", "model"),
    "100-chat-bad-json": (400, "invalid_json", None),
    "101-chat-missing-messages": (400, "missing_required_parameter", "messages"),
    "103-chat-empty-messages": (400, "empty_array", "messages"),
    "104-chat-wrong-content-type": (400, "unsupported_content_type", "content-type"),
    "107-chat-negative-max-tokens": (400, "invalid_value", "max_tokens"),
    "111-chat-unknown-model": (404, "model_not_found", "model"),
    "112-chat-lora-suffix-model": (404, "model_not_found", "model"),
    "118-completions-missing-prompt": (400, "missing_required_parameter", "prompt"),
    "200-no-key-401": (401, "missing_api_key", None),
    "201-wrong-key-401": (401, "invalid_api_key", None),
    "412-gzip-request-body": (400, "invalid_json", None),
}
"""Never reaches the engine: status, code, param."""

CLASSES: list[list[str]] = [
    UNCHANGED,
    USAGE_TAKEN_OUT,
    list(BROKEN_OFF),
    list(FAILED_EARLY),
    list(REFUSED_BY_ENGINE),
    NO_ANSWER,
    list(REFUSED_BY_GATEWAY),
]

CHUNKINGS = ["whole", "http-chunks", "bytes", "byte-chunks", "random-1", "random-2", "random-3"]


def test_every_trace_is_in_one_class() -> None:
    listed = [name for names in CLASSES for name in names]
    assert sorted(listed) == traces.all_names()


def pieces(trace: Trace, chunking: str) -> list[bytes]:
    """The engine's bytes as they are written, one piece a write."""
    head, _, body = trace.answer.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    if chunking == "bytes" and len(trace.answer) <= 4096:
        return [trace.answer[i : i + 1] for i in range(len(trace.answer))]
    if chunking == "http-chunks" and trace.chunked:
        framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in trace.chunks]
        rest = body[sum(map(len, framed)) :]
        return [piece for piece in (head, *framed, rest) if piece]
    if chunking == "byte-chunks" and trace.chunked:
        # The HTTP chunks themselves hold a byte each.
        content = trace.content
        framed_bytes = b"".join(b"1\r\n%c\r\n" % byte for byte in content)
        ended = b"0\r\n\r\n" if body.endswith(b"0\r\n\r\n") else b""
        return [head + framed_bytes + ended]
    if chunking.startswith(("random", "bytes")):
        random_ = random.Random(f"{chunking} {trace.name}")
        found, rest = [], trace.answer
        while rest:
            size = random_.choice([1, 2, 3, 7, 40, 200, 900])
            found.append(rest[:size])
            rest = rest[size:]
        return found
    return [trace.answer]


def replay(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, chunking: str = "whole"
) -> tuple[Trace, Answer]:
    """Send the recorded request; the engine answers what it answered then."""
    trace = traces.load(name)
    assert trace is not None
    parts = pieces(trace, chunking)
    whole = trace.answer.endswith(b"0\r\n\r\n") if trace.chunked else bool(trace.answer)

    def script(connection: Connection, _: Received) -> None:
        connection.pieces(parts)
        if not whole:
            connection.close()

    upstream.script = script
    lines = [f"POST {trace.path} HTTP/1.1", "host: gateway.test", *trace.head, "connection: close"]
    if name == "201-wrong-key-401":
        lines.append("authorization: Bearer nope")
    elif name != "200-no-key-401":
        lines.append(f"authorization: Bearer {key.secret}")
    return trace, call(gateway.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + trace.body)


def client_json(trace: Trace) -> Any:
    """The client's body; the one chunked request has a single chunk."""
    if trace.name == "411-chunked-request-body":
        return json.loads(trace.body.split(b"\r\n")[1])
    return json.loads(trace.body)


def check_nothing_leaks(answer: Answer) -> None:
    shown = answer.body.lower() + repr(answer.headers).lower().encode()
    for secret in (
        b"sglang",
        b"/opt/",
        b".py",
        b"traceback",
        b"127.0.0.1",
        b"uvicorn",
        b"pydantic",
    ):
        assert secret not in shown, answer


def check_forwarded(trace: Trace, upstream: ScriptedUpstream) -> None:
    """The engine got the client's request, but for what the gateway must add."""
    sent, received = client_json(trace), upstream.only().json()
    assert received.pop("rid", None) != sent.pop("rid", "none")
    options, asked = received.pop("stream_options", None), sent.pop("stream_options", {})
    if "priority" in sent:
        # Whose turn it is the gateway decides.
        sent["priority"] = None
    assert received == sent
    if sent.get("stream"):
        assert options["include_usage"] is True
        assert {**options, **asked} == options
    else:
        assert options is None


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("name", UNCHANGED)
def test_success_is_byte_for_byte(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, chunking: str
) -> None:
    trace, answer = replay(gateway, upstream, key, name, chunking)
    assert answer.status == 200
    assert answer.complete
    assert answer.body == trace.content
    assert len(answer.body) > 100
    if trace.chunked:
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert answer.body.endswith(b"data: [DONE]\n\n")
    check_forwarded(trace, upstream)


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("name", USAGE_TAKEN_OUT)
def test_usage_that_nobody_asked_for_is_taken_out(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, chunking: str
) -> None:
    trace, answer = replay(gateway, upstream, key, name, chunking)
    recorded = trace.content.split(b"\n\n")
    kept = [event for event in recorded if b'"choices":[]' not in event]
    assert len(kept) == len(recorded) - 1
    assert b'"usage":{' not in b"\n\n".join(kept)
    assert answer.status == 200
    assert answer.complete
    assert answer.body == b"\n\n".join(kept)
    row = gateway.usage_of(answer)
    found = re.search(
        rb'"usage":\{"prompt_tokens":(\d+),.*"completion_tokens":(\d+)', trace.content
    )
    assert found is not None
    counted = (row["prompt_tokens"], row["completion_tokens"])
    assert counted == (int(found.group(1)), int(found.group(2)))
    assert row["source"] == "reported"


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_stream_that_breaks_off_ends_in_an_error_event(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, chunking: str
) -> None:
    trace, answer = replay(gateway, upstream, key, name, chunking)
    all_of_it = trace.content.split(b"\n\n")
    told = itertools.takewhile(lambda e: b'"finish_reason":"abort"' not in e, all_of_it)
    good = [event for event in told if event.startswith(b'data: {"id"')]
    assert len(good) >= 4
    assert answer.status == 200
    assert answer.complete
    prefix = b"".join(event + b"\n\n" for event in good)
    assert answer.body.startswith(prefix)
    last = events(answer.body[len(prefix) :])
    assert len(last) == 1
    error = json.loads(last[0])
    assert list(error) == ["error"]
    assert error["error"]["code"] == BROKEN_OFF[name]
    assert b"[DONE]" not in answer.body
    check_nothing_leaks(answer)
    assert gateway.usage_of(answer)["outcome"] == "upstream_cut"


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("name", FAILED_EARLY)
def test_an_error_before_the_first_token_is_a_real_error(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, chunking: str
) -> None:
    trace, answer = replay(gateway, upstream, key, name, chunking)
    assert trace.status == 200
    assert answer.brief() == (503, "service_unavailable_error", "service_unavailable", None)
    assert answer.error()["message"] == FAILED_EARLY[name]
    assert int(answer.header("retry-after") or 0) >= 1
    assert answer.header("content-type") == "application/json"


@pytest.mark.parametrize("chunking", ["whole", "bytes"])
@pytest.mark.parametrize("name", REFUSED_BY_ENGINE)
def test_the_engines_refusal_is_rendered_anew(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str, chunking: str
) -> None:
    trace, answer = replay(gateway, upstream, key, name, chunking)
    upstream.only()
    param, text = REFUSED_BY_ENGINE[name]
    assert answer.status == trace.status
    error = answer.error()
    assert text in error["message"]
    assert error["param"] == param
    assert error["type"] == (
        "invalid_request_error" if trace.status == 400 else "service_unavailable_error"
    )
    assert (answer.header("retry-after") is not None) == (trace.status == 503)
    check_nothing_leaks(answer)


@pytest.mark.parametrize("name", NO_ANSWER)
def test_an_engine_that_dies_is_a_bad_gateway(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str
) -> None:
    _, answer = replay(gateway, upstream, key, name)
    upstream.only()
    assert answer.brief() == (502, "server_error", "upstream_error", None)
    check_nothing_leaks(answer)


@pytest.mark.parametrize("name", REFUSED_BY_GATEWAY)
def test_what_the_gateway_can_refuse_never_reaches_the_engine(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, name: str
) -> None:
    _, answer = replay(gateway, upstream, key, name)
    status, code, param = REFUSED_BY_GATEWAY[name]
    assert answer.brief() == (status, "invalid_request_error", code, param)
    assert upstream.requests == []
    check_nothing_leaks(answer)


def test_gzip_is_what_it_was_recorded_as() -> None:
    """The refused gzip body is a good one: it is refused for being compressed."""
    trace = traces.load("412-gzip-request-body")
    assert trace is not None
    assert json.loads(zlib.decompress(trace.body, 31))["model"] == "tiny"

"""Each kind through a running gateway, against its simulator: chat, streams, tools, usage, keys.

What fails, breaks off, starts and ends is in `test_conformance_failures.py`. `COVERED` says which
test shows each column of the matrix in docs/upstreams.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.simulated import TARGETS
from tests.support.wire import CHAT
from tests.upstreams import test_conformance_failures as failures
from tests.upstreams.house import COLD, CONTINUES, HELLO, House, seen
from tests.upstreams.test_documents import FEATURES, NAMES, cell

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Says the {what}.",
            "parameters": {"type": "object", "properties": {field: {"type": "string"}}},
        },
    }
    for name, what, field in (("get_weather", "weather", "city"), ("get_time", "time", "tz"))
]
ROME = {"city": "Rome"}
CET = {"tz": "CET"}

everywhere = pytest.mark.parametrize("target", TARGETS)


# Chat, streams, tools


@everywhere
def test_chat(house: House, target: str) -> None:
    for content in ("hi", "/words 30", "/uni"):
        answer = house.ask(target, content)
        assert answer.status == 200, answer.body
        value = answer.json()
        assert value["object"] == "chat.completion"
        assert value["model"] in (target, TARGETS[target].model, TARGETS[target].served)
        (choice,) = value["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == house.text(content)
        assert choice["finish_reason"] == "stop"


@everywhere
def test_a_conversation(house: House, target: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": [{"type": "text", "text": "/words 12"}]},
    ]
    body = {"messages": messages, "temperature": 0.5, "max_tokens": 8}
    answer = house.gateway.call(CHAT, {"model": target, **body}, key=house.key.secret)
    same = house.gateway.call(CHAT, {"model": "sglang", **body}, key=house.key.secret)
    assert answer.status == 200, answer.body
    choice, wanted = answer.json()["choices"][0], same.json()["choices"][0]
    assert choice["message"]["content"] == wanted["message"]["content"]
    assert choice["finish_reason"] == "length"


@everywhere
def test_stream(house: House, target: str) -> None:
    for content in ("hi", "/words 30", "/uni"):
        got = house.stream(target, content)
        assert got.answer.status == 200, got.answer.body
        assert got.answer.complete
        assert got.text == house.text(content)
        assert (got.reason, got.error, got.done) == ("stop", None, True)


@everywhere
def test_reasoning_is_kept_apart(house: House, target: str) -> None:
    answer = house.ask(target, "/think")
    message = answer.json()["choices"][0]["message"]
    shown = message.get("reasoning_content", message.get("reasoning"))
    if shown is not None:
        assert shown == " First I reason."
    assert message["content"] == " Then I conclude!"


def named(calls: list[list[str]]) -> list[tuple[str, Any]]:
    assert all(identity for identity, _, _ in calls)
    assert len({identity for identity, _, _ in calls}) == len(calls)
    return [(name, json.loads(arguments)) for _, name, arguments in calls]


@everywhere
def test_tool_calls(house: House, target: str) -> None:
    wanted = {"/tool": [("get_weather", {"city": "Paris"})]}
    wanted["/two"] = [("get_weather", ROME), ("get_time", CET)]
    for content, calls in wanted.items():
        value = house.ask(target, content, tools=TOOLS).json()
        (choice,) = value["choices"]
        assert choice["finish_reason"] == "tool_calls"
        made = [
            [call["id"], call["function"]["name"], call["function"]["arguments"]]
            for call in choice["message"]["tool_calls"]
        ]
        assert named(made) == calls
        got = house.stream(target, content, tools=TOOLS)
        assert named([got.calls[i] for i in sorted(got.calls)]) == calls
        assert (got.reason, got.error, got.done) == ("tool_calls", None, True)


@everywhere
def test_tool_results_go_back(house: House, target: str) -> None:
    value = house.ask(target, "/two", tools=TOOLS).json()
    message = value["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "12"}
        for call in message["tool_calls"]
    ]
    spoken = {"role": "assistant", "tool_calls": message["tool_calls"]}
    messages = [{"role": "user", "content": "/two"}, spoken, *results]
    messages.append({"role": "user", "content": "and now?"})
    body = {"model": target, "messages": messages, "tools": TOOLS}
    answer = house.gateway.call(CHAT, body, key=house.key.secret)
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["message"]["content"] == HELLO


@everywhere
def test_a_tool_that_is_asked_for_by_name(house: House, target: str) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    got = house.stream(target, "hi", tools=TOOLS, tool_choice=choice)
    assert [name for _, name, _ in got.calls.values()] == ["get_time"]
    assert got.done


# Usage


@everywhere
@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_what_the_provider_counts(house: House, target: str, stream: bool) -> None:
    content = f"{target} {stream} " + "x" * 1200
    for turn in range(2):
        answer = house.ask(target, content, stream=stream)
        assert answer.status == 200
        record = house.sims[target].last()
        row = house.gateway.usage_of(answer)
        counted = (row["prompt_tokens"], row["completion_tokens"])
        assert counted == (record["prompt_tokens"], record["completion_tokens"])
        assert (row["source"], row["outcome"], row["upstream"]) == ("reported", "ok", target)
        if turn and TARGETS[target].kind not in ("tgi", "together", "openai_compatible"):
            assert row["cached_tokens"] > 200


@everywhere
def test_usage_in_a_stream_is_for_who_asks(house: House, target: str) -> None:
    asked = house.stream(target)
    assert asked.usage is not None
    record = house.sims[target].last()
    assert asked.usage["prompt_tokens"] == record["prompt_tokens"]
    assert asked.usage["completion_tokens"] == record["completion_tokens"]
    assert asked.usage["total_tokens"] == sum(
        record[name] for name in ("prompt_tokens", "completion_tokens")
    )
    silent = seen(house.ask(target, stream=True))
    assert silent.done
    if TARGETS[target].kind != "fireworks":  # there it is in the chunk with the finish reason
        assert silent.usage is None


# Credentials


@everywhere
def test_credentials_are_sent_and_the_clients_are_not(house: House, target: str) -> None:
    assert house.ask(target).status == 200  # each simulator checks its own
    record = house.sims[target].last()
    headers = dict(record["headers"])
    carried = {
        "azure": "api-key",
        "anthropic": "x-api-key",
        "gemini": "x-goog-api-key",
        "modal": "modal-secret",
    }
    kind = TARGETS[target].kind
    if kind != "trtllm":
        name = "authorization" if target == "gemini-openai" else carried.get(kind, "authorization")
        assert headers[name]
    assert house.key.secret not in json.dumps(record)


# The matrix


COVERED: dict[str, Callable[..., None]] = {
    "chat": test_chat,
    "stream": test_stream,
    "tools": test_tool_calls,
    "usage": test_usage_is_what_the_provider_counts,
    "auth": test_credentials_are_sent_and_the_clients_are_not,
    "errors": failures.test_errors,
    "hang-up": failures.test_hanging_up,
    "end marker": failures.test_a_stream_that_breaks_is_an_error,
    "cold start": failures.test_a_cold_start,
    "health": failures.test_health,
    "continuation": failures.test_a_stream_is_carried_on,
    "embeddings": failures.test_embeddings,
}


def uncovered() -> list[tuple[str, str]]:
    """Kinds and features of the matrix that are promised and that no test here shows."""
    shown: dict[str, tuple[str, ...]] = {"cold start": COLD, "continuation": CONTINUES}
    with_embeddings = tuple(t.kind for t in TARGETS.values() if t.embeddings)
    missing = []
    for kind in NAMES:
        for feature in FEATURES:
            text = cell(kind, feature)
            if text.startswith(("no", "\N{EN DASH}", "if set")):
                continue  # the matrix says why
            kinds = shown.get(feature, tuple(t.kind for t in TARGETS.values()))
            if feature == "embeddings":
                kinds = with_embeddings
            if feature not in COVERED or kind not in kinds:
                missing.append((kind, feature))
    return missing


def test_every_promise_of_the_matrix_has_its_test() -> None:
    assert uncovered() == []

"""Chats, completions, tools and reasoning of a real engine, and what is counted, at both doors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine_real.asking import Door, Said
from tests.engine_real.conftest import Pair
from tests.engine_real.scripts import HELLO, LOOP, NUMBERS, THINK, TOOL, TWO_TOOLS, UNICODE, Script
from tests.support.processes import Gateway
from tests.support.wire import CHAT, COMPLETIONS, Client, chat, request

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "what a test asks for",
            "parameters": {
                "type": "object",
                "properties": {field: {"type": "string"}},
                "required": [field],
            },
        },
    }
    for name, field in (("get_weather", "city"), ("get_time", "tz"))
]
COLD: dict[str, Any] = {"temperature": 0}


def in_order(pieces: Sequence[str], texts: Sequence[str]) -> None:
    """Each piece is one of the texts, or some in a row that the engine gave out together."""
    left = list(texts)
    for piece in pieces:
        whole = ""
        while len(whole) < len(piece):
            assert left, f"{piece!r} comes after the end"
            whole += left.pop(0)
        assert piece == whole
    assert not left, f"missing: {left}"


_counted: dict[tuple[str, str], tuple[int, int]] = {}


def own_usage(pair: Pair, path: str, body: dict[str, Any]) -> tuple[int, int]:
    """What the engine counts for a request of its own. Asked once for the same."""
    which = path, json.dumps(body)
    if which not in _counted:
        answer = pair.a.call(path, body)
        assert answer.status == 200, answer.body
        usage = answer.json()["usage"]
        _counted[which] = usage["prompt_tokens"], usage["completion_tokens"]
    return _counted[which]


def booked(gateway: Gateway, said: Said) -> dict[str, Any]:
    """The one row of a request."""
    return gateway.usage(1, request_id=said.request_id)[0]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("script", [HELLO, UNICODE, NUMBERS], ids=lambda script: script.name)
def test_a_chat_is_the_known_text_and_counted_as_the_engine_does(
    both: Pair, house: Gateway, door: Door, script: Script
) -> None:
    prompt = "hi" if script is HELLO else f"/{script.name} é日本"
    said = door.whole("on-a", prompt, **COLD)
    assert said.text == script.text
    assert said.finish == "stop"
    usage = own_usage(both, CHAT, chat("tiny", prompt, **COLD))
    assert usage[1] == script.tokens
    assert said.usage == usage
    row = booked(house, said)
    assert (row["prompt_tokens"], row["completion_tokens"]) == usage
    assert (row["outcome"], row["upstream"], row["front"]) == ("ok", "a", door.name)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("script", [HELLO, UNICODE, NUMBERS], ids=lambda script: script.name)
def test_every_delta_of_a_stream_is_the_known_text(
    both: Pair, house: Gateway, door: Door, script: Script
) -> None:
    prompt = "hi" if script is HELLO else f"/{script.name}"
    with door.stream("on-a", prompt, **COLD) as stream:
        said = stream.rest()
    in_order(said.pieces, script.texts)
    assert said.finish == "stop"
    usage = own_usage(both, CHAT, chat("tiny", prompt, **COLD))
    assert said.usage == usage
    row = booked(house, said)
    assert (row["prompt_tokens"], row["completion_tokens"]) == usage
    assert row["outcome"] == "ok"


@pytest.mark.usefixtures("known")
def test_a_stream_shows_no_usage_that_was_not_asked_for(
    both: Pair, house: Gateway, house_key: Any
) -> None:
    body = chat("on-a", "hi", stream=True, **COLD)
    with Client(house.port) as client:
        answer = client.send(request(CHAT, body, key=house_key.secret)).answer()
    assert answer.data()[-1] == "[DONE]"
    assert b'"usage":{' not in answer.body
    assert house.usage_of(answer)["completion_tokens"] == HELLO.tokens


@pytest.mark.usefixtures("known")
def test_a_bound_ends_an_answer(both: Pair, house: Gateway, door: Door) -> None:
    for cap in (1, 7):
        with door.stream("on-a", f"/{LOOP.name}", max_tokens=cap, **COLD) as stream:
            said = stream.rest()
        assert said.text == (LOOP.text * cap)[: len(said.text)]
        assert (said.finish, said.usage and said.usage[1]) == ("length", cap)
        assert booked(house, said)["completion_tokens"] == cap


@pytest.mark.usefixtures("known")
def test_a_stop_text(both: Pair, house: Gateway, door: Door) -> None:
    said = door.whole("on-a", f"/{NUMBERS.name}", stop=[" n005"], **COLD)
    assert said.text == "".join(NUMBERS.texts[:4])
    assert said.finish == "stop"


@pytest.mark.usefixtures("known")
def test_completions(both: Pair, house: Gateway, door: Door) -> None:
    prompt = "count:" + "".join(NUMBERS.texts[:10])
    fields: dict[str, Any] = {"max_tokens": 12, **COLD}
    usage = own_usage(both, COMPLETIONS, {"model": "tiny", "prompt": prompt, **fields})
    expected = NUMBERS.texts[10:22]
    whole = door.whole("on-a", prompt, legacy=True, **fields)
    assert (whole.text, whole.finish, whole.usage) == ("".join(expected), "length", usage)
    with door.stream("on-a", prompt, legacy=True, **fields) as stream:
        said = stream.rest()
    in_order(said.pieces, expected)
    assert (said.finish, said.usage) == ("length", usage)
    for one in (whole, said):
        row = booked(house, one)
        assert (row["prompt_tokens"], row["completion_tokens"]) == usage


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("script", "calls"),
    [
        (TOOL, [("get_weather", {"city": "Paris"})]),
        (TWO_TOOLS, [("get_weather", {"city": "Rome"}), ("get_time", {"tz": "CET"})]),
    ],
    ids=["one", "two"],
)
def test_tools(
    both: Pair,
    house: Gateway,
    door: Door,
    streams: bool,
    script: Script,
    calls: list[tuple[str, dict[str, str]]],
) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, **COLD}
    if streams:
        with door.stream("on-a", f"/{script.name}", **fields) as stream:
            said = stream.rest()
    else:
        said = door.whole("on-a", f"/{script.name}", **fields)
    assert [(name, json.loads(arguments)) for name, arguments in said.tools] == calls
    assert said.finish == "tool_calls"
    assert said.text.strip() == ""
    usage = own_usage(both, CHAT, chat("tiny", f"/{script.name}", **fields))
    assert said.usage == usage
    assert booked(house, said)["completion_tokens"] == usage[1]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("streams", [False, True])
def test_reasoning(both: Pair, house: Gateway, door: Door, streams: bool) -> None:
    if streams:
        with door.stream("on-a", f"/{THINK.name}", **COLD) as stream:
            said = stream.rest()
        in_order(said.thoughts, THINK.texts[1:3])
        in_order(said.pieces, THINK.texts[4:])
    else:
        said = door.whole("on-a", f"/{THINK.name}", **COLD)
    assert said.thought == "".join(THINK.texts[1:3])
    assert said.text == "".join(THINK.texts[4:])
    assert said.usage is not None
    assert said.usage[1] == THINK.tokens
    assert booked(house, said)["completion_tokens"] == THINK.tokens


def test_any_model_answers(both: Pair, house: Gateway, door: Door) -> None:
    """What holds whatever the model is."""
    fields: dict[str, Any] = {"max_tokens": 16, **COLD}
    own = both.a.call(CHAT, chat("tiny", "Say hello.", **fields)).json()
    with door.stream("on-a", "Say hello.", **fields) as stream:
        said = stream.rest()
    assert said.text == (own["choices"][0]["message"]["content"] or "")
    assert said.finish == own["choices"][0]["finish_reason"]
    usage = own["usage"]["prompt_tokens"], own["usage"]["completion_tokens"]
    assert said.usage == usage
    row = booked(house, said)
    assert (row["prompt_tokens"], row["completion_tokens"]) == usage

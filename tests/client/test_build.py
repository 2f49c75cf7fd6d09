"""Plain values become messages."""

from typing import Any

import pytest
from forebay.client import requests, types
from google.protobuf.json_format import MessageToDict

USER = [{"role": "user", "content": "hi"}]


def chat(**values: Any) -> types.ChatCompletionRequest:
    return requests.chat("m", values.pop("messages", USER), values)


def test_messages() -> None:
    request = chat(
        messages=[
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it?"},
                    {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": "AAEC", "format": "wav"}},
                    {"type": "smell", "smell": "roses"},
                ],
                "name": "ann",
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ]
    )
    system, user, assistant, tool = request.messages
    assert (system.role, system.content) == (types.ROLE_SYSTEM, "be brief")
    assert [part.WhichOneof("part") for part in user.parts] == [
        "text",
        "image_url",
        "input_audio",
        None,
    ]
    assert user.parts[1].image_url.detail == types.IMAGE_DETAIL_LOW
    assert user.parts[2].input_audio.data == b"\x00\x01\x02"
    assert dict(user.parts[3].extra) == {"type": "smell", "smell": "roses"}
    assert not assistant.HasField("content")
    assert assistant.tool_calls[0].function.name == "f"
    assert (tool.role, tool.tool_call_id) == (types.ROLE_TOOL, "1")


def test_choices_of_shape() -> None:
    request = chat(
        stop="a",
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
        },
        logit_bias={"50256": -100},
        reasoning_effort="low",
        top_k=3,
        n=None,
    )
    assert list(request.stop) == ["a"]
    assert request.tool_choice.function.name == "f"
    assert request.response_format.type == types.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
    assert MessageToDict(request.response_format.json_schema.schema) == {"type": "object"}
    assert dict(request.logit_bias) == {50256: -100.0}
    assert request.reasoning_effort == types.REASONING_EFFORT_LOW
    assert dict(request.extra) == {"top_k": 3}
    assert not request.HasField("n")
    assert chat(tool_choice="auto").tool_choice.mode == types.TOOL_CHOICE_MODE_AUTO


@pytest.mark.parametrize(
    ("value", "field", "as_sent"),
    [
        ("a", "prompt", "a"),
        (["a", "b"], "prompts", ["a", "b"]),
        ([1, 2], "prompt_tokens", [1, 2]),
        ([[1], [2, 3]], "prompt_token_lists", [[1], [2, 3]]),
    ],
)
def test_prompts(value: Any, field: str, as_sent: Any) -> None:
    request = requests.completion("m", value, {})
    found = getattr(request, field)
    if field == "prompt_token_lists":
        found = [list(item.ids) for item in found]
    assert (found if isinstance(found, str) else list(found)) == as_sent


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"reasoning_effort": "total"}, "reasoning_effort"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, r"messages\[0\].role"),
        ({"messages": ["hi"]}, r"messages\[0\]"),
        ({"max_tokens": 2**40}, "max_tokens"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict[str, Any], where: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{where}: "):
        chat(**values)

"""Dialects turned into each other, as Python sees it; Rust's tests have all the cases."""

import json
from pathlib import Path

import pytest
from forebay._core import translate_answer, translate_request

CASES = Path(__file__).parent.parent / "data" / "dialects" / "anthropic" / "asked"


def test_a_request_is_as_the_golden_file_says() -> None:
    body = (CASES / "tools.request.openai.json").read_bytes()
    got, dropped = translate_request("open_ai", "anthropic", body, model="some-model")
    assert json.loads(got) == json.loads((CASES / "tools.request.anthropic.json").read_text())
    assert dropped == []


def test_what_is_dropped_is_listed() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "seed": 1}).encode()
    with pytest.raises(ValueError, match="seed") as caught:
        translate_request("open_ai", "anthropic", body, model="m")
    assert caught.value.args[1:] == ("invalid_request", "seed")
    _, dropped = translate_request("open_ai", "anthropic", body, model="m", drop_params=True)
    assert dropped == ["seed"]


def test_an_answer_is_as_the_golden_file_says() -> None:
    body = (CASES / "thinking.answer.anthropic.json").read_bytes()
    got = translate_answer(
        "anthropic",
        "open_ai",
        body,
        id="answer-1",
        model='any "model"',
        created=1_700_000_000,
    )
    assert json.loads(got) == json.loads((CASES / "thinking.answer.openai.json").read_text())

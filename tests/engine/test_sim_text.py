"""Answers and token counts."""

from __future__ import annotations

from typing import Any

import pytest
from forebay_engine.sim import text
from hypothesis import given
from hypothesis import strategies as st


def plan(select: str, **fields: Any) -> text.Plan:
    """A plan for a prompt that is its own selector."""
    defaults: dict[str, Any] = {"prompt": select, "seed": 0, "max_tokens": 100}
    return text.plan(text.Ask(select=select, **{**defaults, **fields}))


def whole(made: text.Plan) -> str:
    return made.text(made.total)


def test_words_are_as_many_as_asked_and_a_function_of_seed_and_prompt() -> None:
    made = plan("/words 30")
    assert len(whole(made).split()) == 30
    assert (made.total, made.finish) == (31, "stop")
    assert whole(plan("/words 30")) == whole(made)
    assert whole(plan("/words 30", seed=1)) != whole(made)
    assert whole(plan("/words 30", prompt="other")) != whole(made)


@pytest.mark.parametrize("select", ["hi", "/words 12", "/loop", "/uni", "/think", "/two", "/tool"])
@given(cut=st.integers(0, 60))
def test_a_partial_answer_is_continued_where_it_stops(select: str, cut: int) -> None:
    full = whole(plan(select, max_tokens=12))
    prefix = full[:cut]
    rest = plan(select, prefix=prefix, max_tokens=24)
    assert (prefix + whole(rest)).startswith(full)


def test_a_foreign_prefix_begins_the_answer_anew() -> None:
    assert whole(plan("hi", prefix="Nothing of the kind")) == whole(plan("hi"))


def test_ignore_eos_makes_exactly_max_tokens() -> None:
    made = plan("hi", ignore_eos=True, max_tokens=57)
    assert (made.total, made.finish, made.matched_stop) == (57, "length", None)
    assert whole(made).count(" Hello") == 6


@given(stop=st.text("abcehilnorst ,.", min_size=1, max_size=6))
def test_a_stop_string_never_shows(stop: str) -> None:
    full = whole(plan("hi"))
    made = plan("hi", stops=(stop,))
    expected, found, _ = full.partition(stop)
    assert whole(made) == expected
    assert made.matched_stop == (stop if found else text.EOS_ID)


def test_a_stop_string_across_tokens() -> None:
    made = plan("hi", stops=("there, t",))
    assert (whole(made), made.total, made.matched_stop) == (" Hello ", 4, "there, t")


def test_a_schema_is_answered_with_an_instance() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array"},
            "inner": {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}},
        },
    }
    expected = '{"name":"scripted","age":1,"tags":[],"inner":{"ok":"no"}}'
    assert whole(plan("hi", schema=schema)) == expected


def test_tool_calls_take_the_names_offered() -> None:
    made = plan("/tool", tools=("search",))
    assert made.deltas is not None
    assert [d.text for token in made.deltas for d in token] == ["search", '{"city": "Paris"}']
    forced = plan("hi", tools=("a", "b"), force_tool="b")
    assert forced.deltas is not None
    assert forced.deltas[1][0].text == "b"


@given(st.text(max_size=200), st.integers(1, 8))
def test_counts_agree_with_ids(value: str, size: int) -> None:
    ids = text.token_ids(value, size)
    assert len(ids) == text.count_bytes(value, size)
    assert all(0 <= one < text.VOCAB_SIZE for one in ids)

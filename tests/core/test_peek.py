"""What admission reads of a body, as Python sees it."""

import json
from typing import Any

import pytest
from forebay._core import peek
from hypothesis import given
from hypothesis import strategies as st

from tests.support.traces import all_names, load

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)
others = st.dictionaries(st.text(max_size=8).map(lambda key: "x-" + key), values, max_size=5)


@given(
    model=st.text(st.characters(exclude_categories=["Cs"])),
    stream=st.booleans(),
    n=st.integers(1, 128),
    cap=st.integers(1, 2**31 - 1),
    rest=others,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
)
def test_it_finds_what_a_json_parser_finds(
    model: str,
    stream: bool,
    n: int,
    cap: int,
    rest: dict[str, Any],
    ascii_only: bool,
    indent: int | None,
) -> None:
    body = {**rest, "n": n, "model": model, "max_tokens": cap, "stream": stream}
    seen = peek(json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode())
    assert (seen["model"], seen["stream"], seen["n"]) == (model, stream, n)
    assert seen["output_cap"] == cap


@given(rest=others, at=st.integers(0, 500), byte=st.binary(min_size=1, max_size=3))
def test_what_it_accepts_every_parser_accepts(rest: dict[str, Any], at: int, byte: bytes) -> None:
    body = json.dumps({"model": "m", **rest}).encode()
    at = min(at, len(body))
    broken = body[:at] + byte + body[at + 1 :]
    try:
        seen = peek(broken)
    except ValueError as error:
        assert "(byte " in str(error)  # noqa: PT017
        return
    parsed = json.loads(broken)
    assert isinstance(parsed, dict)
    assert seen["model"] == parsed.get("model")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", r"ends too early \(byte 0\)"),
        (b"[]", r"must be a JSON object \(byte 0\)"),
        (b'{"model":1}', r"'model' must be a string \(byte 9\)"),
        (b'{"model":null}', r"'model' must be a string \(byte 9\)"),
        (b'{"stream":1}', r"'stream' must be a boolean \(byte 10\)"),
        (b'{"n":0}', r"'n' must be between 1 and 128 \(byte 5\)"),
        (b'{"n":129}', r"'n' must be between 1 and 128 \(byte 5\)"),
        (b'{"a":NaN}', r"not valid JSON.*\(byte 5\)"),
        (b'{"a":1,}', r"not valid JSON.*\(byte 7\)"),
        (b'{"a":1} x', r"not valid JSON.*\(byte 8\)"),
        (b'{"a":"\xff"}', r"not valid UTF-8 \(byte 6\)"),
        (b"\xef\xbb\xbf{}", r"byte order mark.*\(byte 0\)"),
        (b'{"a":' + b"[" * 10_000, r"nested more than 128 levels deep \(byte 132\)"),
    ],
)
def test_it_says_where_a_body_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        peek(body)


def test_the_last_of_a_repeated_key_counts() -> None:
    assert peek(b'{"model":"a","mod\\u0065l":"b"}')["model"] == "b"


def test_prompts_are_measured() -> None:
    seen = peek(b'{"messages":[{"role":"user","content":"hello"}]}')
    assert seen["prompt_bytes"] == len("user") + len("hello")
    seen = peek(b'{"prompt":[[1,2,3],[4]]}')
    assert (seen["prompt_token_ids"], seen["prompt_items"]) == (4, 2)
    assert peek(b'{"input":["a","b","c"]}')["prompt_items"] == 3


@pytest.mark.parametrize("name", all_names())
def test_recorded_bodies_read_as_json_does(name: str) -> None:
    trace = load(name)
    assert trace is not None
    try:
        parsed = json.loads(trace.body)
    except ValueError:
        with pytest.raises(ValueError, match=r"\(byte \d+\)"):
            peek(trace.body)
        return
    try:
        seen = peek(trace.body)
    except ValueError as error:
        # Types and ranges that no engine takes either.
        assert trace.status >= 400, error  # noqa: PT017
        return
    assert seen["model"] == parsed.get("model")
    assert seen["stream"] == bool(parsed.get("stream"))

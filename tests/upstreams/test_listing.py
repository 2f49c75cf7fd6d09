"""Lists of models in every provider's shape, and in none."""

import contextlib
import json

import pytest
from forebay.cli.doctor_upstreams import message_of
from forebay.upstreams.listing import model_names
from forebay.upstreams.runpod import Workers
from hypothesis import given
from hypothesis import strategies as st

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "models", "id", "name", "error", "message", "workers", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"object": "list", "data": [{"id": "b"}, {"id": "a"}, {"id": "a"}]}, ["a", "b"]),
        ({"data": [{"type": "model", "id": "claude-1"}], "has_more": False}, ["claude-1"]),
        ([{"id": "org/m", "type": "chat"}], ["org/m"]),
        ({"models": [{"name": "models/gemini-1", "version": "1"}]}, ["gemini-1"]),
        ({"data": []}, []),
    ],
)
def test_shapes(document: object, names: list[str]) -> None:
    assert model_names(json.dumps(document).encode()) == names


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"data": 1}', b"[1]", b'[{"id": 1}]'])
def test_what_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        model_names(body)


@given(st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes(body: bytes) -> None:
    with contextlib.suppress(ValueError):
        names = model_names(body)
        assert names == sorted(set(names))
        assert all(names)
    assert len(message_of(body)) <= 200
    assert Workers("/health").judge(200, body) in ("warm", "loading", "cold", "down")


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "no such model", "type": "x"}}',
        b'{"object": "error", "message": "no such model"}',
        b'{"error": "no such model"}',
        b'{"detail": "no such model"}',
        b'[{"error": {"message": "no such model"}}]',
        b"no such\n model",
    ],
)
def test_what_an_error_says(body: bytes) -> None:
    assert message_of(body) == "no such model"

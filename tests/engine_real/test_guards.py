"""What must not reach a real engine does not, and its errors do not reach clients as they are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_real.asking import Door
from tests.engine_real.conftest import Pair
from tests.engine_real.engines import RealEngine
from tests.engine_real.scripts import HELLO
from tests.support.processes import Gateway, Key
from tests.support.wire import CHAT, COMPLETIONS, EMBEDDINGS, chat

VOCABULARY = 1024
"""Of the tiny model."""


def asked(engine: RealEngine) -> int:
    """Requests for inference that the engine's access log shows."""
    return sum(engine.log().count(f'"POST {path} ') for path in (CHAT, COMPLETIONS, EMBEDDINGS))


def still_well(pair: Pair) -> None:
    """Both engines live and answer."""
    for engine in (pair.a, pair.b):
        assert engine.alive()
        assert engine.call(CHAT, chat("tiny", "hi", max_tokens=1)).status == 200


def test_an_unknown_model(both: Pair, door: Door) -> None:
    """SGLang itself would answer under any name."""
    before = asked(both.a), asked(both.b)
    for name in ("no-such-model", "tiny:adapter"):
        said = door.whole(name, "hi")
        assert (said.error, said.text) == ("model_not_found", "")
    assert (asked(both.a), asked(both.b)) == before


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("token", [VOCABULARY, 10 * VOCABULARY, -1, 2**40])
def test_a_token_that_would_end_the_engine(
    both: Pair, house: Gateway, house_key: Key, token: int
) -> None:
    """The gateway has learned the vocabulary's size from the engine."""
    before = asked(both.a)
    body = {"model": "on-a", "prompt": [72, token], "max_tokens": 1}
    answer = house.call(COMPLETIONS, body, key=house_key.secret)
    assert answer.brief() == (400, "invalid_request_error", "invalid_value", "prompt")
    assert asked(both.a) == before
    still_well(both)


@pytest.mark.usefixtures("known")
def test_the_last_token_is_let_through(both: Pair, house: Gateway, house_key: Key) -> None:
    body = {"model": "on-a", "prompt": [72, VOCABULARY - 1], "max_tokens": 1, "temperature": 0}
    answer = house.call(COMPLETIONS, body, key=house_key.secret)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_path": "/etc"},
        {"bootstrap_host": "127.0.0.1"},
        {"session_params": {"id": "x"}},
        {"custom_logit_processor": "x"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_only_operators_decide(both: Pair, door: Door, fields: dict[str, Any]) -> None:
    before = asked(both.a)
    extra = fields if door.name == "http" else {"extra": fields}
    said = door.whole("on-a", "hi", **extra)
    assert said.error == "unsupported_parameter"
    assert asked(both.a) == before


def test_embeddings_of_a_model_that_makes_text(both: Pair, house: Gateway, house_key: Key) -> None:
    before = asked(both.a)
    answer = house.call(EMBEDDINGS, {"model": "on-a", "input": "hi"}, key=house_key.secret)
    assert answer.brief() == (400, "invalid_request_error", "model_not_supported", "model")
    assert asked(both.a) == before


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_beyond_the_context(
    both: Pair, house: Gateway, house_key: Key, streams: bool
) -> None:
    """The engine refuses it; its words about itself are not passed on."""
    body = chat("on-a", "x" * 3000, max_tokens=4, stream=streams)
    answer = house.call(CHAT, body, key=house_key.secret)
    status, kind, code, _ = answer.brief()
    assert (status, kind, code) == (400, "invalid_request_error", "context_length_exceeded")
    shown = answer.body.decode()
    for word in ("site-packages", "sglang", "127.0.0.1", "Traceback"):
        assert word not in shown
    still_well(both)


@pytest.mark.usefixtures("known")
def test_control_paths_are_not_there(both: Pair, house: Gateway, house_key: Key) -> None:
    for path in ("/abort_request", "/flush_cache", "/slow_down", "/pause_generation"):
        assert house.call(path, {}, key=house_key.secret).status == 404
    answer = house.call(CHAT, chat("on-a", "hi", temperature=0), key=house_key.secret)
    assert answer.json()["choices"][0]["message"]["content"] == HELLO.text

"""What engines say of their models."""

import orjson
import pytest
from forebay.upstreams import describe

from tests.support.traces import TRACES


def body(name: str) -> bytes:
    """The body of a recorded answer."""
    return (TRACES / f"{name}.resp").read_bytes().split(b"\r\n\r\n", 1)[1]


def test_a_recorded_sglang_makes_text_and_checks_biases() -> None:
    assert describe.embeds(body("053-model-info")) is False
    assert describe.checks_bias(body("055-server-info")) is True


@pytest.mark.parametrize(
    ("info", "embeds"),
    [(b'{"is_generation":false}', True), (b"{}", None), (b"[]", None), (b"x", None)],
)
def test_an_engine_of_embeddings(info: bytes, embeds: bool | None) -> None:
    assert describe.embeds(info) is embeds


@pytest.mark.parametrize(
    ("version", "checks"),
    [("0.5.23", True), ("0.5.23.post1", True), ("1.0.0", True), ("0.5.9", False), ("", False)],
)
def test_only_a_version_that_is_known_to_check_is_asked(version: str, checks: bool) -> None:
    assert describe.checks_bias(orjson.dumps({"version": version})) is checks


def test_a_refusal_tells_the_vocabulary() -> None:
    text = b'{"message":"logit_bias must has keys in [0, 128255], got 2147483647."}'
    assert describe.vocabulary(text) == 128_256
    assert describe.vocabulary(b'{"choices":[]}') is None
    assert orjson.loads(describe.question("m"))["model"] == "m"


def test_every_name_of_the_model_is_described() -> None:
    said = orjson.loads(describe.description(["a", "b"], embedding=True, vocab_size=5))
    facts = {"embedding": True, "vocab_size": 5}
    assert said == {"models": {"a": facts, "b": facts}}

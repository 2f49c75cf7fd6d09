"""What admission needs of a body: `peek`, which builds no tree, beside `orjson.loads`."""

import orjson
import pytest
from forebay._core import peek
from pytest_benchmark.fixture import BenchmarkFixture

WORDS = "The quick brown fox jumps over the lazy dog. "


def _body(size: int) -> bytes:
    text = WORDS * (size // len(WORDS) + 1)
    frame = {
        "model": "llama-3-8b",
        "stream": True,
        "max_tokens": 256,
        "temperature": 0.7,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}],
    }
    room = size - len(orjson.dumps(frame))
    frame["messages"][1]["content"] = text[:room]  # type: ignore[index]
    return orjson.dumps(frame)


BODIES = {"500 B": _body(500), "200 KB": _body(200_000)}


@pytest.mark.parametrize("size", BODIES)
def test_forebay(benchmark: BenchmarkFixture, size: str) -> None:
    benchmark.group = f"peek, {size}"
    assert benchmark(peek, BODIES[size])["model"] == "llama-3-8b"


@pytest.mark.parametrize("size", BODIES)
def test_orjson(benchmark: BenchmarkFixture, size: str) -> None:
    benchmark.group = f"peek, {size}"
    assert benchmark(orjson.loads, BODIES[size])["model"] == "llama-3-8b"

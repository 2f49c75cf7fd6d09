"""Event streams: the core's decoder beside httpx-sse's, on the same bytes."""

from collections.abc import Iterator

import httpx
import orjson
import pytest
from forebay._core import SseDecoder
from httpx_sse import EventSource
from pytest_benchmark.fixture import BenchmarkFixture

EVENTS = 1000


def _event(number: int) -> bytes:
    chunk = {
        "id": "f1e35d56f0a24d8bb4a7b1a2a2a5d3d0",
        "object": "chat.completion.chunk",
        "created": 1753088888,
        "model": "meta-llama/Llama-3-8B-Instruct",
        "choices": [
            {
                "index": 0,
                "delta": {"role": None, "content": f" word{number}"},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    return b"data: %s\n\n" % orjson.dumps(chunk)


PARTS = [_event(number) for number in range(EVENTS)]
WHOLE = b"".join(PARTS)
LARGE = [WHOLE[at : at + 65_536] for at in range(0, len(WHOLE), 65_536)]


class _Stream(httpx.SyncByteStream):
    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


def _forebay(chunks: list[bytes]) -> int:
    feed = SseDecoder().feed
    return sum(len(feed(chunk)) for chunk in chunks)


def _httpx_sse(chunks: list[bytes]) -> int:
    headers = {"content-type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, stream=_Stream(chunks))
    return sum(1 for _ in EventSource(response).iter_sse())


@pytest.mark.benchmark(group=f"sse, {EVENTS} events of {len(PARTS[0])} B, one a chunk")
@pytest.mark.parametrize("decode", [_forebay, _httpx_sse])
def test_one_event_a_chunk(benchmark: BenchmarkFixture, decode: object) -> None:
    assert benchmark(decode, PARTS) == EVENTS


@pytest.mark.benchmark(group=f"sse, {EVENTS} events of {len(PARTS[0])} B, chunks of 64 KiB")
@pytest.mark.parametrize("decode", [_forebay, _httpx_sse])
def test_large_chunks(benchmark: BenchmarkFixture, decode: object) -> None:
    assert benchmark(decode, LARGE) == EVENTS

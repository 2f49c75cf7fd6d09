"""The event-stream decoder as Python sees it, against a plain reading of the standard."""

import re

import pytest
from forebay._core import SseDecoder
from hypothesis import given
from hypothesis import strategies as st

from tests.support.traces import all_names, load

STREAMS = {
    trace.name: trace.content
    for trace in (load(name) for name in all_names())
    if trace is not None and trace.chunked
}
# Pieces that together reach every rule: line ends, fields, colons, spaces, comments, a BOM.
PIECES = [b"\r", b"\n", b"\r\n", b"data", b"data:", b"data: ", b":", b" ", b"x", b"\xc3\xa9"]
PIECES += [b"event: e", b"id: 1", b"retry: 5", b"\n\n", b"\xef\xbb\xbf", b"data:[DONE]"]


def decode(stream: bytes, cuts: list[int] | None = None) -> list[bytes]:
    """The events' data, the stream fed in pieces that end at `cuts`."""
    decoder = SseDecoder()
    ends = sorted({min(cut, len(stream)) for cut in cuts or []} | {len(stream)})
    events, start = [], 0
    for end in ends:
        events += decoder.feed(stream[start:end])
        start = end
    return events


def reference(stream: bytes) -> list[bytes]:
    """WHATWG HTML section 9.2.6, read literally; bytes instead of text."""
    events: list[bytes] = []
    data: list[bytes] | None = None
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    for line in lines[:-1]:  # the last one has no end
        if not line:
            if data is not None:
                events.append(b"\n".join(data))
            data = None
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data = [*(data or []), value.removeprefix(b" ")]
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:  a\n\n", [b" a"]),
        (b": keep-alive\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 5\n\n", []),
        (b"data\n\n", [b""]),
        (b"data: a\n", []),
        (b"", []),
    ],
)
def test_the_standard_s_rules(stream: bytes, events: list[bytes]) -> None:
    assert decode(stream) == events


@given(
    stream=st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
    cuts=st.lists(st.integers(0, 200), max_size=20),
)
def test_every_chunking_reads_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    assert decode(stream, cuts) == reference(stream)


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_read_alike_in_every_chunking(name: str) -> None:
    stream = STREAMS[name]
    whole = decode(stream)
    assert whole
    assert decode(stream, list(range(len(stream)))) == whole
    assert whole == reference(stream)


def test_an_event_over_the_bound_is_refused_before_it_is_whole() -> None:
    decoder = SseDecoder(max_event_bytes=1024)
    assert decoder.feed(b"data: " + b"x" * 1000 + b"\n\n") == [b"x" * 1000]
    for _ in range(9):
        decoder.feed(b"data: " + b"x" * 100 + b"\n")
    with pytest.raises(ValueError, match="1024"):
        decoder.feed(b"data: " + b"x" * 100)

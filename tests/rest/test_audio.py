"""Sound in and out: forms that are sent on as they come, answers that go by."""

import time
from typing import Any

import openai
import pytest
from forebay_engine.sim.others import sound
from openai import OpenAI

from tests.support.processes import Gateway, Key
from tests.support.simulated import Simulated
from tests.support.wait import until
from tests.support.wire import Answer, Client, call, request

SOUND = b"RIFF" + bytes(range(256)) * 100
HEARD = "/v1/audio/transcriptions"
BOUND = "xXx"


def field(name: str, content: bytes, more: str = "") -> bytes:
    head = f'--{BOUND}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*fields: bytes) -> bytes:
    return b"".join(fields) + f"--{BOUND}--\r\n".encode()


FILE = field("file", SOUND, '; filename="a.wav"')
EARS, EARS_2 = field("model", b"ears"), field("model", b"ears-2")
NAMED = [("x-forebay-model", "ears")]
MISSING = "missing_required_parameter"
# The SDK calls some of these APIs old.
DEPRECATED = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")


def hear(
    rest: Gateway,
    key: Key,
    body: bytes,
    headers: list[tuple[str, str]] | None = None,
    query: str = "",
) -> Answer:
    kind = f"multipart/form-data; boundary={BOUND}"
    sent = request(
        HEARD + query, body, key=key.secret, content_type=kind, headers=headers or [], close=True
    )
    return call(rest.port, sent)


def test_speech_comes_as_it_is_made(client: OpenAI, rest: Gateway) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="voice", voice="alloy", input="Hello there."
    ) as got:
        assert got.headers["content-type"] == "audio/mpeg"
        assert b"".join(got.iter_bytes()) == b"".join(sound("Hello there."))
        request_id = got.headers["x-request-id"]
    row = rest.usage(1, request_id=request_id)[0]
    assert (row["endpoint"], row["source"], row["outcome"]) == ("speech", "estimated", "ok")
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] == 0


def test_speech_in_events_is_counted(rest: Gateway, rest_key: Key) -> None:
    body = {"model": "voice", "voice": "x", "input": "Hello.", "stream_format": "sse"}
    got = rest.call("/v1/audio/speech", body, key=rest_key.secret)
    assert got.header("content-type") == "text/event-stream"
    assert "speech.audio.done" in got.data()[-1]
    row = rest.usage_of(got)
    assert (row["completion_tokens"], row["source"]) == (6, "reported")


def test_a_speech_that_breaks_off_is_not_taken_for_whole(
    client: OpenAI, rest: Gateway, sims: dict[str, Simulated]
) -> None:
    speech = client.audio.speech.with_streaming_response
    with (
        sims["openai"].faults("cut:32"),
        speech.create(model="voice", voice="alloy", input="Hello there. " * 30) as got,
    ):
        request_id = got.headers["x-request-id"]
        with pytest.raises(Exception, match=r"(?i)incomplete|closed|peer"):
            list(got.iter_bytes())
    row = rest.usage(1, request_id=request_id)[0]
    assert (row["outcome"], row["error_kind"]) == ("upstream_cut", "upstream_error")


@DEPRECATED
@pytest.mark.parametrize("model", ["ears", "ears-2"])
def test_transcriptions_and_translations(client: OpenAI, rest: Gateway, model: str) -> None:
    got = client.audio.transcriptions.create(model=model, file=("a.wav", SOUND), language="de")
    assert got.text == f"{len(SOUND)} bytes of sound in de."
    translated = client.audio.translations.create(model=model, file=("a.wav", SOUND))
    assert "English" in translated.text
    text = client.audio.transcriptions.create(
        model=model, file=("a.wav", SOUND), response_format="text"
    )
    assert str(text).startswith(str(len(SOUND)))


def test_what_is_heard_is_booked(rest: Gateway, rest_key: Key) -> None:
    heard = len(SOUND) / 16_000 * 10
    got = hear(rest, rest_key, form(field("model", b"ears-2"), FILE))
    row = rest.usage_of(got)
    assert (row["source"], row["prompt_tokens"]) == ("reported", int(heard) + 1)
    assert row["completion_tokens"] > 0
    # whisper counts seconds.
    got = hear(rest, rest_key, form(field("model", b"ears"), FILE))
    row = rest.usage_of(got)
    assert row["source"] == "estimated"
    assert abs(row["prompt_tokens"] - heard) < 1.1
    assert row["endpoint"] == "transcriptions"


def test_the_stream_of_a_transcription(client: OpenAI) -> None:
    events = list(
        client.audio.transcriptions.create(model="ears-2", file=("a.wav", SOUND), stream=True)
    )
    assert events[-1].type == "transcript.text.done"
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}


def test_the_model_may_come_last_or_be_named_elsewhere(
    rest: Gateway, rest_key: Key, sims: dict[str, Simulated]
) -> None:
    model = field("model", b"ears")
    for body, headers, query in [
        (form(model, FILE), [], ""),
        (form(FILE, model), [], ""),
        (form(FILE), [("x-forebay-model", "ears")], ""),
        (form(FILE, model), [("x-forebay-model", "ears")], ""),
        (form(FILE), [], "?model=ears"),
        (form(FILE), [], "?model=%65ars"),
    ]:
        got = hear(rest, rest_key, body, headers, query)
        assert got.status == 200, (headers, query, got.body)
        assert got.json()["text"].startswith(str(len(SOUND)))
        assert sims["openai"].last()["model"] == "whisper-tiny"


@pytest.mark.parametrize(
    ("body", "headers", "code", "param"),
    [
        (form(FILE), [], MISSING, "model"),
        (form(EARS, EARS_2, FILE), [], "invalid_value", "model"),
        (form(EARS_2, FILE), NAMED, "invalid_value", "model"),
        (form(field("mod\\el", b"ears"), FILE), [], "invalid_form", None),
        (b"no form at all", [], "invalid_form", None),
        (form(EARS)[:-8], [], "invalid_form", None),
        (form(EARS, FILE) + b"x", [], "invalid_form", None),
        (form(field("file", bytes(200_000)), EARS), [], MISSING, "model"),
        (form(field("model", b"nope"), FILE), [], "model_not_found", "model"),
        (form(EARS, field("lora_path", b"x"), FILE), [], "unsupported_parameter", None),
    ],
)
def test_forms_that_will_not_do(
    rest: Gateway, rest_key: Key, body: bytes, headers: list[tuple[str, str]], code: str, param: Any
) -> None:
    got = hear(rest, rest_key, body, headers)
    assert got.status in (400, 404), got.body
    assert (got.error()["code"], got.error()["param"]) == (code, param)


def test_other_content_types_and_methods(rest: Gateway, rest_key: Key) -> None:
    got = rest.call(HEARD, {"model": "ears"}, key=rest_key.secret)
    assert (got.status, got.error()["code"]) == (400, "unsupported_content_type")
    got = rest.call(HEARD, key=rest_key.secret)
    assert (got.status, got.header("allow")) == (405, "POST")
    got = rest.call(HEARD, form(FILE), content_type=f"multipart/form-data; boundary={BOUND}")
    assert (got.status, got.error()["code"]) == (401, "missing_api_key")


def test_a_form_over_the_limit_is_refused_readably(rest: Gateway, rest_key: Key) -> None:
    declared = 65 * 1024 * 1024
    with Client(rest.port) as client:
        head = (
            f"POST {HEARD} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {rest_key.secret}\r\n"
            f"content-type: multipart/form-data; boundary={BOUND}\r\n"
            f"content-length: {declared}\r\nexpect: 100-continue\r\n\r\n"
        )
        answer = client.send(head.encode()).answer()
    assert (answer.status, answer.error()["code"]) == (413, "request_too_large")


def test_a_small_form_is_sent_anew_to_the_next_target(
    rest: Gateway, rest_key: Key, sims: dict[str, Simulated]
) -> None:
    got = hear(rest, rest_key, form(field("model", b"fallen"), FILE))
    assert (got.status, got.header("x-forebay-upstream")) == (200, "second")
    with sims["openai"].faults("status:500"):
        got = hear(rest, rest_key, form(field("model", b"twice"), FILE))
        assert (got.status, got.header("x-forebay-attempts")) == (200, "2")
        assert got.json()["text"].startswith(str(len(SOUND)))
        # More than is kept: the failure is the client's to see.
        large = field("file", bytes(3 << 20), '; filename="a"')
        got = hear(rest, rest_key, form(field("model", b"twice"), large))
        assert (got.status, got.header("x-forebay-attempts")) == (502, "1")


def test_memory_stays_while_a_large_form_goes_by(
    rest: Gateway, rest_key: Key, sims: dict[str, Simulated]
) -> None:
    before = rest.rss_bytes()
    size = 48 << 20
    head = field("model", b"ears")
    start = field("file", b"", '; filename="a.wav"')[:-2]
    tail = f"\r\n--{BOUND}--\r\n".encode()
    length = len(head) + len(start) + size + len(tail)
    most = 0
    with Client(rest.port) as client:
        client.send(
            f"POST {HEARD} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {rest_key.secret}\r\n"
            f"content-type: multipart/form-data; boundary={BOUND}\r\n"
            f"content-length: {length}\r\n\r\n".encode()
        )
        client.send(head + start)
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            client.send(block)
            most = max(most, rest.rss_bytes())
        answer = client.send(tail).answer()
    assert answer.status == 200, answer.body
    assert answer.json()["text"].startswith(str(size))
    assert most - before < 16 << 20, (before, most)


def test_a_client_that_leaves_while_it_sends(rest: Gateway, rest_key: Key) -> None:
    with Client(rest.port) as client:
        client.send(
            f"POST {HEARD} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {rest_key.secret}\r\n"
            f"x-request-id: left-1\r\ncontent-type: multipart/form-data; boundary={BOUND}\r\n"
            f"content-length: 1000000\r\n\r\n".encode()
        )
        client.send(field("model", b"ears") + field("file", bytes(1000))[:-2])
        until(lambda: rest.metric("forebay_requests_in_flight") >= 1, "the request")
    row = rest.usage(1, request_id="left-1")[0]
    assert row["outcome"] in ("client_closed", "error")
    rest.wait_idle()


def test_a_slow_reader_slows_its_engine_only(
    rest: Gateway, rest_key: Key, sims: dict[str, Simulated]
) -> None:
    text = "x" * 8000  # eight megabytes of sound
    before = rest.rss_bytes()
    with Client(rest.port, receive_buffer=8192) as client:
        body = {"model": "voice", "voice": "x", "input": text}
        client.send(request("/v1/audio/speech", body, key=rest_key.secret))
        head = client.head()
        assert head.status == 200
        time.sleep(0.5)
        assert rest.rss_bytes() - before < 8 << 20
        got = b"".join(piece for _, piece in client.body(head))
    assert len(got) == 8_000_000
    rest.wait_idle()


def test_a_hang_up_stops_the_engine(
    rest: Gateway, rest_key: Key, sims: dict[str, Simulated]
) -> None:
    with Client(rest.port, receive_buffer=8192) as client:
        body = {"model": "voice", "voice": "x", "input": "y" * 8000}
        sent = request(
            "/v1/audio/speech", body, key=rest_key.secret, headers=[("x-request-id", "left-2")]
        )
        client.send(sent)
        assert client.head().status == 200
    row = rest.usage(1, request_id="left-2")[0]
    assert (row["outcome"], row["endpoint"]) == ("client_closed", "speech")
    until(lambda: sims["openai"].last()["outcome"] == "disconnected", "the engine to stop")


@DEPRECATED
def test_images_are_changed(client: OpenAI, rest: Gateway) -> None:
    raw = client.images.with_raw_response.edit(
        model="image", image=("a.png", b"png"), prompt="a hat"
    )
    got = raw.parse()
    assert got.data is not None
    assert got.data[0].b64_json
    row = rest.usage(1, request_id=raw.headers["x-request-id"])[0]
    assert row["endpoint"] == "image_edits"
    assert (row["completion_tokens"], row["source"]) == (16, "reported")
    varied = client.images.create_variation(model="image", image=("a.png", b"png"), n=2)
    assert varied.data is not None
    assert len(varied.data) == 2
    with pytest.raises(openai.NotFoundError):
        client.images.edit(model="nope", image=("a.png", b"png"), prompt="a hat")


def test_requests_are_limited(rest: Gateway) -> None:
    key = rest.key(rpm=6, rpm_burst=1)
    body = form(field("model", b"ears"), FILE)
    first, second = hear(rest, key, body), hear(rest, key, body)
    assert (first.status, second.status) == (200, 429)
    # Its connection is closed, and it could be read all the same.
    assert second.error()["code"] == "rate_limit_exceeded"

"""What is no gRPC, or not quite: a clean status each time, and the server goes on."""

import gzip
import json

import grpc
import pytest
from forebay.grpc.v1 import inference_pb2 as pb

from tests.support.grpc_calls import INFERENCE, ask, channel, chat
from tests.support.grpc_wire import Fields, exchange, frame
from tests.support.processes import Gateway, Key

CHAT = f"/{INFERENCE}/ChatCompletion".encode()
BODY_BYTES = 10 * 1024 * 1024


def auth(key: Key) -> Fields:
    return [(b"authorization", f"Bearer {key.secret}".encode())]


@pytest.fixture(autouse=True)
def goes_on(gateway: Gateway, key: Key) -> object:
    """After each test a new connection gets an answer."""
    yield
    with channel(gateway.grpc) as opened:
        assert ask(opened, "ListModels", pb.ListModelsRequest(), key=key.secret).only


@pytest.mark.parametrize(
    "path",
    [
        b"/\xff\xfe/\x80",
        b"/forebay.v1.InferenceService/\xc3\x28",
        b"/forebay.v1.InferenceService/Nope",
        b"/forebay.v1.InferenceService/",
        b"/nope.v1.Nope/Chat",
        b"/v1/chat/completions",
        b"/",
        b"//",
        b"chat",
        b"/" + b"a" * 8000,
    ],
)
def test_unknown_methods(gateway: Gateway, path: bytes) -> None:
    heard = exchange(gateway.grpc, path, frame(b""))
    assert heard.status == grpc.StatusCode.UNIMPLEMENTED.value[0]


@pytest.mark.parametrize("body", [b"", b"\0\0\0", frame(b"abc", length=100)])
def test_no_whole_message(gateway: Gateway, key: Key, body: bytes) -> None:
    heard = exchange(gateway.grpc, CHAT, body, fields=auth(key))
    assert heard.status in (
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        grpc.StatusCode.INTERNAL.value[0],
    )
    for method in ("StreamChatCompletion", "ListModels", "GetModel"):
        path = f"/{INFERENCE}/{method}".encode()
        assert exchange(gateway.grpc, path, body, fields=auth(key)).status != 0
    health = exchange(gateway.grpc, b"/grpc.health.v1.Health/Check", body)
    assert health.status != 0


def test_metadata_that_is_no_text(gateway: Gateway, key: Key) -> None:
    for name in (b"x-request-id", b"authorization", b"x-forebay-tags", b"idempotency-key", b"x-o"):
        fields = [*auth(key), (name, b"\xff\xfe\x80")]
        heard = exchange(gateway.grpc, CHAT, frame(chat().SerializeToString()), fields=fields)
        assert b"grpc-status" in heard.fields, name
    assert "Traceback (most recent" not in gateway.log()


def test_too_much_metadata(opened: grpc.Channel, key: Key) -> None:
    much = [("x-much", "a" * 30_000)]
    told = ask(opened, "ChatCompletion", chat("sim"), key=key.secret, metadata=much)
    assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("encoding", [b"zzz", b"br", b"identity"])
def test_an_encoding_that_is_none(gateway: Gateway, key: Key, encoding: bytes) -> None:
    fields = [*auth(key), (b"grpc-encoding", encoding)]
    body = frame(chat().SerializeToString(), compressed=1)
    heard = exchange(gateway.grpc, CHAT, body, fields=fields)
    assert heard.status in (
        grpc.StatusCode.UNIMPLEMENTED.value[0],
        grpc.StatusCode.INTERNAL.value[0],
    )


def test_compressed_messages(gateway: Gateway, key: Key) -> None:
    fields = [*auth(key), (b"grpc-encoding", b"gzip")]
    packed = gzip.compress(chat("sim", max_tokens=1).SerializeToString())
    heard = exchange(gateway.grpc, CHAT, frame(packed, compressed=1), fields=fields)
    assert heard.status == 0
    bomb = chat(content="x" * (10 * BODY_BYTES)).SerializeToString()
    with channel(gateway.grpc) as opened:
        ask_packed = opened.unary_unary(CHAT.decode())
        carried = [("authorization", f"Bearer {key.secret}")]
        with pytest.raises(grpc.RpcError) as caught:
            ask_packed(bomb, timeout=20, metadata=carried, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_over_the_limit(gateway: Gateway, opened: grpc.Channel, key: Key) -> None:
    told = ask(opened, "ChatCompletion", chat(content="x" * (BODY_BYTES + 1)), key=key.secret)
    assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_of_nobody_is_not_read(gateway: Gateway) -> None:
    """A sender without a key is refused before its message is there."""
    body = frame(b"x" * 10, length=BODY_BYTES)
    heard = exchange(gateway.grpc, CHAT, body)
    assert heard.status == grpc.StatusCode.UNAUTHENTICATED.value[0]


@pytest.mark.parametrize("timeout", [b"zz", b"999999999999H", b"-1S", b"0n"])
def test_timeouts(gateway: Gateway, key: Key, timeout: bytes) -> None:
    fields = [*auth(key), (b"grpc-timeout", timeout)]
    body = frame(chat("sim", max_tokens=1).SerializeToString())
    heard = exchange(gateway.grpc, CHAT, body, fields=fields)
    assert heard.reset or b"grpc-status" in heard.fields


def test_gets_and_plain_http(gateway: Gateway) -> None:
    heard = exchange(gateway.grpc, CHAT, b"", method=b"GET")
    assert heard.reset or heard.fields.get(b"grpc-status") != b"0"
    heard = exchange(gateway.grpc, CHAT, b"{}", content_type=b"application/json")
    assert heard.reset or heard.fields.get(b"grpc-status") != b"0"


def test_methods_are_not_served_by_http(gateway: Gateway, key: Key) -> None:
    answer = gateway.call(CHAT.decode(), json.dumps({}).encode(), key=key.secret)
    assert answer.status == 404

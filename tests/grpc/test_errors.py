"""What gRPC clients are told of what went wrong."""

import threading
import time

import grpc
import pytest
from forebay.grpc.v1 import inference_pb2 as pb

from tests.support.grpc_calls import ask, begin, chat, finish
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, usage
from tests.support.wait import until

METHODS = ("ChatCompletion", "StreamChatCompletion")


@pytest.mark.parametrize("name", METHODS)
def test_without_a_key(opened: grpc.Channel, name: str) -> None:
    told = ask(opened, name, chat())
    assert told.brief == ("UNAUTHENTICATED", "UNAUTHENTICATED", "missing_api_key")
    assert told.detail("ErrorInfo").domain == "forebay.dev"
    assert told.detail("RequestInfo").request_id == told.trailing["x-request-id"]
    assert ask(opened, name, chat(), key="fb-none").code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_is_not_the_keys(gateway: Gateway, opened: grpc.Channel, name: str) -> None:
    key = gateway.key(models=["sim"])
    told = ask(opened, name, chat("tiny"), key=key.secret)
    assert told.code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND)
    assert "x-forebay-upstream" not in told.trailing
    unknown = ask(opened, name, chat("nobody-has-it"), key=key.secret)
    assert unknown.brief[:2] == ("NOT_FOUND", "MODEL_NOT_FOUND")


@pytest.mark.parametrize("name", METHODS)
def test_over_a_rate(gateway: Gateway, opened: grpc.Channel, name: str) -> None:
    key = gateway.key(rpm=1, rpm_burst=1)
    assert ask(opened, name, chat("sim", max_tokens=1), key=key.secret).code.value[0] == 0
    told = ask(opened, name, chat("sim", max_tokens=1), key=key.secret)
    assert told.brief[:2] == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    wait_s = told.detail("RetryInfo").retry_delay.ToTimedelta().total_seconds()
    assert 50 < wait_s <= 60
    assert 50 < int(told.trailing["retry-after"]) <= 60
    assert told.trailing["x-ratelimit-remaining-requests"] == "0"
    assert [violation.subject for violation in told.detail("QuotaFailure").violations] == ["key"]
    assert told.trailing["grpc-retry-pushback-ms"] == "-1", "nobody should wait that long unasked"


def test_more_than_a_limit_ever_allows(gateway: Gateway, opened: grpc.Channel) -> None:
    key = gateway.key(tpm=10, tpm_burst=10)
    told = ask(opened, "ChatCompletion", chat("sim", content="x" * 4000), key=key.secret)
    assert told.brief[:2] == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert told.trailing["grpc-retry-pushback-ms"] == "-1"


@pytest.mark.parametrize("name", METHODS)
def test_a_bad_field_is_named(opened: grpc.Channel, key: Key, name: str) -> None:
    told = ask(opened, name, chat(""), key=key.secret)
    assert told.brief == ("INVALID_ARGUMENT", "INVALID_REQUEST", "missing_required_parameter")
    assert told.detail("BadRequest").field_violations[0].field == "model"
    empty = ask(opened, name, pb.ChatCompletionRequest(model="tiny"), key=key.secret)
    assert empty.detail("BadRequest").field_violations[0].field == "messages"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_message(opened: grpc.Channel, key: Key, name: str) -> None:
    told = ask(opened, name, b"\xff\xff\xff", key=key.secret)
    assert told.brief[:2] == ("INVALID_ARGUMENT", "INVALID_REQUEST")


@pytest.mark.parametrize("name", METHODS)
def test_nobody_answers(opened: grpc.Channel, key: Key, name: str) -> None:
    told = ask(opened, name, chat("gone"), key=key.secret)
    assert told.code is grpc.StatusCode.UNAVAILABLE
    assert told.detail("ErrorInfo").reason in ("UNAVAILABLE", "UPSTREAM_ERROR")
    assert "127.0.0.1" not in told.message


def test_an_engine_that_dies_in_the_middle(
    gateway: Gateway, opened: grpc.Channel, upstream: ScriptedUpstream, key: Key
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a", usage=usage(4, 1)))
        connection.close()

    upstream.script = script
    named = [("x-request-id", "grpc-died")]
    told = ask(opened, "StreamChatCompletion", chat("plain"), key=key.secret, metadata=named)
    assert told.messages[0].choices[0].delta.content == "a"
    assert told.brief[:2] == ("UNAVAILABLE", "UPSTREAM_ERROR")
    assert told.detail("RequestInfo").request_id == "grpc-died"
    row = gateway.usage(1, request_id="grpc-died")[0]
    assert (row["front"], row["error_kind"]) == ("grpc", "upstream_error")


@pytest.mark.parametrize("name", METHODS)
def test_a_deadline_is_the_total_time(
    gateway: Gateway, opened: grpc.Channel, upstream: ScriptedUpstream, key: Key, name: str
) -> None:
    gone: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        if name.startswith("Stream"):
            connection.begin()
            connection.event(delta("a", usage=usage(4, 1)))
        gone.append(connection.hung_up())

    upstream.script = script
    named = [("x-request-id", f"late-{name}")]
    began = time.monotonic()
    told = ask(opened, name, chat(), key=key.secret, metadata=named, timeout_s=0.5)
    assert told.code is grpc.StatusCode.DEADLINE_EXCEEDED
    upstream.wait_idle()
    assert 0.3 < gone[0] - began < 3
    row = gateway.usage(1, request_id=f"late-{name}")[0]
    assert (row["front"], row["error_kind"]) == ("grpc", "upstream_timeout")


@pytest.mark.parametrize("name", METHODS)
def test_a_client_that_goes_stops_the_engine(
    gateway: Gateway, opened: grpc.Channel, upstream: ScriptedUpstream, key: Key, name: str
) -> None:
    gone: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        if name.startswith("Stream"):
            connection.begin()
            connection.event(delta("a", usage=usage(4, 1)))
        gone.append(connection.hung_up())

    upstream.script = script
    named = [("x-request-id", f"left-{name}")]
    call = begin(opened, name, chat(), key=key.secret, metadata=named)
    if name.startswith("Stream"):
        assert next(call).choices[0].delta.content == "a"
    else:
        until(lambda: upstream.active == 1, "the request arrives")
    call.cancel()
    upstream.wait_idle()
    assert gone
    until(lambda: upstream.aborts, "the engine is told to stop")
    row = gateway.usage(1, request_id=f"left-{name}")[0]
    assert (row["front"], row["outcome"]) == ("grpc", "client_closed")
    gateway.wait_idle()


def test_a_slow_reader_slows_its_engine(
    gateway: Gateway, opened: grpc.Channel, upstream: ScriptedUpstream, key: Key
) -> None:
    sent = [0]
    stuck = threading.Event()

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.socket.settimeout(1.0)
        try:
            while True:
                connection.event(delta("x" * 100_000))
                sent[0] += 1
        except TimeoutError:
            stuck.set()
            connection.close()

    upstream.script = script
    call = begin(opened, "StreamChatCompletion", chat(), key=key.secret)
    assert next(call)
    assert stuck.wait(15), "the engine can send as much as it likes"
    assert sent[0] < 400, "40 MB are somewhere"
    assert finish(call).code is grpc.StatusCode.UNAVAILABLE
    gateway.wait_idle()

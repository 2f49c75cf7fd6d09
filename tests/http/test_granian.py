"""`listen.server: granian`: the same answers when Granian listens and all is in the application."""

from collections.abc import Iterator

import pytest
from openai import AuthenticationError, NotFoundError, OpenAI

from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta
from tests.support.wait import until
from tests.support.wire import CHAT, Client, chat, request


@pytest.fixture(scope="module")
def granian(
    tmp_path_factory: pytest.TempPathFactory,
    session_database_url: str,
    sim: Engine,
    scripted: ScriptedUpstream,
) -> Iterator[Gateway]:
    """A gateway whose application serves everything."""
    config = {
        "listen": {"server": "granian"},
        "upstreams": {
            "raw": {"kind": "sglang", "url": scripted.url},
            "sim": {"kind": "sglang", "url": sim.url},
        },
        "models": {
            "tiny": {"targets": [{"upstream": "raw"}]},
            "sim": {"targets": [{"upstream": "sim"}]},
        },
        "limits": {"body_bytes": 100_000},
    }
    process = Gateway(tmp_path_factory.mktemp("granian"), config, session_database_url)
    process.start()
    until(lambda: process.health()["checks"]["upstream:sim"] == "ok", "the engine")
    yield process
    assert process.stop() == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


@pytest.fixture(scope="module")
def secret(granian: Gateway) -> Key:
    """A key of that gateway."""
    return granian.key(rpm=60_000, tpm=10_000_000)


def test_the_sdk_cannot_tell(granian: Gateway, secret: Key) -> None:
    client = OpenAI(base_url=granian.url + "/v1", api_key=secret.secret, max_retries=0)
    message = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(model="sim", messages=message)  # type: ignore[call-overload]
    stream = client.chat.completions.create(model="sim", messages=message, stream=True)  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {"sim", "tiny"} <= {model.id for model in client.models.list()}
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="nope", messages=message)  # type: ignore[call-overload]
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=granian.url + "/v1", api_key="fb-no", max_retries=0).models.list()


def test_many_streams_at_once_are_whole(granian: Gateway, secret: Key) -> None:
    clients = [Client(granian.port) for _ in range(32)]
    for client in clients:
        body = chat("sim", "/words 30", stream=True)
        client.send(request(CHAT, body, key=secret.secret))
    for client in clients:
        answer = client.answer()
        assert answer.status == 200
        assert answer.complete
        assert answer.data()[-1] == "[DONE]"
        client.__exit__(None, None, None)


def test_refusals_have_the_same_shape(granian: Gateway, secret: Key) -> None:
    refused = granian.call(CHAT, chat("sim", "x" * 200_000), key=secret.secret)
    assert refused.brief()[0] == 413
    assert granian.call(CHAT, chat("sim", "x" * 90_000)).status == 401
    assert granian.call(CHAT, method="GET", key=secret.secret).status == 405
    assert granian.call("/v1/nowhere", key=secret.secret).status == 404
    for answer in (refused, granian.call(CHAT, method="GET"), granian.call("/v1/nowhere")):
        assert (answer.header("x-request-id") or "").startswith("req_")
        assert set(answer.error()) == {"message", "type", "param", "code"}


def test_a_client_that_leaves_stops_the_engine(
    granian: Gateway, scripted: ScriptedUpstream, secret: Key
) -> None:
    scripted.wait_idle()
    scripted.reset()
    gone: list[float] = []

    def script(connection: Connection, _: Received) -> None:
        connection.begin()
        connection.event(delta("a"))
        gone.append(connection.hung_up())

    scripted.script = script
    client = Client(granian.port)
    client.send(request(CHAT, chat(stream=True), key=secret.secret))
    client.head()
    client.socket.close()
    until(lambda: bool(gone), "the engine's connection is closed")
    granian.wait_idle()
    scripted.wait_idle()

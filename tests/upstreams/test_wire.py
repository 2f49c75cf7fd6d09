"""Credentials and questions that Python hands to the core."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest
import pytest_asyncio
from forebay._core import Core
from forebay.config import Config, Model, Target, Upstream
from forebay.gateway import snapshot

from tests.support.upstream import ScriptedUpstream

PATH = "/v1/embeddings"
"""One that the scripted engine keeps."""


@pytest.fixture
def engine() -> Iterator[ScriptedUpstream]:
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()
    engine.wait_idle()
    assert not engine.failures


def document(engine: ScriptedUpstream, **fields: object) -> bytes:
    """A configuration of one upstream, `engine`, with `fields` of its own."""
    config = Config(
        upstreams={"engine": Upstream(kind="sglang", url=engine.url)},
        models={"tiny": Model(targets=(Target(upstream="engine"),))},
    )
    made = orjson.loads(snapshot.build(config, {}))
    made["upstreams"][0].update(fields)
    return orjson.dumps(made)


@pytest_asyncio.fixture
async def core() -> AsyncIterator[Core]:
    core = Core()
    core.attach(asyncio.get_running_loop())
    yield core
    core.close()
    await asyncio.sleep(0)


async def ask(core: Core) -> tuple[int, bytes]:
    exchange = core.fetch("engine", PATH, 5.0, method="POST", body=b'{"wake":true}')
    answer = exchange.start()
    if isinstance(answer, asyncio.Future):
        answer = await answer
    assert answer is not None
    return answer[0], answer[2]


async def test_credentials_are_waited_for_and_replaced(
    core: Core, engine: ScriptedUpstream
) -> None:
    core.configure(document(engine, credentials=True))
    status, body = await ask(core)
    assert status == 503
    assert b"credentials" not in body
    assert engine.requests == []
    for token in ("t-1", "t-2"):
        credentials = {"headers": [["authorization", f"Bearer {token}"]]}
        core.set_credentials("engine", orjson.dumps(credentials))
        assert (await ask(core))[0] == 200
        assert engine.requests[-1].header("authorization") == f"Bearer {token}"
    core.configure(document(engine, credentials=True, continues=True))
    assert (await ask(core))[0] == 200
    assert engine.requests[-1].header("authorization") == "Bearer t-2"
    notes = repr(core.take_failures())
    assert "no credentials have come" in notes
    assert "t-1" not in notes


async def test_a_question_has_a_method_and_a_body(core: Core, engine: ScriptedUpstream) -> None:
    core.configure(document(engine))
    assert (await ask(core))[0] == 200
    seen = engine.only()
    assert (seen.method, seen.path, seen.body) == ("POST", PATH, b'{"wake":true}')
    assert core.take_usage(10) == []


def test_credentials_that_do_not_fit_are_refused(engine: ScriptedUpstream) -> None:
    core = Core()
    core.configure(document(engine))
    for name, credentials in (
        ("nobody", b'{"headers": []}'),
        ("engine", b""),
        ("engine", b'{"headers": [["host", "s-1"]]}'),
        ("engine", b'{"access_key": "a", "secret_key": "s-1"}'),
    ):
        with pytest.raises(ValueError, match=name) as caught:
            core.set_credentials(name, credentials)
        assert "s-1" not in str(caught.value)
    with pytest.raises(ValueError, match="method"):
        core.fetch("engine", "/", 1.0, method="B AD")
    core.close()

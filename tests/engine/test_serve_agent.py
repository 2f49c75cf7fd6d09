"""The agent's paths, with a real engine behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from forebay_engine.serve.agent import Agent, address
from forebay_engine.serve.http import MAX_ERROR, HttpxHttp
from forebay_engine.serve.supervisor import Supervisor
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.engine.serve_helpers import LIMIT_S, supervised


@pytest.fixture
async def engine() -> AsyncIterator[Supervisor]:
    async with supervised("--load-delay", "0.1") as supervisor:
        yield supervisor


def client(agent: Agent, key: str | None = None) -> httpx.AsyncClient:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app=agent)
    return httpx.AsyncClient(transport=transport, base_url="http://agent", headers=headers)


async def test_an_engine_is_woken_parked_and_drained_by_words(engine: Supervisor) -> None:
    agent = Agent(lambda: (engine,))
    async with client(agent) as http:
        cold = (await http.get("/state")).json()
        assert (cold["state"], cold["parked"], cold["load"]) == ("cold", False, None)
        assert (await http.get("/ready")).status_code == 503

        woken = await http.post("/wake")
        assert (woken.status_code, woken.json()) == (202, {"state": "loading"})
        assert (await http.post("/wake")).status_code == 202
        await engine.wait_for("warm", LIMIT_S)
        assert (await http.get("/ready")).status_code == 200
        state = (await http.get("/state")).json()
        assert state["engine"] == {
            "kind": "sglang",
            "model": "tiny",
            "url": engine.profile.url,
            "pid": engine.pid,
        }
        assert set(state["phases"]) == {
            "prepare", "process", "import", "weights", "graphs", "ready", "first_token",
        }  # fmt: skip
        assert state["since_s"] >= 0

        parked = await http.post("/park")
        assert (parked.status_code, parked.json()["state"]) == (202, "draining")
        await engine.wait_for("cold", LIMIT_S)
        await http.post("/wake")
        await engine.wait_for("warm", LIMIT_S)
        drained = await http.post("/drain")
        assert (drained.status_code, drained.json()) == (202, {"state": "draining"})
        assert (await http.get("/ready")).status_code == 503
        await engine.wait_for("down", LIMIT_S)
        assert (await http.post("/drain")).json() == {"state": "down"}
    await agent.close()


async def test_figures_are_told(engine: Supervisor) -> None:
    agent = Agent(lambda: (engine,))
    await engine.wake()
    await engine.wait_for("warm", LIMIT_S)
    async with client(agent) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'forebay_engine_info{kind="sglang",member="0",model="tiny"} 1.0' in lines
    assert 'forebay_engine_state{member="0",state="warm"} 1.0' in lines
    assert 'forebay_engine_state{member="0",state="cold"} 0.0' in lines
    assert 'forebay_engine_crashes_total{member="0"} 0.0' in lines
    assert any(line.startswith("forebay_engine_phase_seconds") for line in lines)


async def test_with_a_key_only_readiness_is_open(engine: Supervisor) -> None:
    agent = Agent(lambda: (engine,), key="sésame")
    async with client(agent) as http:
        assert (await http.get("/ready")).status_code == 503
        for method, path in [
            ("GET", "/state"),
            ("GET", "/metrics"),
            ("POST", "/wake"),
            ("POST", "/drain"),
            ("GET", "/nowhere"),
        ]:
            refused = await http.request(method, path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
    assert engine.state == "cold"
    async with client(agent) as http:
        given = {"authorization": "Bearer sésame".encode()}
        assert (await http.get("/state", headers=given)).status_code == 200
    async with client(agent, "other") as http:
        assert (await http.get("/state")).status_code == 401


async def test_members_are_told_apart() -> None:
    async with supervised() as first, supervised() as second:
        agent = Agent(lambda: (first, second))
        async with client(agent) as http:
            for index, engine in enumerate((first, second)):
                told = (await http.get("/state", params={"member": index})).json()
                assert told["engine"]["url"] == engine.profile.url
            for word in ("2", "-1", "x", "²"):
                refused = await http.get("/state", params={"member": word})
                assert (refused.status_code, "member" in refused.json()["error"]) == (404, True)
            assert (await http.get("/wake")).status_code == 405


async def test_more_paths_can_be_added_under_the_same_key(engine: Supervisor) -> None:
    async def pool(request: object) -> PlainTextResponse:
        return PlainTextResponse("pool")

    agent = Agent(lambda: (engine,), key="k", routes=[Route("/pool", pool)])
    async with client(agent) as http:
        assert (await http.get("/pool")).status_code == 401
    async with client(agent, "k") as http:
        assert (await http.get("/pool")).text == "pool"


@pytest.mark.parametrize(
    ("word", "key", "found"),
    [
        ("127.0.0.1:30080", None, ("127.0.0.1", 30080)),
        ("[::1]:1", None, ("::1", 1)),
        ("localhost:0", None, ("localhost", 0)),
        ("0.0.0.0:30080", "k", ("0.0.0.0", 30080)),
    ],
)
def test_addresses(word: str, key: str | None, found: tuple[str, int]) -> None:
    assert address(word, key) == found


@pytest.mark.parametrize("word", ["30080", "host:", ":1", "h:x", "h:70000", "0.0.0.0:1", "host:1"])
def test_an_address_that_is_none_or_open_to_others_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="--agent"):
        address(word, None)


async def test_a_member_of_many_digits_is_none(engine: Supervisor) -> None:
    async with client(Agent(lambda: (engine,))) as http:
        assert (await http.get(f"/state?member={'9' * 5000}")).status_code == 404


async def test_of_an_error_only_the_beginning_is_read() -> None:
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 999999999\r\n\r\n" + b"x" * 100_000)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    http = HttpxHttp()
    status, body = await http.stream(url, b"", on_token=lambda: None, timeout_s=LIMIT_S)
    assert (status, body) == (500, b"x" * MAX_ERROR)
    await http.close()
    await asyncio.wait_for(ended.wait(), LIMIT_S)
    server.close()

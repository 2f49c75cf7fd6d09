"""Faults: how they are written, chosen, and what they do on the wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from forebay_engine.sim.faults import BadFault, Fault, FaultPlan
from forebay_engine.sim.faults import parse as read_fault

from tests.engine.engine_client import (
    CHAT,
    Answer,
    call,
    chat,
    connect,
    parse,
    records,
    request,
    serve,
    wait_for,
)

WHOLE = " Hello there, this is a scripted answer."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stall", Fault("stall", after=3)),
        ("cut:0", Fault("cut", after=0)),
        ("cut-mid-event:2@0.5", Fault("cut-mid-event", after=2, probability=0.5)),
        ("slow-first-token:1.5", Fault("slow-first-token", seconds=1.5)),
        ("loading", Fault("loading")),
        ("status:429:7", Fault("status", status=429, retry_after_s=7)),
        ("no-usage@0", Fault("no-usage", probability=0.0)),
    ],
)
def test_specifications(text: str, expected: Fault) -> None:
    assert read_fault(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "nope", "cut:x", "cut:-1", "cut:1:2", "cut@2", "cut@x", "status", "status:200", "empty:1",
     "slow-first-token", "slow-first-token:nan"],
)  # fmt: skip
def test_bad_specifications(text: str) -> None:
    with pytest.raises(BadFault):
        read_fault(text)


def test_choices_depend_on_the_seed_alone() -> None:
    spec = (read_fault("cut@0.3"), read_fault("empty@0.3"))
    first = [FaultPlan(spec, 7).pick() for _ in range(1)]
    plan = FaultPlan(spec, 7)
    drawn = [plan.pick() for _ in range(400)]
    plan.reset()
    assert [plan.pick() for _ in range(400)] == drawn
    assert drawn[:1] == first
    cuts = sum(1 for fault in drawn if fault is not None and fault.kind == "cut")
    assert 80 < cuts < 160
    other = FaultPlan(spec, 8)
    assert [other.pick() for _ in range(400)] != drawn


async def streamed(fault: str, **fields: Any) -> Answer:
    """A stream with a fault."""
    body = chat("hi", stream=True, stream_options={"include_usage": True}, **fields)
    async with serve() as server:
        answer = await call(server, CHAT, body, {"x-sim-fault": fault})
        last = (await records(server))[-1]
        assert last["fault"] == fault.split(":")[0]
    return answer


async def test_cut_ends_after_whole_events_without_a_last_chunk() -> None:
    answer = await streamed("cut:4")
    assert not answer.complete
    assert len(answer.chunks()) == 4
    assert answer.text() == " Hello there,"


async def test_cut_before_the_first_event_sends_headers_only() -> None:
    answer = await streamed("cut:0")
    assert (answer.status, answer.body, answer.complete) == (200, b"", False)


async def test_cut_mid_event() -> None:
    answer = await streamed("cut-mid-event:2")
    assert not answer.complete
    *whole, part = answer.body.split(b"\n\n")
    assert len(whole) == 2
    assert part.startswith(b'data: {"id":')
    with pytest.raises(json.JSONDecodeError):
        json.loads(part.removeprefix(b"data: "))


async def test_garbage_is_well_framed_but_no_text() -> None:
    answer = await streamed("garbage")
    assert answer.complete
    with pytest.raises(UnicodeDecodeError):
        answer.body.decode()


async def test_garbage_json() -> None:
    answer = await streamed("garbage-json:1")
    assert answer.complete
    first, *broken, done = answer.data()
    assert json.loads(first)["object"] == "chat.completion.chunk"
    assert done == "[DONE]"
    for item in broken:
        with pytest.raises(json.JSONDecodeError):
            json.loads(item)


async def test_error_event() -> None:
    answer = await streamed("error-event:3")
    assert answer.complete
    assert answer.chunks()[-1]["error"]["code"] == 500
    assert answer.data()[-1] == "[DONE]"


async def test_no_finish_no_done_and_no_usage() -> None:
    answer = await streamed("no-finish")
    assert {c["finish_reason"] for chunk in answer.chunks() for c in chunk["choices"]} == {None}
    assert (answer.data()[-1], answer.text()) == ("[DONE]", WHOLE)
    answer = await streamed("no-done")
    assert (answer.data()[-1] != "[DONE]", answer.complete, answer.text()) == (True, True, WHOLE)
    answer = await streamed("no-usage")
    assert all("usage" not in chunk for chunk in answer.chunks())
    assert answer.data()[-1] == "[DONE]"


async def test_stall_keeps_the_socket_and_says_nothing() -> None:
    async with serve() as server:
        reader, writer = await connect(server)
        writer.write(request(CHAT, chat("hi", stream=True, sim_fault="stall:2")))
        head = await reader.readuntil(b"\r\n\r\n")
        received = await reader.read(65536)
        silence = asyncio.ensure_future(reader.read(65536))
        done, _ = await asyncio.wait([silence], timeout=0.3)
        assert not done
        silence.cancel()
        assert not reader.at_eof()
        writer.close()
        assert parse(head + received).text() == " Hello"
        last = (await records(server))[-1]
        assert (last["outcome"], last["delivered_tokens"]) == ("fault:stall", 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stall_may_come_before_the_first_byte(stream: bool) -> None:
    async with serve() as server:
        reader, writer = await connect(server)
        writer.write(request(CHAT, chat("hi", stream=stream, sim_fault="stall:0")))
        await wait_for(server, "fault:stall")
        silence = asyncio.ensure_future(reader.read(1))
        done, _ = await asyncio.wait([silence], timeout=0.2)
        assert not done
        silence.cancel()
        writer.close()


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
async def test_status_loading_and_empty(path: str) -> None:
    body = {"model": "e" if "emb" in path else "tiny", "input": "x", "prompt": "x"}
    body |= chat("hi")
    body["model"] = "e" if "emb" in path else "tiny"
    async with serve(embedding_models=("e",)) as server:
        answer = await call(server, path, {**body, "sim_fault": "status:429:3"})
        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        assert answer.json()["object"] == "error"
        assert (await call(server, path, {**body, "sim_fault": "loading"})).status == 503
        reader, writer = await connect(server)
        writer.write(request(path, {**body, "sim_fault": "empty"}))
        assert await reader.read() == b""
        writer.close()


async def test_unary_bodies() -> None:
    async with serve() as server:
        answer = await call(server, CHAT, chat("hi", sim_fault="cut"))
        assert (answer.status, answer.complete) == (200, False)
        answer = await call(server, CHAT, chat("hi", sim_fault="garbage-json"))
        assert answer.complete
        with pytest.raises(json.JSONDecodeError):
            answer.json()
        answer = await call(server, CHAT, chat("hi", sim_fault="error-event"))
        assert (answer.status, answer.json()["error"]["code"]) == (200, 500)
        answer = await call(server, CHAT, chat("hi", sim_fault="no-usage"))
        assert "usage" not in answer.json()
        answer = await call(server, CHAT, chat("hi", sim_fault="no-finish"))
        assert answer.json()["choices"][0]["finish_reason"] is None


async def test_slow_first_token() -> None:
    async with serve() as server:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await call(server, CHAT, chat("hi", stream=True, sim_fault="slow-first-token:0.25"))
        assert 0.24 < loop.time() - began < 3


async def test_a_server_wide_fault_and_its_replacement() -> None:
    async with serve(faults=(read_fault("status:500"),)) as server:
        assert (await call(server, CHAT, chat("hi"))).status == 500
        assert (await call(server, CHAT, chat("hi", sim_fault="cut@0"))).status == 200
        assert (await call(server, "/sim/faults", {"faults": []})).status == 200
        assert (await call(server, CHAT, chat("hi"))).status == 200
        assert (await call(server, "/sim/faults", {"faults": ["nope"]})).status == 400


async def test_a_loading_server_is_not_ready() -> None:
    async with serve(faults=(read_fault("loading:0.3"),)) as server:
        assert (await call(server, "/ready")).status == 503
        assert (await call(server, CHAT, chat("hi"))).status == 503
        await asyncio.sleep(0.35)
        assert (await call(server, "/ready")).status == 200
        assert (await call(server, CHAT, chat("hi"))).status == 200


async def test_request_faults_can_be_ignored_and_bad_ones_are_refused() -> None:
    async with serve(request_faults=False) as server:
        assert (await call(server, CHAT, chat("hi", sim_fault="empty"))).status == 200
    async with serve() as server:
        answer = await call(server, CHAT, chat("hi", sim_fault="what"))
        assert (answer.status, "what" in answer.json()["message"]) == (400, True)
        await wait_for(server, "error:400")

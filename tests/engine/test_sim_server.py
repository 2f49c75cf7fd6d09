"""The server as a client meets it: hang-ups, aborts, limits, start and end."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forebay_engine.cli import main
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.scheduler import Limits
from forebay_engine.sim.server import Server

from tests.engine.engine_client import (
    CHAT,
    Answer,
    call,
    chat,
    connect,
    parse,
    records,
    request,
    send_raw,
    serve,
    wait_for,
)

SLOW = Limits(prefill_rate=0, decode_rate=50)


async def begin(server: Server, body: dict[str, Any]) -> tuple[Any, asyncio.StreamWriter, bytes]:
    """Start a stream and read until its headers are there."""
    reader, writer = await connect(server)
    writer.write(request(CHAT, body))
    head = await reader.readuntil(b"\r\n\r\n")
    return reader, writer, head


async def loads(server: Server) -> tuple[int, int]:
    """Running and waiting."""
    load = (await call(server, "/v1/loads")).json()["loads"][0]
    return load["num_running_reqs"], load["num_waiting_reqs"]


async def test_tokens_come_at_the_decode_rate() -> None:
    async with serve(limits=SLOW) as server:
        began = time.monotonic()
        reader, writer, _ = await begin(server, chat("/loop", stream=True, max_tokens=11))
        first = time.monotonic() - began
        await reader.read()
        took = time.monotonic() - began
        assert first < took - 0.1
        assert 0.18 < took < 2
        writer.close()


async def test_a_stream_that_is_hung_up_on_ends_soon() -> None:
    async with serve(limits=SLOW) as server:
        _, writer, _ = await begin(server, chat("/loop", stream=True, rid="r"))
        writer.close()
        began = time.monotonic()
        record = await wait_for(server, "disconnected")
        assert time.monotonic() - began < 3
        assert 0 < record["delivered_tokens"] <= record["completion_tokens"]
        assert await loads(server) == (0, 0)


async def test_a_half_closed_connection_counts_as_hung_up() -> None:
    async with serve(limits=SLOW) as server:
        reader, writer, _ = await begin(server, chat("/loop", stream=True))
        writer.write_eof()
        await reader.read()
        await wait_for(server, "disconnected")
        writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_other_hang_ups_wait_for_the_poll_unless_aborted(stream: bool) -> None:
    limits = Limits(prefill_rate=0, decode_rate=50, max_running=1)
    async with serve(limits=limits, disconnect_poll_s=0.5) as server:
        if stream:  # a stream that is queued has sent no headers yet
            _, first, _ = await begin(server, chat("/loop", stream=True, rid="first"))
        _, writer = await connect(server)
        writer.write(request(CHAT, chat("/loop", rid="gone", stream=stream)))
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.sleep(0.2)
        assert (await records(server))[-1]["outcome"] in ("running", "queued")
        await asyncio.sleep(0.4)
        assert (await records(server))[-1]["outcome"] == "disconnected"
        if stream:
            first.close()


async def test_abort_by_rid_answers_with_what_there_is() -> None:
    async with serve(limits=SLOW) as server:
        unary = asyncio.ensure_future(call(server, CHAT, chat("/loop", rid="u")))
        stream = asyncio.ensure_future(call(server, CHAT, chat("/loop", rid="s", stream=True)))
        text = asyncio.ensure_future(
            call(server, "/v1/completions", {"prompt": "/loop", "rid": "t", "stream": True,
                                             "max_tokens": 999})
        )  # fmt: skip
        await asyncio.sleep(0.1)
        assert (await call(server, "/abort_request", {"rid": "unknown"})).status == 200
        for rid in "ust":
            assert (await call(server, "/abort_request", {"rid": rid})).body == b""
        body = (await unary).json()
        assert (body["id"], body["choices"][0]["finish_reason"]) == ("u", "abort")
        assert body["usage"]["completion_tokens"] > 0
        assert (await stream).chunks()[-1]["choices"][0]["finish_reason"] == "abort"
        assert (await text).chunks()[-1]["choices"][0]["finish_reason"] == "abort"
        assert await loads(server) == (0, 0)


async def test_abort_all_reaches_the_queue() -> None:
    async with serve(limits=Limits(decode_rate=50, max_running=1)) as server:
        calls = [asyncio.ensure_future(call(server, CHAT, chat("/loop"))) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert await loads(server) == (1, 2)
        await call(server, "/abort_request", {"abort_all": True})
        answers = await asyncio.gather(*calls)
        reasons = [answer.json()["choices"][0]["finish_reason"] for answer in answers]
        assert reasons == ["abort"] * 3


async def test_a_running_rid_is_refused_and_free_again_afterwards() -> None:
    async with serve(limits=SLOW) as server:
        _, writer, _ = await begin(server, chat("/loop", stream=True, rid="dup"))
        answer = await call(server, CHAT, chat("hi", rid="dup"))
        assert answer.json()["message"] == "Duplicate request ID detected: dup"
        await call(server, "/abort_request", {"rid": "dup"})
        assert (await call(server, CHAT, chat("hi", rid="dup"))).status == 200
        writer.close()


async def test_flush_cache_while_busy_and_cached_tokens() -> None:
    async with serve(limits=SLOW, cache_report=True) as server:
        prompt = "x" * 4000
        seen = []
        for _ in range(2):
            usage = (await call(server, CHAT, chat(prompt, max_tokens=1))).json()["usage"]
            seen.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert seen == [0, usage["prompt_tokens"] - 1]
        longer = chat(prompt + " and then some", max_tokens=1)
        usage = (await call(server, CHAT, longer)).json()["usage"]
        assert 900 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
        _, writer, _ = await begin(server, chat("/loop", stream=True, rid="busy"))
        assert (await call(server, "/flush_cache", {})).status == 400
        await call(server, "/abort_request", {"rid": "busy"})
        assert (await call(server, "/flush_cache", {})).status == 200
        usage = (await call(server, CHAT, chat(prompt, max_tokens=1))).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        writer.close()


async def test_pause_and_continue() -> None:
    async with serve(limits=SLOW) as server:
        await call(server, "/pause_generation", {"mode": "in_place"})
        assert (await call(server, "/ready")).status == 503
        assert (await call(server, "/ping")).status == 200
        waiting = asyncio.ensure_future(call(server, CHAT, chat("hi")))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await call(server, "/continue_generation", {})
        assert (await waiting).status == 200
        assert (await call(server, "/ready")).status == 200


async def test_slow_down_and_its_end() -> None:
    async with serve() as server:
        await call(server, "/slow_down", {"forward_sleep_time": 0.5})
        began = time.monotonic()
        await call(server, CHAT, chat("hi", max_tokens=2))
        assert time.monotonic() - began > 0.9
        await call(server, "/slow_down", {"forward_sleep_time": None})
        began = time.monotonic()
        await call(server, CHAT, chat("hi", max_tokens=2))
        assert time.monotonic() - began < 0.9


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serve() as server:
        both = request(CHAT, chat("hi", rid="one"), close=False) + request(CHAT, chat("/uni"))
        raw = await send_raw(server, both)
        assert raw.count(b"HTTP/1.1 200 OK") == 2
        assert raw.index(b'"id":"one"') < raw.index("🚀".encode())


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST /generate HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}", 400),
        (b"DELETE /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 405),
    ],
)
async def test_bad_http(raw: bytes, status: int) -> None:
    async with serve() as server:
        assert parse(await send_raw(server, raw)).status == status


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"messages": "x"}, "list_type"),
        ({"messages": [1]}, "dict_type"),
        ({"stream": "yes"}, "bool_type"),
        ({"max_tokens": "4"}, "int_type"),
        ({"temperature": "hot"}, "float_type"),
        ({"n": 0}, "n must be"),
        ({"top_p": 2}, "top_p"),
        ({"model": 5}, "string_type"),
    ],
)
async def test_bad_fields(fields: dict[str, Any], part: str) -> None:
    async with serve() as server:
        answer = await call(server, CHAT, {**chat("hi"), **fields})
        assert (answer.status, part in answer.json()["message"]) == (400, True)
        for body in (b"[]", b"7", b"\xff", b"[" * 100_000):
            assert (await call(server, CHAT, body)).status == 400


async def test_the_same_seed_gives_the_same_text_and_continues_it() -> None:
    asked = "Tell me /words 40"
    async with serve(seed=3) as server:
        full = (await call(server, CHAT, chat(asked, stream=True))).text()
    async with serve(seed=3) as server:
        part = (await call(server, CHAT, chat(asked, max_tokens=17))).json()
        content = part["choices"][0]["message"]["content"]
        body = chat(asked, continue_final_message=True)
        body["messages"].append({"role": "assistant", "content": content})
        rest = (await call(server, CHAT, body)).json()["choices"][0]["message"]["content"]
        assert content + rest == full
    async with serve(seed=4) as server:
        assert (await call(server, CHAT, chat(asked, stream=True))).text() != full


async def test_history_shows_what_came_and_can_be_reset() -> None:
    async with serve() as server:
        await call(server, CHAT, chat("hi", rid="seen"), {"x-custom": "1"})
        answer = await call(server, "/sim/requests?rid=seen")
        (record,) = answer.json()["requests"]
        assert ["x-custom", "1"] in record["headers"]
        assert json.loads(record["body"])["rid"] == "seen"
        assert (record["outcome"], record["completion_tokens"]) == ("stop", 10)
        assert record["delivered_tokens"] == 10
        await call(server, "/sim/reset", {})
        assert await records(server) == []


async def test_metrics_count() -> None:
    async with serve() as server:
        await call(server, CHAT, chat("hi"))
        text = (await call(server, "/metrics")).body.decode()
        assert (
            'sglang:generation_tokens_total{engine_type="unified",model_name="tiny"} 10.0' in text
        )
        assert "sglang:time_to_first_token_seconds_count" in text
        assert 'le="+Inf"} 1.0' in text


async def test_several_models_and_embeddings_on_one_server() -> None:
    async with serve(models=("org/a", "b"), embedding_models=("e",), embedding_dim=8) as server:
        listed = (await call(server, "/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["org/a", "b", "e"]
        assert (await call(server, "/v1/models/org%2Fa")).json()["id"] == "org/a"
        assert (await call(server, "/v1/models/org/a")).json()["id"] == "org/a"
        answer = await call(server, "/v1/embeddings", {"model": "e", "input": ["p", "q", "p"]})
        vectors = [item["embedding"] for item in answer.json()["data"]]
        assert vectors[0] == vectors[2] != vectors[1]
        assert sum(value * value for value in vectors[0]) == pytest.approx(1.0, abs=0.01)
        refused = await call(server, "/v1/embeddings", {"model": "b", "input": "p"})
        assert refused.status == 400


async def test_loading_refuses_then_serves_before_it_is_ready() -> None:
    server = Server(SimOptions(port=0, load_delay_s=0.3, warmup_s=0.3))
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0.1)
    with pytest.raises(ConnectionRefusedError):
        await connect(server)
    await asyncio.sleep(0.3)
    assert (await call(server, "/ready")).status == 503
    assert (await call(server, "/health")).status == 503
    assert (await call(server, CHAT, chat("hi"))).status == 200
    await starting
    assert (await call(server, "/ready")).status == 200
    await server.stop()


async def test_nothing_is_left_behind_by_a_crowd_that_misbehaves() -> None:
    draw = random.Random(5)
    faults = ["cut:1", "cut-mid-event:2", "stall:1", "garbage", "empty", "status:500", "no-done"]
    limits = Limits(decode_rate=400, max_running=20, max_queued=30, kv_tokens=5000)

    async def one(server: Server, number: int) -> None:
        body = chat(f"/words {draw.randrange(40)} {'x' * draw.randrange(2000)}", max_tokens=30)
        body |= {"stream": draw.random() < 0.7, "n": draw.choice((1, 1, 3)), "rid": f"r{number}"}
        if draw.random() < 0.4:
            body["sim_fault"] = draw.choice(faults)
        patience = draw.uniform(0.02, 0.5)
        await asyncio.sleep(draw.uniform(0, 1))
        reader, writer = await connect(server)
        writer.write(request(draw.choice((CHAT, "/v1/completions")), {"prompt": "x", **body}))
        try:
            await asyncio.wait_for(reader.read(), patience)
        except (TimeoutError, ConnectionResetError):
            if draw.random() < 0.3:
                await call(server, "/abort_request", {"rid": f"r{number}"})
        writer.close()

    async with serve(limits=limits, disconnect_poll_s=0.3) as server:
        await asyncio.gather(*(one(server, number) for number in range(300)))
        await asyncio.sleep(0.6)
        scheduler = server.app.engine.scheduler
        assert server.app.engine.idle
        assert (scheduler.active, len(scheduler.queue)) == (0, 0)
        assert (scheduler.used_tokens, scheduler.reserved_tokens) == (0, 0)
        outcomes = {record["outcome"] for record in await records(server)}
        assert not outcomes & {"queued", "running"}
        assert "stop" in outcomes
        assert outcomes & {"disconnected", "abort"}
        assert any(outcome.startswith("fault:") for outcome in outcomes)
        assert not server.connections - {c for c in server.connections if not c.busy}


def sim(tmp_path: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """The command, started and ready."""
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "forebay_engine", "sim", "--port", "0", "--ready-file", str(ready),
         *options],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not ready.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, json.loads(ready.read_text())


async def test_the_command_drains_on_sigterm(tmp_path: Path) -> None:
    process, ready = sim(tmp_path, "--decode-rate", "20", "--model", "m")
    host, port = ready["url"].removeprefix("http://").split(":")
    assert ready["pid"] == process.pid

    async def ask(data: bytes) -> Answer:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        raw = await reader.read()
        writer.close()
        return parse(raw)

    stream = asyncio.ensure_future(ask(request(CHAT, chat("hi", stream=True))))
    await asyncio.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    await asyncio.sleep(0.1)
    assert (await ask(request("/ready"))).status == 503
    assert (await ask(request(CHAT, chat("hi", max_tokens=1)))).status == 200
    assert (await stream).data()[-1] == "[DONE]"
    out, _ = await asyncio.to_thread(process.communicate, timeout=5)
    assert process.returncode == 0
    assert out == f"forebay-engine sim: serving m on {ready['url']}\n"


async def test_a_stalled_answer_does_not_hold_up_the_end(tmp_path: Path) -> None:
    process, ready = sim(tmp_path)
    port = int(ready["url"].rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(CHAT, chat("hi", sim_fault="stall")))
    await asyncio.sleep(0.2)
    process.terminate()
    assert await reader.read() == b""
    await asyncio.to_thread(process.communicate, timeout=5)
    assert process.returncode == 0
    writer.close()


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    process, ready = sim(tmp_path, "--decode-rate", "1")
    port = int(ready["url"].rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(CHAT, chat("/loop", stream=True)))
    await reader.readuntil(b"\r\n\r\n")
    process.terminate()
    await asyncio.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    await asyncio.to_thread(process.communicate, timeout=5)
    assert process.returncode == 0
    writer.close()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "forebay_engine", "sim", "--port", "0", "--exit-with-parent"]
    script = (
        "import subprocess, sys, time, pathlib\n"
        f"subprocess.Popen({[*command, '--ready-file', str(ready)]!r})\n"
        f"while not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.02)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20, capture_output=True)
    pid = json.loads(ready.read_text())["pid"]
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").exists():
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "options", [["--fault", "nope"], ["--max-running", "0"], ["--load-delay", "-1"], ["--port"]]
)
def test_bad_options_are_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sim", *options])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_taken_port_is_an_error_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["sim", "--port", str(port)]) == 1
    assert str(port) in capsys.readouterr().err

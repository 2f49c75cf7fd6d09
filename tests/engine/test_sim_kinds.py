"""Simulated kinds, each alone: the same text on every wire, and each wire's own ways."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from botocore.auth import SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer  # type: ignore[import-untyped]
from forebay_engine.sim.kinds import KINDS
from forebay_engine.sim.scheduler import Limits
from forebay_engine.sim.server import Server

from tests.engine.engine_client import (
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
from tests.engine.kind_client import ALL, OPENAI_PATHS, ask, credentials, see

HELLO = " Hello there, this is a scripted answer."
CALLS = [["get_weather", {"city": "Rome"}], ["get_time", {"tz": "CET"}]]


async def converse(
    server: Server, kind: str, prompt: str = "hi", *, headers: Any = None, **more: Any
) -> Answer:
    """One chat request, in the kind's dialect."""
    path, body, own = ask(kind, prompt, **more)
    return await call(server, path, body, {**own, **(headers or {})})


async def faults(server: Server, *given: str) -> None:
    """Set a server's faults."""
    assert (await call(server, "/sim/faults", {"faults": list(given)})).status == 200


def test_every_kind_is_tested() -> None:
    assert {"sglang", *ALL} == set(KINDS)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ALL)
async def test_the_text_is_that_of_sglang(kind: str, stream: bool) -> None:
    async with serve() as plain, serve(kind=kind) as server:
        for prompt in ("hi", "/words 40", "/uni"):
            wanted = await call(plain, "/v1/chat/completions", chat(prompt))
            answer = await converse(server, kind, prompt, stream=stream)
            seen = see(kind, answer, stream=stream)
            assert answer.complete
            assert seen.text == wanted.json()["choices"][0]["message"]["content"]
            usage = wanted.json()["usage"]
            assert seen.usage is not None
            assert seen.usage[:2] == (usage["prompt_tokens"], usage["completion_tokens"])
            assert seen.error is None
            assert seen.reason in ("stop", "end_turn", "STOP")
            if stream:
                assert seen.done


CONTINUOUS = tuple(kind for kind in OPENAI_PATHS if getattr(KINDS[kind], "continuous", False))


@pytest.mark.parametrize("kind", ["sglang", *CONTINUOUS])
async def test_running_usage_counts_what_was_told(kind: str) -> None:
    """Not what was made: tokens of one late step are told one by one, each with its own count."""
    asked = "vllm" if kind == "sglang" else kind  # their chats are asked alike
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with serve(kind=kind) as server:
        answer = await converse(server, asked, "/words 9", stream=True, stream_options=options)
    chunks = answer.chunks()
    told = [
        chunk["usage"]["completion_tokens"]
        for chunk in chunks
        if any((choice["delta"] or {}).get("content") for choice in chunk["choices"])
    ]
    assert told == list(range(1, 10))
    assert chunks[-1]["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ALL)
async def test_two_tool_calls(kind: str, stream: bool) -> None:
    async with serve(kind=kind) as server:
        answer = await converse(server, kind, "/two", stream=stream, tools=True)
        seen = see(kind, answer, stream=stream)
        assert [[name, json.loads(given)] for name, given in seen.calls] == CALLS
        assert seen.reason in ("tool_calls", "tool_use", "STOP")


@pytest.mark.parametrize("kind", ALL)
async def test_a_prompt_that_is_known_is_cached(kind: str) -> None:
    if kind in ("tgi", "together", "openai_compatible"):
        pytest.skip("its usage has no cached tokens")
    async with serve(kind=kind, cache_report=True) as server:
        prompt = "x" * 2000
        first = see(kind, await converse(server, kind, prompt), stream=False).usage
        second = see(kind, await converse(server, kind, prompt, stream=True), stream=True).usage
        assert first is not None
        assert second is not None
        assert first[2] == 0
        assert second[2] > 0.9 * second[0]
        assert first[:2] == second[:2]


@pytest.mark.parametrize("kind", ALL)
async def test_credentials(kind: str) -> None:
    key, headers = credentials(kind)
    async with serve(kind=kind, api_key=key) as server:
        assert (await converse(server, kind, headers=headers)).status == 200
        none = await converse(server, kind)
        wrong = await converse(server, kind, headers={name: "wrong" for name in headers})
        expected = {"trtllm": 200, "bedrock": 403, "gemini": 403}
        assert none.status == expected.get(kind, 401)
        assert wrong.status == {**expected, "gemini": 400}.get(kind, 401)
        assert key.encode() not in none.body + wrong.body


@pytest.mark.parametrize("kind", ALL)
async def test_a_context_that_is_too_long(kind: str) -> None:
    async with serve(kind=kind, context_length=100) as server:
        answer = await converse(server, kind, "long " * 200)
        assert answer.status == {"tgi": 422, "together": 403}.get(kind, 400)
        assert (await records(server))[-1]["outcome"] == f"error:{answer.status}"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
@pytest.mark.parametrize("kind", ALL)
async def test_errors_have_their_status_and_shape(kind: str, status: int) -> None:
    async with serve(kind=kind) as server:
        await faults(server, f"status:{status}:7")
        answer = await converse(server, kind)
        changed = {("tgi", 400): 422, ("bedrock", 401): 403}
        assert answer.status == changed.get((kind, status), status)
        if answer.body and answer.body[:1] == b"{":
            assert set(answer.json()) & {"error", "message", "object", "detail"}
        if status == 429 and kind in ("openai", "azure", "anthropic", "openrouter", "vllm"):
            assert answer.headers["retry-after"] == "7"
        if status == 429 and kind in ("gemini", "vertex"):
            assert "retry-after" not in answer.headers
            waits = [d.get("retryDelay") for d in answer.json()["error"]["details"]]
            assert "7s" in waits


@pytest.mark.parametrize("kind", ALL)
async def test_a_quota_that_is_used_up(kind: str) -> None:
    async with serve(kind=kind) as server:
        await faults(server, "quota")
        status = {"together": 402, "openrouter": 402, "fireworks": 412, "anthropic": 400}
        assert (await converse(server, kind)).status == status.get(kind, 429)


@pytest.mark.parametrize("kind", ALL)
async def test_a_failure_within_a_stream(kind: str) -> None:
    async with serve(kind=kind) as server:
        await faults(server, "error-event:4")
        answer = await converse(server, kind, stream=True)
        assert answer.status == 200
        assert answer.complete == (kind != "trtllm")
        seen = see(kind, answer, stream=True)
        assert (seen.error is None) == (kind == "trtllm")
        assert len(seen.text) < len(HELLO)
        # Engines say [DONE] after a failure all the same; who has no such mark says nothing.
        quiet = ("litellm", "trtllm", "anthropic", "bedrock", "gemini", "vertex")
        assert seen.done == (kind not in quiet)
        assert (await records(server))[-1]["outcome"] == "fault:error-event"


@pytest.mark.parametrize("kind", ALL)
async def test_a_filter_that_ends_an_answer(kind: str) -> None:
    async with serve(kind=kind) as server:
        await faults(server, "filter:5")
        seen = see(kind, await converse(server, kind, stream=True), stream=True)
        said = {"anthropic": "refusal", "bedrock": "guardrail_intervened"}
        said |= {"gemini": "SAFETY", "vertex": "SAFETY"}
        assert seen.reason == said.get(kind, "content_filter")
        assert HELLO.startswith(seen.text)
        assert seen.done
        assert (await records(server))[-1]["outcome"] == "content_filter"


@pytest.mark.parametrize("kind", ALL)
async def test_a_prompt_that_a_filter_refuses(kind: str) -> None:
    async with serve(kind=kind) as server:
        answer = await converse(server, kind, "/filter", stream=True)
        if kind in ("openai", "openai_compatible", "azure", "litellm"):
            assert answer.status == 400
        elif kind == "openrouter":
            assert answer.status == 403
        else:
            assert answer.status == 200
            seen = see(kind, answer, stream=True)
            said = {"anthropic": "refusal", "bedrock": "guardrail_intervened"}
            said |= {"gemini": "PROHIBITED_CONTENT", "vertex": "PROHIBITED_CONTENT"}
            assert seen.reason == said.get(kind, "stop")


@pytest.mark.parametrize("kind", ALL)
async def test_garbage_and_cuts(kind: str) -> None:
    async with serve(kind=kind) as server:
        await faults(server, "cut:4")
        answer = await converse(server, kind, stream=True)
        assert not answer.complete
        await faults(server, "garbage:2")
        assert b"\xff\xfe\x00" in (await converse(server, kind, stream=True)).body
        await faults(server, "no-done")
        ended = see(kind, await converse(server, kind, stream=True), stream=True)
        assert ended.reason is not None
        await faults(server, "no-finish")
        assert see(kind, await converse(server, kind, stream=True), stream=True).reason is None


async def hang_up(server: Server, kind: str, *, stream: bool) -> dict[str, Any]:
    """Leave once the answer is under way; the last record when it has ended."""
    path, body, headers = ask(kind, "/words 60", stream=stream)
    reader, writer = await connect(server)
    writer.write(request(path, body, headers))
    if stream:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(10)
    else:
        await wait_for(server, "running")
    writer.close()
    async with asyncio.timeout(5):
        while True:
            found = await records(server)
            if found[-1]["finished_at"] is not None:
                return found[-1]
            await asyncio.sleep(0.01)


GOES_ON = {"modal", "gemini", "vertex", "bedrock"}
GOES_ON_WHOLE = GOES_ON | {"openai", "azure", "openrouter", "litellm", "anthropic"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ALL)
async def test_hanging_up(kind: str, stream: bool) -> None:
    limits = Limits(prefill_rate=0, decode_rate=40 if kind == "trtllm" else 150)
    async with serve(kind=kind, limits=limits) as server:
        record = await hang_up(server, kind, stream=stream)
        goes_on = kind in (GOES_ON if stream else GOES_ON_WHOLE)
        assert record["outcome"] == ("stop" if goes_on else "disconnected")
        if goes_on:
            assert record["completion_tokens"] == 61
            assert record["delivered_tokens"] < 61


async def test_openrouter_and_tgi_comment_while_a_stream_waits() -> None:
    for kind, comment in (("openrouter", b": OPENROUTER PROCESSING\n\n"), ("tgi", b":\n\n")):
        async with serve(kind=kind, comment_s=0.02) as server:
            await faults(server, "slow-first-token:0.2")
            answer = await converse(server, kind, stream=True)
            assert answer.body.count(comment) >= 3
            assert see(kind, answer, stream=True).text == HELLO


async def test_azures_chunks_without_choices_and_without_delta() -> None:
    async with serve(kind="azure") as server:
        chunks = (await converse(server, "azure", stream=True)).chunks()
        assert chunks[0]["choices"] == []
        assert chunks[0]["prompt_filter_results"]
        late = [c for c in chunks if c["choices"] and "delta" not in c["choices"][0]]
        assert late[0]["choices"][0]["content_filter_offsets"]


async def test_azures_deployments_need_an_api_version() -> None:
    path = "/openai/deployments/tiny/chat/completions"
    async with serve(kind="azure") as server:
        assert (await call(server, path, chat("hi"))).status == 404
        assert (await call(server, path + "?api-version=2024-10-21", chat("hi"))).status == 200
        other = path.replace("tiny", "none") + "?api-version=2024-10-21"
        answer = await call(server, other, chat("hi"))
        assert answer.json()["error"]["code"] == "DeploymentNotFound"


@pytest.mark.parametrize(("kind", "own"), [("fireworks", False), ("openrouter", True)])
async def test_usage_that_nobody_asked_for(kind: str, own: bool) -> None:
    async with serve(kind=kind) as server:
        path, body, _ = ask(kind, "hi", stream=True)
        del body["stream_options"]
        chunks = (await call(server, path, body)).body.decode().split("\n\n")
        values = [json.loads(c[6:]) for c in chunks if c.startswith("data: {")]
        last = [value for value in values if value.get("usage")]
        assert len(last) == 1
        assert (last[0]["choices"] == []) == own
        assert ("cost" in last[0]["usage"]) == (kind == "openrouter")


async def test_unknown_fields_are_refused_where_they_are() -> None:
    for kind, name in (("openai", "rid"), ("anthropic", "seed"), ("gemini", "rid")):
        async with serve(kind=kind) as server:
            answer = await converse(server, kind, **{name: 1})
            assert answer.status == 400
            assert name in answer.body.decode()


async def test_a_call_to_modal_is_put_off_and_fetched() -> None:
    key, headers = credentials("modal")
    async with serve(kind="modal", api_key=key, cold_s=0.35, redirect_after_s=0.1) as server:
        path, body, _ = ask("modal", "hi")
        answer = await call(server, path, body, headers)
        assert answer.status == 303
        hops = 0
        while answer.status == 303:
            hops += 1
            where = answer.headers["location"].removeprefix("http://sim")
            assert "__modal_function_call_id=" in where
            assert (await call(server, where)).status == 401
            answer = await call(server, where, None, headers)
        assert 2 <= hops <= 4
        assert see("modal", answer, stream=False).text == HELLO
        assert (await call(server, where, None, headers)).status == 404
        assert len(await records(server)) == 1


async def test_an_answer_that_has_begun_is_not_put_off() -> None:
    limits = Limits(prefill_rate=0, decode_rate=100)
    async with serve(kind="modal", redirect_after_s=0.05, limits=limits) as server:
        answer = await converse(server, "modal", "/words 20", stream=True)
        assert answer.status == 200
        assert see("modal", answer, stream=True).reason == "stop"


async def test_baseten_parks_requests_and_is_woken() -> None:
    async with serve(kind="baseten", cold_s=0.3) as server:
        loop = asyncio.get_running_loop()
        assert (await call(server, "/environments/production/wake", {})).status == 202
        begun = loop.time()
        answer = await converse(server, "baseten")
        assert 0.2 < loop.time() - begun < 5
        assert see("baseten", answer, stream=False).text == HELLO


async def test_runpods_load_balancer_gives_up_and_its_queue_does_not() -> None:
    async with serve(kind="runpod", cold_s=0.4, wait_s=0.1) as server:
        health = (await call(server, "/v2/abc/health")).json()
        assert health["workers"]["idle"] == health["workers"]["initializing"] == 0
        refused = await call(server, "/v1/chat/completions", chat("hi"))
        assert refused.status == 400
        assert (await call(server, "/v2/abc/health")).json()["workers"]["initializing"] == 1
        assert see("runpod", await converse(server, "runpod"), stream=False).text == HELLO
        assert (await call(server, "/v2/abc/health")).json()["workers"]["idle"] == 1
        await faults(server, "status:524")
        assert (await call(server, "/v1/chat/completions", chat("hi"))).status == 524


@pytest.mark.parametrize(("kind", "status"), [("bedrock", 429), ("tgi", 503), ("anyscale", 503)])
async def test_what_is_not_loaded_says_so(kind: str, status: int) -> None:
    async with serve(kind=kind, cold_s=0.1) as server:
        answer = await converse(server, kind)
        assert answer.status == status
        if kind == "bedrock":
            assert answer.headers["x-amzn-errortype"].startswith("modelnotreadyexception")
        await asyncio.sleep(0.15)
        assert (await converse(server, kind)).status == 200


async def test_vllm_refuses_connections_while_it_loads() -> None:
    options = {"kind": "vllm", "cold_s": 0.2, "port": 0}
    from forebay_engine.sim.options import SimOptions

    server = Server(SimOptions(**options))  # type: ignore[arg-type]
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0.02)
    with pytest.raises(ConnectionRefusedError):
        await connect(server)
    await starting
    assert (await call(server, "/health")).status == 200
    await server.stop()


def signed(server: Server, body: bytes, secret: str = "secret", **context: str) -> dict[str, str]:
    """The headers of a signed request to Converse."""
    url = f"http://sim/model/{context.get('model', 'tiny')}/converse"
    made = AWSRequest("POST", url, data=body, headers={"host": "sim"})
    login = Credentials("AKID", secret, context.get("session"))
    SigV4Auth(login, "bedrock", context.get("region", "us-east-1")).add_auth(made)
    return {name: value for name, value in made.headers.items() if name != "host"}


async def test_signatures_are_checked() -> None:
    body = json.dumps(ask("bedrock", "hi")[1]).encode()
    async with serve(kind="bedrock", api_key="AKID:secret", models=("a:0",)) as server:

        async def send(headers: dict[str, str], data: bytes = body) -> int:
            return (await call(server, "/model/a%3A0/converse", data, headers)).status

        assert await send(signed(server, body, model="a%3A0")) == 200
        assert await send(signed(server, body, "other", model="a%3A0")) == 403
        assert await send(signed(server, body, model="b")) == 403
        assert await send(signed(server, body, model="a%3A0", region="eu-west-1")) == 403
        assert await send(signed(server, body, model="a%3A0"), body + b" ") == 403
        assert await send({}) == 403
    async with serve(kind="bedrock", api_key="AKID:secret:token") as server:
        headers = signed(server, body, session="token")
        assert (await call(server, "/model/tiny/converse", body, headers)).status == 200


async def test_bedrocks_frames_have_right_checksums_and_faults_wrong_ones() -> None:
    async with serve(kind="bedrock") as server:
        answer = await converse(server, "bedrock", stream=True)
        assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"
        buffer = EventStreamBuffer()
        buffer.add_data(answer.body)
        kinds = [message.headers[":event-type"] for message in buffer]
        assert kinds[0] == "messageStart"
        assert kinds[-2:] == ["messageStop", "metadata"]
        await faults(server, "garbage-json:2")
        buffer = EventStreamBuffer()
        buffer.add_data((await converse(server, "bedrock", stream=True)).body)
        with pytest.raises(ChecksumMismatch):
            list(buffer)


async def test_anthropic_pings_and_asks_for_its_version() -> None:
    async with serve(kind="anthropic") as server:
        answer = await converse(server, "anthropic", "/think", stream=True)
        assert b"event: ping\n" in answer.body
        assert b"signature_delta" in answer.body
        path, body, _ = ask("anthropic", "hi")
        assert (await call(server, path, body)).status == 400
        del body["max_tokens"]
        missing = await call(server, path, body, {"anthropic-version": "2023-06-01"})
        assert missing.json()["error"]["message"] == "max_tokens: Field required"


async def test_geminis_array_without_alt_sse() -> None:
    async with serve(kind="gemini") as server:
        path, body, _ = ask("gemini", "hi")
        answer = await call(server, path.replace("generate", "streamGenerate"), body)
        values = answer.json()
        texts = [c["candidates"][0]["content"]["parts"][0]["text"] for c in values]
        assert "".join(texts) == HELLO


@pytest.mark.parametrize("kind", ["gemini", "vertex", "bedrock"])
async def test_the_openai_layers_of_others(kind: str) -> None:
    base = {"gemini": "/v1beta/openai", "bedrock": "/openai/v1"}
    base["vertex"] = "/v1/projects/p/locations/l/endpoints/openapi"
    async with serve(kind=kind) as server:
        answer = await call(server, f"{base[kind]}/chat/completions", chat("hi"))
        assert see("openai", answer, stream=False).text == HELLO


async def test_models_are_listed_and_unknown_ones_refused() -> None:
    for kind, base in OPENAI_PATHS.items():
        async with serve(kind=kind) as server:
            listed = (await call(server, f"{base}/models")).json()
            assert [entry["id"] for entry in listed["data"]] == ["tiny"]
            status = await call(server, f"{base}/chat/completions", chat("x") | {"model": "no"})
            taken = kind in ("tgi", "trtllm", "baseten")
            assert status.status == (200 if taken else 404)


async def test_vllm_carries_a_message_on() -> None:
    async with serve(kind="vllm") as server:
        body = chat("hi", continue_final_message=True, add_generation_prompt=False)
        body["messages"].append({"role": "assistant", "content": " Hello there,"})
        answer = await call(server, "/v1/chat/completions", body)
        assert see("vllm", answer, stream=False).text == HELLO.removeprefix(" Hello there,")


async def test_a_full_queue() -> None:
    limits = Limits(prefill_rate=0, decode_rate=20, max_running=1, max_queued=0)
    for kind in ("openai", "anthropic", "tgi"):
        async with serve(kind=kind, limits=limits) as server:
            path, body, headers = ask(kind, "/words 50", stream=True)
            _, writer = await connect(server)
            writer.write(request(path, body, headers))
            await wait_for(server, "running")
            full = await call(server, path, body, headers)
            assert full.status == (529 if kind == "anthropic" else 429)
            writer.close()


def test_parsing_is_of_whole_answers() -> None:
    assert not parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc").complete

"""Each kind through a running gateway when something fails, ends, or has to be started."""

from __future__ import annotations

import json

import pytest

from tests.support.simulated import CONTEXT, TARGETS
from tests.support.wait import until
from tests.support.wire import CHAT, EMBEDDINGS, Client, chat, request
from tests.upstreams.house import COLD, CONTINUES, HELLO, POOR, House
from tests.upstreams.test_documents import cell

everywhere = pytest.mark.parametrize("target", TARGETS)


# Errors


Brief = tuple[int, str | None]


def errors(target: str) -> dict[str, Brief]:
    """What each failure of the provider is to the client: status and code."""
    kind = TARGETS[target].kind
    failed = (502, "upstream_error")
    wanted: dict[str, Brief] = {
        "status:401": failed,
        "status:429:1": (429, "rate_limit_exceeded"),
        "status:500": failed,
        "status:503": (503, "service_unavailable"),
    }
    if kind == "tgi":
        wanted["status:429:1"] = (503, "service_unavailable")
    if kind == "anthropic":
        wanted["status:529"] = (503, "service_unavailable")
    if kind == "bedrock":
        wanted["status:424"] = failed
        wanted["loading"] = (503, "service_unavailable")
    if kind == "tgi":
        wanted["status:424"] = failed
    if kind == "runpod":
        wanted["status:524"] = (504, "upstream_timeout")
    return wanted


@everywhere
def test_errors(house: House, target: str) -> None:
    sim = house.sims[target]
    for fault, (status, code) in errors(target).items():
        for stream in (False, True):
            with sim.faults(fault):
                answer = house.ask(target, stream=stream)
            told = f"{target} {fault}: {answer.status} {answer.body!r}"
            assert (answer.status, answer.error()["code"]) == (status, code), told
            for word in ("billing", "credit", "quota", "api key", "api-key", "account"):
                assert word not in answer.body.decode().lower(), told
            if fault == "status:429:1" and status == 429 and told_to_wait(target):
                assert answer.header("retry-after") == "1"
            row = house.gateway.usage_of(answer)
            assert (row["outcome"], row["completion_tokens"]) == ("error", 0)
            if status == 429:  # it asked to be left alone
                until(lambda: house.ask(target).status == 200, f"{target} is asked again")


@pytest.mark.parametrize("target", POOR)
def test_a_quota_is_our_account_s_and_no_waiting_helps(house: House, target: str) -> None:
    sim = house.sims[target]
    with sim.faults("quota"):
        answer = house.ask(f"{target}-poor")
        asked = len(sim.requests())
        again = house.ask(f"{target}-poor")
    assert (answer.status, answer.error()["code"]) == (502, "upstream_error"), answer.body
    assert "quota" not in answer.body.decode().lower()
    assert answer.header("x-should-retry") == "false"
    assert again.status in (502, 503)
    if again.status == 503:
        assert len(sim.requests()) == asked, "it is left alone"


def told_to_wait(target: str) -> bool:
    """Whether the simulator of a kind says how long to wait."""
    return TARGETS[target].kind not in ("bedrock", "tgi", "baseten")


@everywhere
def test_a_request_that_the_provider_finds_invalid(house: House, target: str) -> None:
    with house.sims[target].faults("status:400"):
        answer = house.ask(target)
    assert answer.status == 400
    assert answer.error()["type"] == "invalid_request_error"


@everywhere
def test_a_context_that_is_too_long(house: House, target: str) -> None:
    answer = house.ask(target, "long " * CONTEXT)
    assert answer.status == 400, answer.body
    assert answer.error()["code"] == "context_length_exceeded"


FILTER_REFUSES = ("openai", "azure", "openrouter", "litellm", "openai_compatible")
FILTER_ANSWERS = ("anthropic", "gemini", "bedrock", "vertex")


@everywhere
def test_a_content_filter(house: House, target: str) -> None:
    kind = TARGETS[target].kind
    if kind not in FILTER_REFUSES + FILTER_ANSWERS:
        pytest.skip("it has no filter")
    answer = house.ask(target, "/filter")
    if kind in FILTER_REFUSES:
        assert answer.status == 400, answer.body
        assert answer.error()["code"] == "content_filter"
    else:
        refused = answer.status == 400 and answer.error()["code"] == "content_filter"
        told = answer.status == 200
        assert refused or told, answer.body
        if told:
            assert answer.json()["choices"][0]["finish_reason"] == "content_filter"


@everywhere
def test_a_filter_that_ends_a_stream(house: House, target: str) -> None:
    if TARGETS[target].kind not in FILTER_REFUSES + FILTER_ANSWERS:
        pytest.skip("it has no filter")
    with house.sims[target].faults("filter:6"):
        got = house.stream(target)
    assert (got.reason, got.done) == ("content_filter", True)
    assert HELLO.startswith(got.text)


# Ends


BREAKS = ("error-event:5", "cut:5", "cut-mid-event:5", "garbage:5", "garbage-json:5", "no-finish")


@everywhere
@pytest.mark.parametrize("fault", BREAKS)
def test_a_stream_that_breaks_is_an_error(house: House, target: str, fault: str) -> None:
    with house.sims[target].faults(fault):
        got = house.stream(target)
    assert got.answer.status == 200, got.answer.body
    assert not got.done
    assert got.error is not None
    assert HELLO.startswith(got.text)
    assert "Simulated" not in str(got.error) or "/" not in str(got.error)
    assert house.gateway.usage_of(got.answer)["outcome"] in ("upstream_cut", "error")


@everywhere
def test_a_stream_without_its_end_marker(house: House, target: str) -> None:
    """The finish reason is what counts; Anthropic's marker is an event like others."""
    with house.sims[target].faults("no-done"):
        got = house.stream(target)
    assert got.text == HELLO
    if TARGETS[target].kind == "anthropic":
        assert not got.done or got.reason == "stop"
    else:
        assert (got.reason, got.error, got.done) == ("stop", None, True)


# Hang-ups


@everywhere
def test_hanging_up(house: House, target: str) -> None:
    # TensorRT-LLM looks for clients that have left once a second.
    sim, count = house.sims[target], 1200 if target == "trtllm" else 300
    body = chat(target, f"/words {count}", stream=True)
    name = f"left-{target}"
    client = Client(house.gateway.port)
    client.send(request(CHAT, body, key=house.key.secret, headers=[("x-request-id", name)]))
    head = client.head()
    for _, data in client.body(head):
        if b'"content":" ' in data or b'"content": " ' in data:
            break
    client.socket.close()
    until(lambda: sim.last()["finished_at"] is not None, "the answer ends", 10)
    record = sim.last()
    (row,) = house.gateway.usage(1, request_id=name)
    assert row["outcome"] == "client_closed"
    kind = TARGETS[target].kind
    if "read to its end" in cell(kind, "hang-up"):
        assert (record["outcome"], record["completion_tokens"]) == ("stop", count + 1)
        assert row["completion_tokens"] == count + 1
        assert row["source"] == "reported"
    else:
        assert record["outcome"] in ("disconnected", "abort")
        assert record["completion_tokens"] < count
        assert 0 < row["completion_tokens"] <= count


# Starts, health, continuation, embeddings


@pytest.mark.parametrize("name", COLD)
def test_a_cold_start(house: House, name: str) -> None:
    sim = house.sims[f"cold-{name}"].start()
    got = house.stream(f"cold-{name}")
    assert (got.text, got.reason, got.done) == (HELLO, "stop", True), got.answer.body
    assert sim.last()["outcome"] == "stop"


def test_modals_chain_of_redirects(house: House) -> None:
    sim = house.sims["hops-modal"].start()
    got = house.stream("hops-modal")
    assert (got.text, got.reason, got.done) == (HELLO, "stop", True), got.answer.body
    assert len(sim.requests()) == 1, "the call is made once"


@everywhere
def test_health(house: House, target: str) -> None:
    checks = house.gateway.health()["checks"]
    if cell(TARGETS[target].kind, "health").startswith("no"):
        assert checks.get(f"upstream:{target}", "ok") == "ok"
    else:
        until(lambda: house.gateway.health()["checks"][f"upstream:{target}"] == "ok", target)


@pytest.mark.parametrize("name", CONTINUES)
def test_a_stream_is_carried_on(house: House, name: str) -> None:
    for fault in ("cut:6", "cut-mid-event:6", "error-event:6", "garbage:6"):
        with house.sims[f"breaks-{name}"].faults(fault):
            got = house.stream(f"breaks-{name}", "/words 60")
        wanted = house.text("/words 60")
        assert (got.text, got.reason, got.error, got.done) == (wanted, "stop", None, True)
        assert len({json.loads(d)["id"] for d in got.answer.data() if d != "[DONE]"}) == 1
        row = house.gateway.usage_of(got.answer)
        assert row["completion_tokens"] == 61


@everywhere
def test_embeddings(house: House, target: str) -> None:
    if not TARGETS[target].embeddings:
        pytest.skip("it has none")
    body = {"model": f"{target}-embed", "input": ["a", "b"]}
    answer = house.gateway.call(EMBEDDINGS, body, key=house.key.secret)
    assert answer.status == 200, answer.body
    assert len(answer.json()["data"]) == 2

"""Each kind through a running gateway, against its simulator: framing, errors and habits.

`COVERED` says which test shows each column of the matrix in docs/upstreams.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.support.processes import Gateway, Key
from tests.support.simulated import (
    CONTEXT,
    KEY,
    TARGETS,
    SimThread,
    Simulated,
    Target,
    section,
    service_account,
    sim_options,
)
from tests.support.wait import until
from tests.support.wire import CHAT, EMBEDDINGS, Answer, Client, chat, request
from tests.upstreams.test_documents import FEATURES, NAMES, cell
from tests.upstreams.token_server import TokenServer

HELLO = " Hello there, this is a scripted answer."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Says the {what}.",
            "parameters": {"type": "object", "properties": {field: {"type": "string"}}},
        },
    }
    for name, what, field in (("get_weather", "weather", "city"), ("get_time", "time", "tz"))
]
ROME = {"city": "Rome"}
CET = {"tz": "CET"}
COLD = ("tgi", "vllm", "sglang", "trtllm", "modal", "baseten", "runpod")
CONTINUES = ("sglang", "vllm")
QUICK = {"first_byte": 8, "idle": 3, "total": 20}


class House(NamedTuple):
    """A gateway, its key, and the simulators behind it by target."""

    gateway: Gateway
    key: Key
    sims: dict[str, Simulated]

    def ask(self, target: str, content: str = "hi", **fields: Any) -> Answer:
        """A chat request; nothing of the upstream's may show in its answer."""
        answer = self.gateway.call(CHAT, chat(target, content, **fields), key=self.key.secret)
        shown = answer.body.decode(errors="replace") + repr(answer.headers)
        assert KEY not in shown
        assert "127.0.0.1" not in shown
        return answer

    def stream(self, target: str, content: str = "hi", **fields: Any) -> Seen:
        """A streamed one that asks for its usage, and what came of it."""
        fields = {"stream_options": {"include_usage": True}, **fields}
        return seen(self.ask(target, content, stream=True, **fields))


class Seen(NamedTuple):
    """What a client sees of a stream. calls: by index, id, name and arguments."""

    answer: Answer
    text: str
    reason: str | None
    calls: dict[int, list[str]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    done: bool


def seen(answer: Answer) -> Seen:
    """Read a stream as a client does."""
    text, reason, usage, error, done = "", None, None, None, False
    calls: dict[int, list[str]] = {}
    for data in answer.data():
        assert not done, "something follows [DONE]"
        if data.startswith(":"):
            continue
        if data == "[DONE]":
            done = True
            continue
        value = json.loads(data)
        error = value.get("error", error)
        usage = value.get("usage") or usage
        for choice in value.get("choices", []):
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            reason = choice.get("finish_reason") or reason
            for call in delta.get("tool_calls") or []:
                function = call.get("function", {})
                entry = calls.setdefault(call["index"], ["", "", ""])
                entry[0] = call.get("id") or entry[0]
                entry[1] += function.get("name") or ""
                entry[2] += function.get("arguments") or ""
    return Seen(answer, text, reason, calls, usage, error, done)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, session_database_url: str) -> Iterator[House]:
    """Every target behind one gateway; the cold ones refuse until a test starts them."""
    folder = tmp_path_factory.mktemp("conformance")
    with SimThread() as thread, TokenServer() as tokens:
        tokens.answer = (200, {"access_token": KEY, "expires_in": 3600, "token_type": "Bearer"})
        google = str(service_account(folder, f"{tokens.url}/token"))
        sims: dict[str, Simulated] = {}
        upstreams: dict[str, Any] = {}
        models: dict[str, Any] = {}

        def add(name: str, target: Target, model: dict[str, Any] | None = None, **sim: Any) -> None:
            sims[name] = thread.bind(**{**sim_options(target), **sim})
            more = {"credentials": {"file": google}} if target.kind == "vertex" else {}
            upstreams[name] = section(target, sims[name].url, outlier=None, **more)
            targets = [{"upstream": name, "model": target.model}]
            models[name] = {"targets": targets, "timeouts": QUICK, "retry": {"attempts": 1}}
            if target.embeddings:
                embed = [{"upstream": name, "model": "tiny-embed"}]
                models[f"{name}-embed"] = {"targets": embed, "timeouts": QUICK}
            models[name] |= model or {}

        for name, target in TARGETS.items():
            add(name, target)
            sims[name].start()
        for name in COLD:
            add(f"cold-{name}", TARGETS[name], cold_s=0.8)
        add("hops-modal", TARGETS["modal"], cold_s=0.8, redirect_after_s=0.2)
        for name in CONTINUES:
            add(f"breaks-{name}", TARGETS[name])
            sims[f"breaks-{name}"].start()
            targets = [
                {"upstream": f"breaks-{name}", "model": "tiny"},
                {"upstream": name, "model": "tiny", "tier": 1},
            ]
            models[f"breaks-{name}"] |= {"targets": targets, "resume": True}
        config = {"upstreams": upstreams, "models": models}
        gateway = Gateway(folder / "gateway", config, session_database_url)
        gateway.start()
        key = gateway.key()
        yield House(gateway, key, sims)
        status = gateway.stop()
        assert status == 0, gateway.log()
        assert "Traceback (most recent" not in gateway.log(), gateway.log()


everywhere = pytest.mark.parametrize("target", TARGETS)


# Chat, streams, tools


@everywhere
def test_chat(house: House, target: str) -> None:
    for content in ("hi", "/words 30", "/uni"):
        answer = house.ask(target, content)
        assert answer.status == 200, answer.body
        value = answer.json()
        assert value["object"] == "chat.completion"
        assert value["model"] == target
        (choice,) = value["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == expected(house, content)
        assert choice["finish_reason"] == "stop"


def expected(house: House, content: str) -> str:
    """The simulator's text for a prompt: every kind has SGLang's."""
    value = house.ask("sglang", content).json()
    text: str = value["choices"][0]["message"]["content"]
    return text


@everywhere
def test_a_conversation(house: House, target: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": [{"type": "text", "text": "/words 12"}]},
    ]
    body = {"messages": messages, "temperature": 0.5, "max_tokens": 8}
    answer = house.gateway.call(CHAT, {"model": target, **body}, key=house.key.secret)
    same = house.gateway.call(CHAT, {"model": "sglang", **body}, key=house.key.secret)
    assert answer.status == 200, answer.body
    choice, wanted = answer.json()["choices"][0], same.json()["choices"][0]
    assert choice["message"]["content"] == wanted["message"]["content"]
    assert choice["finish_reason"] == "length"


@everywhere
def test_stream(house: House, target: str) -> None:
    for content in ("hi", "/words 30", "/uni"):
        got = house.stream(target, content)
        assert got.answer.status == 200, got.answer.body
        assert got.answer.complete
        assert got.text == expected(house, content)
        assert (got.reason, got.error, got.done) == ("stop", None, True)


@everywhere
def test_reasoning_is_kept_apart(house: House, target: str) -> None:
    answer = house.ask(target, "/think")
    message = answer.json()["choices"][0]["message"]
    shown = message.get("reasoning_content", message.get("reasoning"))
    if shown is not None:
        assert shown == " First I reason."
    assert message["content"] == " Then I conclude!"


def named(calls: list[list[str]]) -> list[tuple[str, Any]]:
    assert all(identity for identity, _, _ in calls)
    assert len({identity for identity, _, _ in calls}) == len(calls)
    return [(name, json.loads(arguments)) for _, name, arguments in calls]


@everywhere
def test_tool_calls(house: House, target: str) -> None:
    wanted = {"/tool": [("get_weather", {"city": "Paris"})]}
    wanted["/two"] = [("get_weather", ROME), ("get_time", CET)]
    for content, calls in wanted.items():
        value = house.ask(target, content, tools=TOOLS).json()
        (choice,) = value["choices"]
        assert choice["finish_reason"] == "tool_calls"
        made = [
            [call["id"], call["function"]["name"], call["function"]["arguments"]]
            for call in choice["message"]["tool_calls"]
        ]
        assert named(made) == calls
        got = house.stream(target, content, tools=TOOLS)
        assert named([got.calls[i] for i in sorted(got.calls)]) == calls
        assert (got.reason, got.error, got.done) == ("tool_calls", None, True)


@everywhere
def test_tool_results_go_back(house: House, target: str) -> None:
    value = house.ask(target, "/two", tools=TOOLS).json()
    message = value["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "12"}
        for call in message["tool_calls"]
    ]
    spoken = {"role": "assistant", "tool_calls": message["tool_calls"]}
    messages = [{"role": "user", "content": "/two"}, spoken, *results]
    messages.append({"role": "user", "content": "and now?"})
    body = {"model": target, "messages": messages, "tools": TOOLS}
    answer = house.gateway.call(CHAT, body, key=house.key.secret)
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["message"]["content"] == HELLO


@everywhere
def test_a_tool_that_is_asked_for_by_name(house: House, target: str) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    got = house.stream(target, "hi", tools=TOOLS, tool_choice=choice)
    assert [name for _, name, _ in got.calls.values()] == ["get_time"]
    assert got.done


# Usage


@everywhere
@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_what_the_provider_counts(house: House, target: str, stream: bool) -> None:
    content = f"{target} {stream} " + "x" * 1200
    for turn in range(2):
        answer = house.ask(target, content, stream=stream)
        assert answer.status == 200
        record = house.sims[target].last()
        row = house.gateway.usage_of(answer)
        counted = (row["prompt_tokens"], row["completion_tokens"])
        assert counted == (record["prompt_tokens"], record["completion_tokens"])
        assert (row["source"], row["outcome"], row["upstream"]) == ("reported", "ok", target)
        if turn and TARGETS[target].kind not in ("tgi", "openai_compatible"):
            assert row["cached_tokens"] > 200


@everywhere
def test_usage_in_a_stream_is_for_who_asks(house: House, target: str) -> None:
    asked = house.stream(target)
    assert asked.usage is not None
    record = house.sims[target].last()
    assert asked.usage["prompt_tokens"] == record["prompt_tokens"]
    assert asked.usage["completion_tokens"] == record["completion_tokens"]
    assert asked.usage["total_tokens"] == sum(
        record[name] for name in ("prompt_tokens", "completion_tokens")
    )
    silent = seen(house.ask(target, stream=True))
    assert silent.done
    if TARGETS[target].kind != "fireworks":  # there it is in the chunk with the finish reason
        assert silent.usage is None


# Credentials


@everywhere
def test_credentials_are_sent_and_the_clients_are_not(house: House, target: str) -> None:
    assert house.ask(target).status == 200  # each simulator checks its own
    record = house.sims[target].last()
    headers = dict(record["headers"])
    carried = {
        "azure": "api-key",
        "anthropic": "x-api-key",
        "gemini": "x-goog-api-key",
        "modal": "modal-secret",
    }
    kind = TARGETS[target].kind
    if kind != "trtllm":
        name = "authorization" if target == "gemini-openai" else carried.get(kind, "authorization")
        assert headers[name]
    assert house.key.secret not in json.dumps(record)


# Errors


Brief = tuple[int, str | None]


def errors(target: str) -> dict[str, Brief]:
    """What each failure of the provider is to the client: status and code."""
    kind = TARGETS[target].kind
    failed = (502, "upstream_error")
    wanted: dict[str, Brief] = {
        "status:401": failed,
        "status:429:7": (429, "rate_limit_exceeded"),
        "status:500": failed,
        "status:503": (503, "service_unavailable"),
    }
    if kind == "tgi":
        wanted["status:429:7"] = (503, "service_unavailable")
    if kind in ("openai", "azure", "anthropic", "gemini", "vertex", "litellm", "together"):
        wanted["quota"] = failed
    if kind in ("fireworks", "openrouter"):
        wanted["quota"] = failed
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
            if fault == "status:429:7" and status == 429 and told_to_wait(target):
                assert answer.header("retry-after") == "7"
            row = house.gateway.usage_of(answer)
            assert (row["outcome"], row["completion_tokens"]) == ("error", 0)


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
    sim, count = house.sims[target], 300
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
        wanted = expected(house, "/words 60")
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


# The matrix


COVERED: dict[str, Callable[..., None]] = {
    "chat": test_chat,
    "stream": test_stream,
    "tools": test_tool_calls,
    "usage": test_usage_is_what_the_provider_counts,
    "auth": test_credentials_are_sent_and_the_clients_are_not,
    "errors": test_errors,
    "hang-up": test_hanging_up,
    "end marker": test_a_stream_that_breaks_is_an_error,
    "cold start": test_a_cold_start,
    "health": test_health,
    "continuation": test_a_stream_is_carried_on,
    "embeddings": test_embeddings,
}


def uncovered() -> list[tuple[str, str]]:
    """Kinds and features of the matrix that are promised and that no test here shows."""
    shown: dict[str, tuple[str, ...]] = {"cold start": COLD, "continuation": CONTINUES}
    with_embeddings = tuple(t.kind for t in TARGETS.values() if t.embeddings)
    missing = []
    for kind in NAMES:
        for feature in FEATURES:
            text = cell(kind, feature)
            if text.startswith(("no", "\N{EN DASH}", "if set")):
                continue  # the matrix says why
            kinds = shown.get(feature, tuple(t.kind for t in TARGETS.values()))
            if feature == "embeddings":
                kinds = with_embeddings
            if feature not in COVERED or kind not in kinds:
                missing.append((kind, feature))
    return missing


def test_every_promise_of_the_matrix_has_its_test() -> None:
    assert uncovered() == []

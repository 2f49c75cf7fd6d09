"""`forebay doctor` asks each upstream, says what is wrong and what to do, and shows no key."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.test_commands import Forebay, Result, elsewhere, forebay, with_url
from tests.support.ports import closed_port
from tests.upstreams.token_server import TokenServer

__all__ = ["elsewhere", "forebay", "with_url"]

KEY = "sk-s3cret-of-the-test"
MODELS = (200, {"object": "list", "data": [{"id": "org/m"}, {"id": "org/n"}]})


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        server.answer = (404, {"error": {"message": "not here"}})
        yield server


class Seen(NamedTuple):
    """What doctor said of the upstream."""

    result: Result
    ok: bool
    detail: str
    hint: str | None
    steps: dict[str, tuple[bool, str]]


def timeless(text: str) -> str:
    return re.sub(r"\d+ ms", "N ms", text)


class Doctor:
    """Runs it on a configuration with one upstream, once as JSON and once for people."""

    def __init__(self, run: Forebay, folder: Path) -> None:
        self._run = run
        self._file = folder / "forebay.yaml"

    def __call__(self, upstream: dict[str, Any], *options: str, model: str = "org/m") -> Seen:
        models = {"m": {"targets": [{"upstream": "u", "model": model}]}}
        self._file.write_text(json.dumps({"upstreams": {"u": upstream}, "models": models}))
        arguments = ("doctor", "--config", str(self._file), *options)
        for_people = self._run(*arguments)
        result = self._run(*arguments, "--json")
        for said in (for_people.out, for_people.err, result.out, result.err):
            assert KEY not in said
        (finding,) = [f for f in json.loads(result.out) if f["check"] == "upstream u"]
        assert for_people.code == result.code == (0 if finding["ok"] else 1)
        assert timeless(finding["detail"]) in timeless(for_people.out)
        if finding["hint"]:
            assert f"-> {finding['hint']}" in for_people.out
        steps = {step["step"]: (step["ok"], step["detail"]) for step in finding["steps"]}
        return Seen(result, finding["ok"], finding["detail"], finding["hint"], steps)


@pytest.fixture
def doctor(with_url: Forebay, tmp_path: Path) -> Doctor:
    return Doctor(with_url, tmp_path)


def test_all_is_well(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {"/health": (200, {}), "/v1/models": MODELS}
    seen = doctor({"kind": "vllm", "url": server.url, "api_key": KEY})
    assert seen.ok
    assert list(seen.steps) == ["reachable", "ready", "authenticated", "models"]
    assert seen.steps["models"][1] == "2 listed, with all that are configured"
    path, headers, _ = server.asked[-1]
    assert (path, headers["authorization"]) == ("/v1/models", f"Bearer {KEY}")


def test_nothing_listens(doctor: Doctor) -> None:
    seen = doctor({"kind": "vllm", "url": f"http://127.0.0.1:{closed_port()}"})
    assert not seen.ok
    assert "refused the connection" in seen.detail
    assert seen.hint == "is it running, and is the port right?"


def test_no_such_host(doctor: Doctor) -> None:
    seen = doctor({"kind": "vllm", "url": "http://nowhere.invalid:1"})
    assert (seen.ok, seen.hint) == (False, "check url")
    assert "its name is not known" in seen.detail


def test_the_key_is_refused_and_not_shown(doctor: Doctor, server: TokenServer) -> None:
    server.by_path["/health"] = (200, {})
    server.by_path["/v1/models"] = (401, {"error": {"message": f"Incorrect API key: {KEY}"}})
    seen = doctor({"kind": "vllm", "url": server.url, "api_key": KEY})
    assert seen.steps["authenticated"] == (False, "refused with 401")
    assert seen.hint == "check upstreams.u: api_key or credentials"
    seen = doctor({"kind": "vllm", "url": server.url})
    assert seen.hint == "check upstreams.u: api_key: none is set"


def test_a_model_that_is_not_there(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {"/ready": (200, {}), "/v1/models": MODELS}
    seen = doctor({"kind": "sglang", "url": server.url}, model="org/other")
    assert seen.steps["models"] == (False, "it does not have org/other")
    assert seen.hint == "it lists org/m, org/n"


def test_a_name_that_is_known_without_being_listed(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {
        "/v1/models": (200, {"data": [{"id": "claude-1-20260101"}], "has_more": False}),
        "/v1/models/claude-1": (200, {"id": "claude-1-20260101"}),
    }
    seen = doctor({"kind": "anthropic", "url": server.url, "api_key": KEY}, model="claude-1")
    assert seen.ok
    assert server.asked[0][1]["x-api-key"] == KEY


def test_it_is_being_started(doctor: Doctor, server: TokenServer) -> None:
    server.by_path["/ready"] = (503, {})
    seen = doctor({"kind": "sglang", "url": server.url})
    assert not seen.ok
    assert "being started" in seen.detail


def test_whatever_name_it_has(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {"/health": (200, {}), "/v1/models": MODELS}
    assert doctor({"kind": "tgi", "url": server.url}, model="llama").ok


def test_a_list_that_is_open_says_nothing_of_the_key(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {"/v1/models": MODELS, "/v1/key": (401, {"error": {"code": 401}})}
    seen = doctor({"kind": "openrouter", "url": server.url, "api_key": KEY})
    assert seen.steps["authenticated"] == (False, "refused with 401")


def test_what_would_start_it_is_not_asked(doctor: Doctor, server: TokenServer) -> None:
    seen = doctor({"kind": "modal", "url": server.url})
    assert seen.ok
    assert "asking starts it" in seen.steps["ready"][1]
    assert server.asked == []


def test_a_token_of_each_target(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {
        "/v1/models": MODELS,
        "/v1/chat/completions": (200, {"choices": [{"message": {"content": "a"}}]}),
    }
    seen = doctor({"kind": "modal", "url": server.url}, "--chat")
    assert seen.steps["chat org/m"][0]
    server.by_path["/v1/chat/completions"] = (400, {"error": {"message": f"no chat for {KEY}"}})
    seen = doctor({"kind": "modal", "url": server.url, "api_key": KEY}, "--chat")
    assert seen.steps["chat org/m"] == (False, "answered 400: no chat for ***")
    assert seen.hint is not None


def test_a_signed_token(doctor: Doctor, server: TokenServer) -> None:
    login = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": KEY}
    bedrock = {
        "kind": "bedrock",
        "region": "us-east-1",
        "url": server.url,
        "credentials": login,
    }
    server.answer = (200, {"output": {}})
    seen = doctor(bedrock, "--chat", model="us.acme-v1:0")
    assert seen.ok
    assert list(seen.steps) == ["credentials", "reachable", "ready", "chat us.acme-v1:0"]
    path, headers, _ = server.asked[-1]
    assert path == "/model/us.acme-v1%3A0/converse"
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/")
    assert "/us-east-1/bedrock/aws4_request" in headers["authorization"]


def test_credentials_that_cannot_be_had(doctor: Doctor, tmp_path: Path) -> None:
    seen = doctor(
        {
            "kind": "vertex",
            "project": "p",
            "location": "global",
            "credentials": {"file": str(tmp_path / "missing.json")},
        }
    )
    assert not seen.ok
    assert "no Google token" in seen.detail
    assert seen.hint == "check upstreams.u.credentials"


def test_an_agent_that_says_cold_is_well(doctor: Doctor, server: TokenServer) -> None:
    server.by_path["/state"] = (200, {"state": "cold", "parked": True})
    agent = {"url": server.url, "key": KEY}
    engine = {"kind": "sglang", "url": f"http://127.0.0.1:{closed_port()}", "agent": agent}
    seen = doctor(engine)
    assert seen.ok
    assert timeless(seen.steps["agent"][1]) == "says cold, parked in N ms"
    assert "a request has its agent start it" in seen.steps["ready"][1]
    assert server.asked[-1][1]["authorization"] == f"Bearer {KEY}"


def test_an_agent_that_refuses_the_key_or_is_away(doctor: Doctor, server: TokenServer) -> None:
    server.by_path |= {"/ready": (200, {}), "/v1/models": MODELS}
    server.by_path["/state"] = (401, {"error": KEY})
    seen = doctor({"kind": "sglang", "url": server.url, "agent": {"url": server.url, "key": KEY}})
    assert seen.steps["agent"] == (False, "it refuses the key with 401")
    assert seen.steps["models"][0], "the engine is looked at all the same"
    assert seen.hint == "check upstreams.u.agent: check the key"
    away = {"url": f"http://127.0.0.1:{closed_port()}"}
    seen = doctor({"kind": "sglang", "url": server.url, "agent": away})
    assert seen.steps["agent"] == (False, "no connection")

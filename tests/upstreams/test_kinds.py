"""What each kind makes of its settings: address, paths, credentials, errors, probes."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from forebay.config import Config, ConfigError, Upstream, load, to_public
from forebay.config.kinds import FORMS, UpstreamKind
from forebay.gateway import snapshot
from forebay.upstreams import KINDS, Probe, Wake
from forebay.upstreams.kind import ErrorKind, ErrorRule

from tests.upstreams.examples import SECRET, SECTIONS

ROOT = Path(__file__).parents[2]
NAMES = get_args(UpstreamKind)


def configure(tmp_path: Path, upstream: dict[str, Any]) -> Config:
    file = tmp_path / "forebay.yaml"
    model = {"targets": [{"upstream": "u", "model": "org/m"}]}
    # JSON is YAML.
    file.write_text(json.dumps({"upstreams": {"u": upstream}, "models": {"m": model}}))
    return load(file, {})


def settings(tmp_path: Path, kind: str, **changes: Any) -> Upstream:
    return configure(tmp_path, {"kind": kind, **SECTIONS[kind], **changes}).upstreams["u"]


def spec(tmp_path: Path, kind: str, **changes: Any) -> dict[str, Any]:
    config = configure(tmp_path, {"kind": kind, **SECTIONS[kind], **changes})
    built: dict[str, Any] = msgspec.json.decode(snapshot.build(config, {}))
    return dict(built["upstreams"][0])


def without(kind: str, *fields: str) -> dict[str, Any]:
    return {"kind": kind, **{k: v for k, v in SECTIONS[kind].items() if k not in fields}}


def test_every_kind_has_a_file_an_object_a_form_and_an_example() -> None:
    assert set(NAMES) == set(KINDS) == set(FORMS) == set(SECTIONS)
    folder = ROOT / "python" / "forebay" / "upstreams"
    for name in NAMES:
        assert KINDS[name].name == name
        assert (folder / f"{name}.py").exists()
        assert "Source" in (folder / f"{name}.py").read_text()


@pytest.mark.parametrize("kind", NAMES)
def test_its_form_agrees_with_its_address(kind: str) -> None:
    if KINDS[kind].default_url is not None:
        assert not FORMS[kind].url  # type: ignore[index]
    try:
        KINDS[kind].address(Upstream(kind=kind))  # type: ignore[arg-type]
    except ValueError:
        assert FORMS[kind].url  # type: ignore[index]


@pytest.mark.parametrize("kind", NAMES)
def test_its_form_agrees_with_its_probe(tmp_path: Path, kind: str) -> None:
    probe = KINDS[kind].probe_for(settings(tmp_path, kind))
    lists = probe is not None and probe.models is not None
    assert FORMS[kind].lists == lists  # type: ignore[index]


@pytest.mark.parametrize("kind", NAMES)
def test_the_core_takes_what_is_made_of_it(tmp_path: Path, kind: str) -> None:
    from forebay._core import Core

    config = configure(tmp_path, {"kind": kind, **SECTIONS[kind]})
    core = Core()
    try:
        core.configure(snapshot.build(config, {}))
    finally:
        core.close()


ADDRESSES = {
    "sglang": ("http://10.0.0.5:30000", "/v1/chat/completions"),
    "vllm": ("http://10.0.0.5:8000", "/v1/chat/completions"),
    "tgi": ("http://10.0.0.5:3000", "/v1/chat/completions"),
    "trtllm": ("http://10.0.0.5:8000", "/v1/chat/completions"),
    "modal": ("https://acme--llama.modal.run", "/v1/chat/completions"),
    "baseten": (
        "https://model-abc.api.baseten.co",
        "/environments/production/sync/v1/chat/completions",
    ),
    "runpod": ("https://api.runpod.ai", "/v2/abc/openai/v1/chat/completions"),
    "together": ("https://api.together.ai", "/v1/chat/completions"),
    "fireworks": ("https://api.fireworks.ai/inference", "/v1/chat/completions"),
    "anyscale": ("https://svc.example.com", "/v1/chat/completions"),
    "openai": ("https://api.openai.com", "/v1/chat/completions"),
    "anthropic": ("https://api.anthropic.com", "/v1/messages"),
    "gemini": (
        "https://generativelanguage.googleapis.com",
        "/v1beta/models/{model}:generateContent",
    ),
    "bedrock": ("https://bedrock-runtime.us-east-1.amazonaws.com", "/model/{model}/converse"),
    "vertex": (
        "https://us-central1-aiplatform.googleapis.com",
        "/v1/projects/acme-1/locations/us-central1/endpoints/openapi/chat/completions",
    ),
    "azure": ("https://acme.openai.azure.com", "/openai/v1/chat/completions"),
    "openrouter": ("https://openrouter.ai/api", "/v1/chat/completions"),
    "litellm": ("http://127.0.0.1:4000", "/v1/chat/completions"),
    "openai_compatible": ("https://llm.example.com", "/v1/chat/completions"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_address_and_path_of_chat(tmp_path: Path, kind: str) -> None:
    made = spec(tmp_path, kind)
    assert (made["url"], made["paths"]["chat"]) == ADDRESSES[kind]
    assert made["kind"] == kind
    for path in filter(None, made["paths"].values()):
        assert path.startswith("/")
        assert not {" ", "#"} & set(path)


CREDENTIALS: dict[str, tuple[str | None, list[list[str]]]] = {
    # The bearer token, and the headers besides.
    "modal": (SECRET, [["modal-key", f"wk-{SECRET}"], ["modal-secret", f"ws-{SECRET}"]]),
    "baseten": (None, [["authorization", f"Api-Key {SECRET}"]]),
    "openai": (SECRET, [["OpenAI-Organization", f"org-{SECRET}"]]),
    "anthropic": (None, [["anthropic-version", "2023-06-01"], ["x-api-key", SECRET]]),
    "gemini": (None, [["x-goog-api-key", SECRET]]),
    "bedrock": (None, []),
    "vertex": (None, []),
    "azure": (None, []),
    "trtllm": (None, []),
}


@pytest.mark.parametrize("kind", NAMES)
def test_credentials_on_the_wire(tmp_path: Path, kind: str) -> None:
    made = spec(tmp_path, kind)
    assert (made["api_key"], made["headers"]) == CREDENTIALS.get(kind, (SECRET, []))


@pytest.mark.parametrize("kind", NAMES)
def test_nothing_shows_a_secret(tmp_path: Path, kind: str) -> None:
    config = configure(tmp_path, {"kind": kind, **SECTIONS[kind]})
    upstream = config.upstreams["u"]
    shown = [repr(config), repr(upstream), repr(KINDS[kind]), json.dumps(to_public(config))]
    source = KINDS[kind].credentials(upstream)
    shown.append(repr(source))
    if kind == "bedrock":
        assert source is not None
        shown.append(repr(source.fetch()))
    for text in shown:
        assert SECRET not in text


@pytest.mark.parametrize("kind", NAMES)
def test_rules_of_error(kind: str) -> None:
    known = set(get_args(ErrorKind))
    seen: list[ErrorRule] = []
    for rule in KINDS[kind].errors:
        assert rule.kind in known
        assert 400 <= rule.status < 600
        if rule.contains is not None:
            assert rule.contains == rule.contains.lower()
        # What stands behind a more general rule of the same status would never be reached.
        for earlier in seen:
            if earlier.status == rule.status:
                assert earlier.code is not None or earlier.contains is not None, rule
        seen.append(rule)
    assert len(set(seen)) == len(seen)


def test_kinds_of_error_are_the_cores() -> None:
    source = (ROOT / "rust" / "core" / "src" / "error.rs").read_text()
    assert set(get_args(ErrorKind)) <= set(re.findall(r'Self::\w+ => "(\w+)"', source))


DRAINED = {"modal", "gemini", "bedrock", "vertex"}
COLD = {"sglang", "vllm", "tgi", "trtllm", "modal", "baseten", "runpod"}


@pytest.mark.parametrize("kind", NAMES)
def test_policies(tmp_path: Path, kind: str) -> None:
    made = spec(tmp_path, kind)
    assert (made["drain"] is not None) == (kind in DRAINED)
    assert (made["cold"] is not None) == (kind in COLD)
    assert made["redirects"] == (kind == "modal")
    assert made["continues"] == (kind in {"sglang", "vllm"})
    assert made["rid"] == (kind == "sglang")
    assert made["outlier"]["consecutive"] == 5
    assert made["slow_start_s"] == 10
    sign = {"service": "bedrock", "region": "us-east-1"} if kind == "bedrock" else None
    assert made["sign"] == sign


@pytest.mark.parametrize("kind", NAMES)
def test_what_wakes_is_asked_only_when_wanted(tmp_path: Path, kind: str) -> None:
    upstream = settings(tmp_path, kind)
    probe = KINDS[kind].probe_for(upstream)
    wake = KINDS[kind].wake_for(upstream)
    assert (wake is not None) == (kind in {"modal", "baseten", "runpod"})
    if probe is None:
        assert kind in {"bedrock", "vertex"}
        return
    assert probe.wakes == (kind in {"modal", "baseten"})
    for path in (probe.ready, probe.models, probe.loads, probe.info, probe.auth):
        assert path is None or path.startswith("/")


@pytest.mark.parametrize("kind", ["sglang", "baseten", "runpod"])
def test_a_wake_call_of_ones_own(tmp_path: Path, kind: str) -> None:
    wake = KINDS[kind].wake_for(settings(tmp_path, kind, cold={"wake": "/start?now=1"}))
    assert wake == Wake("POST", "/start?now=1")


def test_a_probe_as_the_settings_have_it(tmp_path: Path) -> None:
    upstream = settings(tmp_path, "modal", probe={"path": "/alive", "interval": 7, "timeout": 3})
    probe = KINDS["modal"].probe_for(upstream)
    assert probe is not None
    assert (probe.ready, probe.interval_s, probe.timeout_s, probe.wakes) == ("/alive", 7, 3, False)
    assert KINDS["bedrock"].probe_for(settings(tmp_path, "bedrock", probe={"path": "/x"})) == Probe(
        ready="/x"
    )


def test_what_an_answer_to_a_probe_says(tmp_path: Path) -> None:
    sglang = KINDS["sglang"].probe_for(settings(tmp_path, "sglang"))
    assert sglang is not None
    assert [sglang.judge(status, b"") for status in (200, 503, 500)] == ["warm", "loading", "down"]
    balancer = settings(tmp_path, "runpod", url="https://abc.api.runpod.ai")
    ping = KINDS["runpod"].probe_for(balancer)
    assert ping is not None
    assert (ping.ready, ping.wakes) == ("/ping", True)
    assert [ping.judge(status, b"") for status in (200, 204, 404)] == ["warm", "loading", "down"]


@pytest.mark.parametrize(
    ("workers", "state"),
    [
        ({"idle": 1, "initializing": 0, "running": 0}, "warm"),
        ({"idle": 0, "initializing": 0, "running": 2}, "warm"),
        ({"idle": 0, "initializing": 1, "running": 0}, "loading"),
        ({"idle": 0, "initializing": 0, "running": 0, "throttled": 3}, "cold"),
        ({"idle": "1"}, "cold"),
        (None, "down"),
    ],
)
def test_the_queue_of_runpod_counts_workers(
    tmp_path: Path, workers: dict[str, int] | None, state: str
) -> None:
    probe = KINDS["runpod"].probe_for(settings(tmp_path, "runpod"))
    assert probe is not None
    assert probe.ready == "/v2/abc/health"
    assert probe.judge(200, json.dumps({"jobs": {}, "workers": workers}).encode()) == state
    assert probe.judge(401, b"") == probe.judge(200, b"<html>") == probe.judge(200, b"[]") == "down"


def test_runpod_behind_a_load_balancer(tmp_path: Path) -> None:
    made = spec(tmp_path, "runpod", url="https://abc.api.runpod.ai")
    assert (made["url"], made["paths"]["embeddings"]) == (
        "https://abc.api.runpod.ai",
        "/v1/embeddings",
    )


@pytest.mark.parametrize(
    ("url", "below"),
    [
        ("https://model-a.api.baseten.co/production/sync/v1", "/production"),
        ("https://model-a.api.baseten.co/production/sync", "/production"),
        ("https://model-a.api.baseten.co/deployment/d1", "/deployment/d1"),
        ("https://model-a.api.baseten.co/development/sync/", "/development"),
    ],
)
def test_deployments_of_baseten(tmp_path: Path, url: str, below: str) -> None:
    made = spec(tmp_path, "baseten", url=url)
    assert made["url"] == "https://model-a.api.baseten.co"
    assert made["paths"]["chat"] == f"{below}/sync/v1/chat/completions"
    wake = KINDS["baseten"].wake_for(settings(tmp_path, "baseten", url=url))
    assert wake is not None
    assert (wake.method, wake.path) == ("POST", f"{below}/wake")
    asleep = [rule for rule in made["errors"] if rule["reason"] == "loading"]
    assert bool(asleep) == (below == "/development")


def test_the_shared_models_of_baseten(tmp_path: Path) -> None:
    made = configure(tmp_path, without("baseten", "url"))
    (upstream,) = msgspec.json.decode(snapshot.build(made, {}))["upstreams"]
    assert upstream["url"] == "https://inference.baseten.co"
    assert upstream["cold"] is None
    assert upstream["paths"]["embeddings"] is None
    probe = KINDS["baseten"].probe_for(made.upstreams["u"])
    assert probe is not None
    assert not probe.wakes


def test_classic_addresses_of_azure(tmp_path: Path) -> None:
    made = spec(tmp_path, "azure", deployments=True, api_version="2024-10-21")
    below = "/openai/deployments/{model}"
    expected = {
        "chat": f"{below}/chat/completions?api-version=2024-10-21",
        "completions": f"{below}/completions?api-version=2024-10-21",
        "embeddings": f"{below}/embeddings?api-version=2024-10-21",
        "realtime": "/openai/realtime?deployment={model}&api-version=2024-10-21",
        "responses": None,
    }
    assert made["paths"].items() >= expected.items()


def test_who_has_responses(tmp_path: Path) -> None:
    for kind, path in (
        ("openai", "/v1/responses"),
        ("openrouter", "/v1/responses"),
        ("azure", "/openai/v1/responses"),
        ("vllm", None),
        ("together", None),
    ):
        assert spec(tmp_path, kind)["paths"]["responses"] == path, kind
    for kind, switch, path in (("vllm", "native", "/v1/responses"), ("openai", "bridge", None)):
        assert spec(tmp_path, kind, responses=switch)["paths"]["responses"] == path, kind
    with pytest.raises(ConfigError, match="bridge them"):
        spec(tmp_path, "together", responses="native")


def test_a_key_of_azure_and_the_address_as_the_portal_has_it(tmp_path: Path) -> None:
    section = without("azure", "credentials")
    section |= {"api_key": SECRET, "url": "https://acme.openai.azure.com/openai/v1/"}
    config = configure(tmp_path, section)
    (made,) = msgspec.json.decode(snapshot.build(config, {}))["upstreams"]
    assert made["url"] == "https://acme.openai.azure.com"
    assert made["headers"] == [["api-key", SECRET]]
    assert KINDS["azure"].credentials(config.upstreams["u"]) is None


@pytest.mark.parametrize(
    ("kind", "api", "dialect", "chat"),
    [
        ("gemini", "native", "gemini", "/v1beta/models/{model}:generateContent"),
        ("gemini", "openai", "open_ai", "/v1beta/openai/chat/completions"),
        ("bedrock", "native", "converse", "/model/{model}/converse"),
        ("bedrock", "openai", "open_ai", "/openai/v1/chat/completions"),
        (
            "vertex",
            "native",
            "gemini",
            "/v1/projects/acme-1/locations/us-central1/publishers/google/models/"
            "{model}:generateContent",
        ),
        (
            "vertex",
            "openai",
            "open_ai",
            "/v1/projects/acme-1/locations/us-central1/endpoints/openapi/chat/completions",
        ),
    ],
)
def test_two_apis_of_one_provider(
    tmp_path: Path, kind: str, api: str, dialect: str, chat: str
) -> None:
    made = spec(tmp_path, kind, api=api)
    assert (made["dialect"], made["paths"]["chat"]) == (dialect, chat)


def test_the_compatible_api_of_gemini_takes_the_key_as_bearer(tmp_path: Path) -> None:
    made = spec(tmp_path, "gemini", api="openai")
    assert (made["api_key"], made["headers"]) == (SECRET, [])
    assert made["paths"]["embeddings"] == "/v1beta/openai/embeddings"


def test_a_key_of_bedrock_is_a_bearer_token(tmp_path: Path) -> None:
    config = configure(tmp_path, {**without("bedrock", "credentials"), "api_key": SECRET})
    (made,) = msgspec.json.decode(snapshot.build(config, {}))["upstreams"]
    assert (made["api_key"], made["sign"]) == (SECRET, None)
    assert KINDS["bedrock"].credentials(config.upstreams["u"]) is None


def test_vertex_of_the_whole_world(tmp_path: Path) -> None:
    made = spec(tmp_path, "vertex", location="global")
    assert made["url"] == "https://aiplatform.googleapis.com"
    assert "/locations/global/" in made["paths"]["chat"]


def test_settings_go_before_the_kind(tmp_path: Path) -> None:
    made = spec(
        tmp_path,
        "vllm",
        continues=False,
        headers={"x-team": "a"},
        drop_params=True,
        max_output_tokens=512,
        draining=True,
        outlier=None,
        slow_start=0,
        cold={"hold": 0},
        on_disconnect="drain",
    )
    assert made["continues"] is False
    assert made["headers"] == [["x-team", "a"]]
    assert (made["drop_params"], made["max_output_tokens"], made["draining"]) == (True, 512, True)
    assert (made["outlier"], made["slow_start_s"], made["cold"]) == (None, 0, None)
    assert made["drain"] == {"seconds": 120, "bytes": 1048576}


def test_a_managed_provider_that_can_be_cold(tmp_path: Path) -> None:
    made = spec(tmp_path, "openai_compatible", cold={"hold": 30, "spill_after": 2, "idle": 60})
    assert made["cold"] == {
        "hold_s": 30,
        "spill_after_s": 2,
        "keep_alive_s": 10,
        "max_held": 1000,
        "idle_s": 60,
    }


def test_specs_have_every_member_of_the_cores(tmp_path: Path) -> None:
    source = (ROOT / "rust" / "core" / "src" / "snapshot" / "spec.rs").read_text()

    def members(struct: str) -> set[str]:
        body = re.search(rf"pub struct {struct} \{{\n(.*?)^\}}", source, re.MULTILINE | re.DOTALL)
        assert body is not None, struct
        return set(re.findall(r"^    pub (\w+):", body[1], re.MULTILINE))

    config = msgspec.convert(
        {
            "upstreams": {"u": {"kind": "sglang", "url": "http://x", "cold": {}}},
            "models": {
                "m": {
                    "targets": [{"upstream": "u"}],
                    "sticky": {},
                    "shadow": {"upstream": "u", "percent": 1},
                    "hedge": {"after": 1},
                }
            },
        },
        Config,
    )
    built = msgspec.json.decode(snapshot.build(config, {}))
    (upstream,), (model,) = built["upstreams"], built["models"]
    assert set(upstream) == members("UpstreamSpec")
    assert set(upstream["outlier"]) == members("OutlierSpec")
    assert set(upstream["cold"]) == members("ColdSpec")
    assert set(upstream["paths"]) == members("PathsSpec")
    rules = spec(tmp_path, "fireworks")["errors"]
    assert set(rules[0]) == members("ErrorRule")
    assert set(model) == members("ModelSpec")
    assert set(model["targets"][0]) == members("TargetSpec")
    for part, struct in (
        ("sticky", "StickySpec"),
        ("shadow", "ShadowSpec"),
        ("retry", "RetrySpec"),
        ("hedge", "HedgeSpec"),
    ):
        assert set(model[part]) == members(struct)


def test_kinds_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KINDS["vllm"].name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["gemini", "vertex"])
@pytest.mark.parametrize(
    "text",
    [
        "API key not valid. Please pass a valid API key.",
        "API key not found. Please pass a valid API key.",
        "API key expired. Please renew the API key.",
    ],
)
def test_a_key_of_ours_that_google_refuses_is_no_fault_of_the_client(kind: str, text: str) -> None:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
    }
    error = {"code": 400, "message": text, "status": "INVALID_ARGUMENT", "details": [info]}
    body = json.dumps({"error": error}).lower()
    fits = (
        rule
        for rule in KINDS[kind].errors
        if rule.status == 400 and rule.code is None and rule.contains and rule.contains in body
    )
    rule = next(fits)
    assert (rule.kind, rule.retry) == ("upstream_error", True)

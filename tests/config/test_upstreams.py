"""What each kind's section has to hold, and what a mistake in it is answered with."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from forebay.config import Cold, Config, ConfigError, Outlier, json_schema, load, to_public
from forebay.config.kinds import FORMS, PARTS, UpstreamKind

from tests.upstreams.examples import SECRET, SECTIONS

NAMES = get_args(UpstreamKind)
CREDENTIALS = json_schema()["$defs"]["Credentials"]["properties"]


def read(tmp_path: Path, section: dict[str, Any]) -> Config:
    """Each field of the section on a line of its own, from line 3 on."""
    lines = [f"    {k}: {msgspec.json.encode(v).decode()}" for k, v in section.items()]
    file = tmp_path / "forebay.yaml"
    text = ["upstreams:", "  u:", *lines, "models: {m: {targets: [{upstream: u}]}}"]
    file.write_text("\n".join(text))
    return load(file, {})


def refused(tmp_path: Path, section: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, section)
    assert caught.value.source == str(tmp_path / "forebay.yaml")
    assert SECRET not in str(caught.value)
    return caught.value


def section(kind: str, *without: str, **fields: Any) -> dict[str, Any]:
    kept = {k: v for k, v in SECTIONS[kind].items() if k not in without}
    return {"kind": kind, **kept, **fields}


@pytest.mark.parametrize("kind", NAMES)
def test_every_example_is_sound(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path, section(kind)).upstreams["u"].kind == kind


@pytest.mark.parametrize("kind", NAMES)
def test_what_a_kind_needs(tmp_path: Path, kind: str) -> None:
    form = FORMS[kind]  # type: ignore[index]
    needed = [*(["url"] if form.url else []), *form.needs]
    for field in needed:
        error = refused(tmp_path, section(kind, field))
        # Of what is not there, the line is its section's.
        assert (error.field, error.line) == (f"upstreams.u.{field}", 2)
        assert "required" in error.reason
    if form.needs_key:
        own = section(kind, "url", "api_key")
        error = refused(tmp_path, own)
        assert error.field == "upstreams.u.api_key"
        # A stand-in at another address may do without.
        assert read(tmp_path, {**own, "url": "http://127.0.0.1:1"})


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_parts_that_a_kind_does_not_have(tmp_path: Path, kind: str, part: str) -> None:
    form = FORMS[kind]  # type: ignore[index]
    if part in (*form.needs, *form.may):
        return
    value: Any = {"deployments": True, "api": "openai"}.get(part, "x")
    made = section(kind, **{part: value})
    error = refused(tmp_path, made)
    assert (error.field, error.reason) == (f"upstreams.u.{part}", f"kind {kind} has none")
    assert error.line == 3 + list(made).index(part)


@pytest.mark.parametrize("kind", NAMES)
def test_credentials_of_another_kind(tmp_path: Path, kind: str) -> None:
    form = FORMS[kind]  # type: ignore[index]
    known = {field for login in form.logins for field in (*login.needs, *login.may)}
    stranger = next(field for field in CREDENTIALS if field not in known)
    made = section(kind, "credentials", *([] if form.both else ["api_key"]))
    error = refused(tmp_path, {**made, "url": "http://x", "credentials": {stranger: SECRET}})
    if form.logins:
        assert error.field == f"upstreams.u.credentials.{stranger}"
    else:
        assert error.field == "upstreams.u.credentials"
    assert f"kind {kind} has none" in error.reason


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    (
        section("modal", credentials={"key": "wk"}),
        "credentials.secret",
        "required beside key",
    ),
    (
        section("bedrock", credentials={"access_key_id": "a", "session_token": "t"}),
        "credentials.secret_access_key",
        "required beside access_key_id",
    ),
    (
        section("bedrock", credentials={"session_token": "t"}),
        "credentials",
        "for kind bedrock: access_key_id, secret_access_key or profile",
    ),
    (
        section("bedrock", credentials={"profile": "p", "access_key_id": "a"}),
        "credentials.secret_access_key",
        "required beside access_key_id",
    ),
    (section("bedrock", api_key=SECRET), "credentials", "not beside api_key"),
    (section("azure", credentials={"tenant_id": "t"}), "credentials.client_id", "required beside"),
    (section("azure", api_key=SECRET), "credentials", "not beside api_key"),
    (section("azure", deployments=True), "api_version", "required with deployments"),
    (section("vertex", api_key=SECRET), "api_key", "see credentials"),
    (section("vertex", project="a/b"), "project", "letters, digits"),
    (section("bedrock", region="us east"), "region", "letters, digits"),
    (section("openai", api_key="two words"), "api_key", "printable ASCII"),
    (section("modal", credentials={"key": "a\nb", "secret": "c"}), "credentials.key", "printable"),
    (section("gemini", api="grpc"), "api", "choose from native, openai"),
    (section("openai", headers={"Host": "x"}), "headers.Host", "sets this header itself"),
    (section("openai", headers={"a b": "x"}), "headers.a b", "no valid header name"),
    (section("openai", headers={"x-a": "1\r\nx-b: 2"}), "headers.x-a", "printable ASCII"),
    (section("openai", headers={"x-a": "1", "X-A": "2"}), "headers.X-A", "given twice"),
    (section("openai", headers={"Authorization": "x"}), "headers.Authorization", "not beside"),
    (section("openai", probe={"path": "health"}), "probe.path", ""),
    (section("openai", probe={"interval": 0}), "probe.interval", "> 0"),
    (section("openai", outlier={"base_ejection": 90}), "outlier.max_ejection", "at least"),
    (section("openai", outlier={"consecutive": -1}), "outlier.consecutive", ">= 0"),
    (section("openai", outlier={"max_ejection_percent": 101}), "outlier.max_ejection_percent", ""),
    (section("openai", cold={"max_hold": 3}), "cold.max_hold", "did you mean max_held"),
    (section("openai", slow_start=-1), "slow_start", ">= 0"),
    (section("openai", max_output_tokens=0), "max_output_tokens", ">= 1"),
    (section("bedrock", discover=True), "discover", "does not list models"),
    (section("openai", url="ftp://x"), "url", "http://"),
    (section("openai", credential={}), "credential", "did you mean credentials"),
]


@pytest.mark.parametrize(("made", "field", "reason"), MISTAKES)
def test_mistakes(tmp_path: Path, made: dict[str, Any], field: str, reason: str) -> None:
    error = refused(tmp_path, made)
    assert error.field == f"upstreams.u.{field}"
    assert reason in error.reason
    assert error.line is not None


def test_an_unknown_kind_is_told_all_others(tmp_path: Path) -> None:
    error = refused(tmp_path, {"kind": "gpt"})
    assert error.field == "upstreams.u.kind"
    assert all(name in error.reason for name in NAMES)


def test_empty_variables_leave_credentials_out(tmp_path: Path) -> None:
    empty = {"access_key_id": "", "secret_access_key": ""}
    made = read(tmp_path, section("bedrock", api_key="", credentials=empty)).upstreams["u"]
    assert (made.api_key, made.credentials) == (None, None)


@pytest.mark.parametrize(
    ("made", "extra"),
    [
        (section("bedrock", "credentials"), "bedrock"),
        (section("bedrock", credentials={"profile": "p"}), "bedrock"),
        (section("bedrock", "credentials", api_key="k"), None),
        (section("bedrock"), None),
        (section("vertex"), "vertex"),
        (section("azure"), "azure"),
        (section("azure", "credentials", api_key="k"), None),
        (section("openai"), None),
    ],
)
def test_a_package_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: dict[str, Any], extra: str | None
) -> None:
    def find(name: str) -> ModuleSpec | None:
        if "." in name:
            raise ModuleNotFoundError(name)
        return None

    monkeypatch.setattr("forebay.config.check_upstream.find_spec", find)
    assert importlib.util.find_spec("json") is not None
    if extra is None:
        assert read(tmp_path, made)
        return
    error = refused(tmp_path, made)
    assert (error.field, error.line) == ("upstreams.u.kind", 3)
    assert f"pip install 'forebay[{extra}]'" in error.reason


def test_how_an_upstream_is_watched(tmp_path: Path) -> None:
    made = read(tmp_path, section("vllm")).upstreams["u"]
    assert made.outlier == Outlier(
        consecutive=5,
        failure_percent=0,
        min_requests=20,
        latency_factor=0,
        interval=10,
        base_ejection=5,
        max_ejection=60,
        max_ejection_percent=50,
    )
    assert (made.slow_start, made.cold, made.draining) == (10, None, False)
    never = read(tmp_path, section("vllm", outlier=None, cold={"hold": 1.5})).upstreams["u"]
    assert never.outlier is None
    assert never.cold == Cold(hold=1.5, spill_after=5, keep_alive=10, max_held=1000)


def test_a_date_is_a_version(tmp_path: Path) -> None:
    file = tmp_path / "forebay.yaml"
    file.write_text(
        "upstreams:\n"
        "  u: {kind: azure, url: 'https://x', api_key: k, deployments: true,"
        " api_version: 2024-10-21}\n"
        "models: {m: {targets: [{upstream: u}]}}\n"
    )
    assert load(file, {}).upstreams["u"].api_version == "2024-10-21"


@pytest.mark.parametrize("kind", NAMES)
def test_secrets_are_masked_and_their_names_kept(tmp_path: Path, kind: str) -> None:
    made = section(kind)
    public = to_public(read(tmp_path, made))["upstreams"]["u"]
    assert SECRET not in msgspec.json.encode(public).decode()
    for field in ("api_key", "headers", "credentials"):
        assert bool(public[field]) == bool(made.get(field))
    for name in made.get("headers", {}):
        assert public["headers"][name] == "***"


def test_an_agent(tmp_path: Path) -> None:
    engine = {"kind": "vllm", "url": "http://gpu:8000"}
    config = read(tmp_path, {**engine, "agent": {"url": "http://gpu:30080/", "key": SECRET}})
    agent = config.upstreams["u"].agent
    assert agent is not None
    assert (agent.url, agent.key, agent.member) == ("http://gpu:30080", SECRET, 0)
    assert SECRET not in repr(config)
    assert to_public(config)["upstreams"]["u"]["agent"]["key"] == "***"
    keyless = read(tmp_path, {**engine, "agent": {"url": "http://gpu:30080", "key": ""}})
    assert keyless.upstreams["u"].agent == msgspec.structs.replace(agent, key=None)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"kind": "openai"}, "agent", "kind openai has none"),
        ({"cold": {"wake": "/wake"}}, "cold.wake", "not beside agent, which starts it"),
        ({"agent": {"url": "gpu:30080"}}, "agent.url", "URL must start with"),
        (
            {"agent": {"url": f"http://u:{SECRET}@gpu"}},
            "agent.url",
            "not carry credentials; use key",
        ),
        ({"agent": {"url": "http://gpu", "key": f"{SECRET} x"}}, "agent.key", "printable ASCII"),
        ({"agent": {"key": "k"}}, "agent", "url"),
        ({"agent": {"url": "http://gpu", "member": -1}}, "agent.member", "0"),
    ],
)
def test_an_agent_that_will_not_do(
    tmp_path: Path, fields: dict[str, Any], field: str, reason: str
) -> None:
    given = {"kind": "sglang", "url": "http://gpu:1", "agent": {"url": "http://gpu:2"}}
    error = refused(tmp_path, {**given, "api_key": "sk-1", **fields})
    assert (error.field or "").startswith(f"upstreams.u.{field}")
    assert reason in str(error)

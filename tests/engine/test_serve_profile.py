"""Profiles: what is read, what is refused, and how that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from forebay_engine.serve import document, profile
from hypothesis import given, settings
from hypothesis import strategies as st

PROFILES = sorted((Path(__file__).parents[2] / "deploy" / "profiles").glob("*.yaml"))


def read(text: str, *sets: str) -> profile.Profile:
    return profile.parse(text, "p.yaml", sets)


def test_what_is_not_said_has_defaults() -> None:
    found = read("{kind: sglang, model: org/model}")
    assert (found.served_name, found.url) == ("org/model", "http://127.0.0.1:30000")
    assert (found.park, found.kv_cache, found.weights.preload) == ("stop", "auto", True)


def test_set_wins_over_the_file_and_makes_sections() -> None:
    found = read(
        "{kind: vllm, model: m, port: 1}",
        "port=8000",
        "drain.grace_s=5",
        "warmup.prompts=[a, b]",
        "name=big",
    )
    assert (found.port, found.drain.grace_s, found.name) == (8000, 5.0, "big")
    assert found.warmup.prompts == ("a", "b")


def test_variables_are_set_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DIR", "/models")
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = "{kind: sglang, model: '${MODEL_DIR}/m', env: {A: '${NOT_THERE:-none}'}}"
    found = read(text)
    assert (found.model, found.env) == ("/models/m", {"A": "none"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: sglang, model: m, prot: 1}", "p.yaml: prot: unknown field"),
        ("{kind: sglang, model: m, drain: {grace: 1}}", "p.yaml: drain.grace: unknown field"),
        ("{kind: sglang}", "p.yaml: model: is missing"),
        ("{kind: sglang, model: ''}", "p.yaml: model: must not be empty"),
        ("{kind: llama, model: m}", "p.yaml: kind: "),
        ("{kind: sglang, model: m, port: 0}", "p.yaml: port: "),
        ("{kind: sglang, model: m, memory_fraction: 1.5}", "p.yaml: memory_fraction: "),
        ("{kind: sglang, model: m, args: [1]}", "p.yaml: args[0]: "),
        ("{kind: sglang, model: m, env: {A: '${NOT_THERE}'}}", "p.yaml: env.A: ${NOT_THERE} is"),
        ("{kind: sglang, model: m, command: [a], args: [b]}", "p.yaml: command: stands alone"),
        ("{kind: tgi, model: m, park: memory}", "p.yaml: park: tgi cannot"),
        ("{kind: vllm, model: m, park: gate}", "p.yaml: park: vllm has no gate"),
        (
            "{kind: sglang, model: m, park: gate, command: [x, --gated-launch-port, '9']}",
            "p.yaml: command: park: gate needs the gate's port in it: --gated-launch-port {gate}",
        ),
        (
            "{kind: sglang, model: m, command: [x, '--gate={gate}']}",
            "p.yaml: command: {gate} needs park: gate",
        ),
        ("{kind: vllm, model: m, max_queued: 4}", "p.yaml: max_queued: vllm has no bound"),
        ("{kind: trtllm, model: m, api_key: k}", "p.yaml: api_key: trtllm asks for no key"),
        (
            "{kind: tgi, model: m, weights: {load_format: pt}}",
            "p.yaml: weights.load_format: tgi chooses",
        ),
        (
            "{kind: tgi, model: m, weights: {source: 's3://b/m', transfer: stream}}",
            "p.yaml: weights.transfer: tgi does not read",
        ),
        (
            "{kind: sglang, model: m, weights: {transfer: stream}}",
            "p.yaml: weights.transfer: stream needs a store",
        ),
        (
            "{kind: sglang, model: m, weights: {source: 's3://b/m'}}",
            "p.yaml: weights.source: to sync it needs cache_dir",
        ),
        (
            "{kind: sglang, model: m, cache_dir: /c, weights: {source: 'ftp://b/m'}}",
            "p.yaml: weights.source: ftp:// is none of",
        ),
        ("[1, 2]", "p.yaml: must be a mapping"),
        ("a: [", "p.yaml:1: "),
    ],
)
def test_refusals_name_the_file_and_the_field(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ValueError, match="yaml") as error:
        read(text)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("word", ["port", "=1", "a..b=1", "port.x=1", "name=[", ".=1"])
def test_a_set_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="--set"):
        read("{kind: sglang, model: m, port: 1}", word)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: No such file"):
        profile.load(tmp_path / "absent.yaml")


def test_members_of_a_pool_have_ports_in_a_row() -> None:
    found = read("{kind: sglang, model: m, port: 65534}")
    assert found.member(1).port == 65535
    with pytest.raises(ValueError, match="port"):
        found.member(2)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(profile.Profile.__struct_fields__) | st.text(), TREES))
def test_any_mapping_is_a_profile_or_an_error_that_names_the_file(values: object) -> None:
    message = "p.yaml"
    try:
        profile.parse(yaml.safe_dump(values), "p.yaml")
    except ValueError as error:
        message = str(error)
    assert message.startswith("p.yaml")


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_profile_or_an_error_that_names_the_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"^p\.yaml"):
        profile.parse(text, "p.yaml")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abc_", min_size=1), min_size=1, max_size=3), st.integers() | st.booleans())
def test_what_was_put_is_there(names: list[str], value: object) -> None:
    values: dict[str, object] = {}
    document.put(values, f"{'.'.join(names)}={yaml.safe_dump(value)}", "--set")
    found: object = values
    for name in names:
        assert isinstance(found, dict)
        found = found[name]
    assert found == value


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_example_profiles_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREBAY_ENGINE_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    assert profile.load(path).model


def test_every_kind_has_an_example_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREBAY_ENGINE_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    kinds = {profile.load(path).kind for path in PROFILES}
    assert kinds == {"sglang", "vllm", "tgi", "trtllm"}


@pytest.mark.parametrize("field", ["load_timeout_s", "drain.grace_s", "weights.cache_limit_gb"])
def test_times_and_sizes_are_finite(field: str) -> None:
    with pytest.raises(ValueError, match=f"p.yaml: {field}: must be a finite number"):
        read("{kind: vllm, model: m}", f"{field}=.inf")


def test_a_password_in_a_source_is_refused_unsaid() -> None:
    with pytest.raises(ValueError, match=r"weights\.source: must not hold a user") as error:
        read("{kind: vllm, model: m, cache_dir: /c, weights: {source: 'https://u:s3cret@h/m'}}")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "{kind: vllm, model: m, args: &a [*a]}",
        f"{{kind: vllm, model: m, args: {'[' * 3000}{']' * 3000}}}",
        f"{{kind: vllm, model: m, args: {'[' * 70}{']' * 70}}}",
        "{kind: vllm, model: 2024-13-45}",
    ],
    ids=["endless", "deep", "deeper than wanted", "no date"],
)
def test_strange_yaml_is_an_error_with_its_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"^p\.yaml: "):
        read(text)
    with pytest.raises(ValueError, match="--set args: "):
        read("{kind: vllm, model: m}", "args=&a [*a]")

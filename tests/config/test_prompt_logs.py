"""`prompt_logs`: keys that are keys, and that nobody is shown."""

import base64

import pytest
from forebay.config import ConfigError, load, to_public
from forebay.config.schema import PromptLogs, decode_log_key

BASE = "upstreams: {u: {kind: sglang, url: 'http://h', discover: true}}\n"
KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def read(tmp_path):
    def read(text: str, env: dict[str, str] | None = None):
        path = tmp_path / "forebay.yaml"
        path.write_text(BASE + text)
        return load(path, env or {})

    return read


def test_without_it_no_contents_can_be_logged(read) -> None:
    assert read("").prompt_logs == PromptLogs()
    assert read("").prompt_logs.active is None


def test_a_full_section(read) -> None:
    config = read(
        "prompt_logs:\n  keys: {old: '${OLD}', new: '${NEW}'}\n  active: new\n"
        "  max_bytes: 1000\n  retention_days: 7\n"
        "  patterns: ['(?i)case-[0-9]{6}$', '\\p{L}+@corp']\n",
        {"OLD": KEY, "NEW": base64.b64encode(b"n" * 32).decode()},
    )
    logs = config.prompt_logs
    assert (logs.active, logs.max_bytes, logs.retention_days) == ("new", 1000, 7)
    assert logs.patterns == ("(?i)case-[0-9]{6}$", "\\p{L}+@corp")
    assert decode_log_key(logs.keys["old"]) == bytes(range(32))
    public = to_public(config)["prompt_logs"]
    assert public["keys"] == {"old": "***", "new": "***"}
    assert KEY not in str(to_public(config))


@pytest.mark.parametrize(
    ("section", "field", "reason"),
    [
        ("{keys: {a: secret!}}", "keys.a", "must be base64"),
        ("{keys: {a: c2VjcmV0}}", "keys.a", "of 32 bytes, has 6"),
        ("{keys: {a: ''}}", "keys.a", "of 32 bytes, has 0"),
        ("{keys: {a: 5}}", "keys", "expected `str`"),
        ("{keys: {'a b': x}}", "keys.a b", "no spaces"),
        ("{active: a}", "active", "no key named 'a' (known: none is defined)"),
        (f"{{keys: {{a: {KEY}}}, active: b}}", "active", "no key named 'b' (known: a)"),
        ("{keys: {a: '${UNSET}'}}", "keys.a", "UNSET is not set"),
        ("{max_bytes: 0}", "max_bytes", ">= 1"),
        ("{max_bytes: 1048577}", "max_bytes", "<= 1048576"),
        ("{retention_days: 0}", "retention_days", ">= 1"),
        ("{patterns: ['']}", "patterns[0]", "length >= 1"),
        ("{patterns: x}", "patterns", "expected `array`"),
        ("{key: x}", "key", "did you mean keys"),
    ],
)
def test_a_mistake_names_the_field(read, section: str, field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"prompt_logs: {section}\n")
    error = caught.value
    assert (error.field, error.line) == (f"prompt_logs.{field}", 2)
    assert reason in error.reason
    assert "secret!" not in str(error)
    assert "c2VjcmV0" not in str(error)

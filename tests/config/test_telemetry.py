"""Where traces go: settings and what is wrong with them."""

from pathlib import Path

import pytest
from forebay.config import ConfigError, load
from forebay.config.schema import to_public

ENGINE = {"INFERENCE_URL": "http://127.0.0.1:1"}


def test_it_is_off_unless_said(tmp_path: Path) -> None:
    config = load(_file(tmp_path, "{}"), env=ENGINE)
    assert config.telemetry.otlp_endpoint is None
    assert config.telemetry.sample == 1.0


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    text = "telemetry: {otlp_endpoint: 'http://me:secret@c:4318/v1/traces', sample: 0.5}"
    public = to_public(load(_file(tmp_path, text), env=ENGINE))
    assert public["telemetry"]["otlp_endpoint"] == "http://me:***@c:4318/v1/traces"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{otlp_endpoint: 'grpc://c:4317'}", "telemetry.otlp_endpoint"),
        ("{otlp_endpoint: 'http://'}", "telemetry.otlp_endpoint"),
        ("{sample: 1.5}", "telemetry.sample"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(_file(tmp_path, f"telemetry: {text}"), env=ENGINE)
    assert caught.value.field == field


def _file(folder: Path, text: str) -> Path:
    path = folder / "forebay.yaml"
    path.write_text(text)
    return path

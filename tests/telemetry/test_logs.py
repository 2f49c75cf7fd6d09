"""Log lines: one shape for ours and for libraries', and no secrets in them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from forebay.telemetry import setup_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.configure(**config)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_the_libraries_have_one_shape(stream: io.StringIO) -> None:
    setup_logging("info", "json", stream)
    structlog.stdlib.get_logger("forebay.x").info("started", port=8080)
    logging.getLogger("lib").warning("odd %s", "thing", extra={"where": "there"})
    structlog.stdlib.get_logger("forebay.x").debug("hidden")
    logging.getLogger("lib").debug("hidden")
    ours, theirs = lines(stream)
    assert {k: ours[k] for k in ("event", "level", "logger", "port")} == {
        "event": "started",
        "level": "info",
        "logger": "forebay.x",
        "port": 8080,
    }
    assert (theirs["event"], theirs["level"], theirs["where"]) == ("odd thing", "warning", "there")
    assert str(theirs["timestamp"]).endswith("Z")


@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_do_not_show_even_in_a_traceback(stream: io.StringIO, format: str) -> None:
    setup_logging("info", format, stream)  # type: ignore[arg-type]
    log = structlog.stdlib.get_logger("forebay.x")
    secret = "fb-" + "k" + "S" * 50
    log.info("seen", api_key=secret, Authorization=f"Bearer {secret}")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert secret not in text
    assert "***" in text
    assert "ValueError" in text
    assert "broken" in text


def test_setting_up_again_replaces(stream: io.StringIO) -> None:
    setup_logging("info", "json", stream)
    setup_logging("error", "json", stream)
    log = structlog.stdlib.get_logger("forebay.x")
    log.warning("hidden")
    log.error("shown")
    assert [line["event"] for line in lines(stream)] == ["shown"]

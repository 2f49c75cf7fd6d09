"""`forebay logs`, and who is logged."""

import time
from pathlib import Path

import pytest

from tests.cli.test_audit import CONFIG
from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url
from tests.support.databases import run_apart
from tests.support.prompt_logs import OLD, insert, log

__all__ = ["elsewhere", "forebay", "with_url"]


@pytest.fixture
def configured(with_url: Forebay, elsewhere: Path) -> Forebay:
    (elsewhere / "forebay.yaml").write_text(CONFIG)
    return with_url


def test_search_and_show(configured: Forebay, database_url: str) -> None:
    now = time.time()
    one = log(request_id="one", at=now - 7200, request=b"what is a sluice?", redactions=2)
    two = log(request_id="two", at=now - 60, account="other", status=500, answer_truncated=True)
    bare = log(request_id="bare", at=now - 30, request=None, answer=None)
    run_apart(lambda: insert(database_url, one, two, bare))

    def found(*arguments: str) -> list[str]:
        listed = configured("logs", "search", *arguments, "--json").json()
        return [entry["request_id"] for entry in listed]

    assert found() == ["bare", "two", "one"]
    assert found("--limit", "2") == ["bare", "two"]
    assert found("--account", "acme") == ["bare", "one"]
    assert found("--status", "500") == ["two"]
    assert found("--request-id", "one") == ["one"]
    assert found("--key", "k1", "--model", "tiny", "--since", "1h") == ["bare", "two"]
    assert found("--until", "1h") == ["one"]
    assert found("--since", "2020-01-01", "--until", "2020-01-02T12:00") == []
    assert found("--contains", "Sluice") == ["one"]
    table = configured("logs", "search").out
    assert str(one["event_id"]) in table
    assert "sluice" not in table
    shown = configured("logs", "show", str(one["event_id"])).out
    assert "what is a sluice?" in shown
    assert "good day" in shown
    assert "beginning" in configured("logs", "show", str(two["event_id"])).out
    assert configured("logs", "show", str(bare["event_id"])).out.count("not logged") == 2
    shown = configured("logs", "show", str(one["event_id"]), "--json").json()
    assert (shown["request"], shown["redactions"]) == ("what is a sluice?", 2)
    for arguments, reason in (
        (("search", "--since", "soon"), "neither a date"),
        (("search", "--since", "1h", "--until", "2h"), "until must be after since"),
        (("show", "nothing"), "no prompt log has the id 'nothing'"),
    ):
        result = configured("logs", *arguments)
        assert result.code in (1, 2)
        assert reason in result.err


def test_without_the_right_key(with_url: Forebay, configured: Forebay, database_url: str) -> None:
    lost = log(key=("lost", OLD))
    old = log(key=("old", OLD))
    run_apart(lambda: insert(database_url, lost, old))
    result = configured("logs", "show", str(lost["event_id"]))
    assert (result.code, result.out) == (1, "")
    assert "the key 'lost' is needed and not configured" in result.err
    result = configured("logs", "search", "--contains", "hello")
    assert "1 logs could not be opened" in result.err
    result = configured("logs", "rotate", "--json")
    assert result.code == 1
    assert '"rotated": 1' in result.out
    assert "1 under 'lost'" in result.err
    Path("forebay.yaml").unlink()
    for command in (
        ("logs", "rotate"),
        ("logs", "search", "--contains", "x"),
        ("logs", "show", str(old["event_id"])),
    ):
        result = with_url(*command)
        assert result.code == 1
        assert "prompt_logs" in result.err


def test_who_is_logged(configured: Forebay) -> None:
    made = configured("accounts", "create", "acme", "--log", "metadata", "--json").json()
    assert (made["log_level"], made["log_sample"]) == ("metadata", 1.0)
    options = ("--log", "full", "--log-sample", "0.1")
    changed = configured("accounts", "set", "acme", *options, "--json").json()
    assert (changed["log_level"], changed["log_sample"]) == ("full", 0.1)
    assert "full, 10 % of the requests" in configured("accounts", "show", "acme").out
    key = configured(
        "keys", "create", "--name", "x", "--account", "acme", "--log", "off", "--json"
    ).json()["id"]
    assert configured("keys", "show", key, "--json").json()["log_level"] == "off"
    changed = configured("keys", "set", key, *options, "--json").json()
    assert (changed["log_level"], changed["log_sample"]) == ("full", 0.1)
    changed = configured("keys", "set", key, "--log", "inherit", "--json").json()
    assert (changed["log_level"], changed["log_sample"]) == (None, None)
    assert "as its account" in configured("keys", "show", key).out
    for command in ("accounts set acme", f"keys set {key}"):
        for bad in ("--log all", "--log-sample 1.5", "--log-sample nan"):
            assert configured(*command.split(), *bad.split()).code != 0


def test_no_contents_without_a_key_to_encrypt_with(configured: Forebay, elsewhere: Path) -> None:
    plain = CONFIG.partition("prompt_logs")[0]
    (elsewhere / "plain.yaml").write_text(plain)
    configured("accounts", "create", "acme")
    key = configured("keys", "create", "--name", "x", "--json").json()["id"]
    for command in (
        ("accounts", "create", "b"),
        ("accounts", "set", "acme"),
        ("keys", "create", "--name", "y"),
        ("keys", "set", key),
    ):
        result = configured(*command, "--log", "full", "--config", "plain.yaml")
        assert (result.code, result.out) == (1, "")
        assert "prompt_logs.active" in result.err
    assert configured("accounts", "set", "acme", "--log", "full").code == 0
    # Without any configuration here the gateways' own decides.
    (elsewhere / "forebay.yaml").unlink()
    assert configured("keys", "set", key, "--log", "full").code == 0

"""Limits, accounts and live figures on the command line."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url

__all__ = ["elsewhere", "forebay", "with_url"]

NONE = {
    "rps": None,
    "rps_burst": None,
    "rpm": None,
    "rpm_burst": None,
    "tpm": None,
    "tpm_burst": None,
    "concurrency": None,
    "budget": None,
    "budget_period": None,
    "on_store_loss": "share",
}


def make(run: Forebay, *options: str) -> str:
    """A new key's id."""
    key_id: str = run("keys", "create", "--name", "shop", *options, "--json").json()["id"]
    return key_id


def test_a_key_with_every_limit(with_url: Forebay) -> None:
    key_id = make(
        with_url,
        *("--account", "acme", "--rps", "5", "--rpm", "60", "--budget", "25.00/month"),
        *("--priority", "batch", "--on-store-loss", "deny"),
    )
    shown = with_url("keys", "show", key_id, "--json").json()
    assert (shown["rps"], shown["rps_burst"], shown["rpm_burst"]) == (5, 5, 10)
    assert (shown["budget"], shown["budget_period"]) == ("25.00", "month")
    assert (shown["priority"], shown["on_store_loss"]) == ("batch", "deny")
    text = with_url("keys", "show", key_id).out
    for line in ("5 a second, 5 at once", "60 a minute, 10 at once", "25.00/month", "batch"):
        assert line in text
    assert "25.00/month" in with_url("keys", "list").out


def test_limits_of_a_key_are_changed(with_url: Forebay) -> None:
    key_id = make(with_url, "--rpm", "60", "--tpm", "500")
    subject = f"key:{key_id}"
    changed = with_url("limits", "set", subject, "--rpm", "600", "--budget", "5/day", "--json")
    expected = {
        **NONE,
        "rpm": 600,
        "rpm_burst": 100,
        "tpm": 500,
        "tpm_burst": 500,
        "budget": "5.00",
        "budget_period": "day",
    }
    assert changed.json() == {"scope": "key", "id": key_id, "model": None, **expected}
    assert with_url("limits", "show", subject, "--json").json() == changed.json()
    shown = with_url("keys", "show", key_id, "--json").json()
    assert {name: shown[name] for name in NONE} == expected
    cleared = with_url("limits", "clear", subject, "rpm", "budget", "--json").json()
    assert (cleared["rpm"], cleared["budget"], cleared["budget_period"]) == (None, None, None)
    assert cleared["tpm"] == 500
    assert with_url("limits", "clear", subject, "--json").json() == {
        **changed.json(),
        **NONE,
    }
    assert "no limit" in with_url("limits", "show", subject).out


def test_limits_of_accounts_models_and_keys_on_models(with_url: Forebay) -> None:
    key_id = make(with_url, "--account", "acme")
    with_url("limits", "set", "account:acme", "--rps", "100", "--on-store-loss", "deny")
    with_url(
        "limits", "set", "model:llama", "--concurrency", "64", "--tpm-burst", "9", "--tpm", "8"
    )
    with_url("limits", "set", f"key:{key_id}", "--model", "llama", "--budget", "0.5/total")
    listed = with_url("limits", "list", "--json").json()
    assert [(entry["scope"], entry["id"], entry["model"]) for entry in listed] == [
        ("account", "acme", None),
        ("key_model", key_id, "llama"),
        ("model", "llama", None),
    ]
    assert listed[0]["rps_burst"] == 100
    assert (listed[2]["tpm"], listed[2]["tpm_burst"]) == (8, 9)
    assert with_url("limits", "show", "account:acme", "--json").json() == listed[0]
    table = with_url("limits", "list").out
    assert "key on model" in table
    assert "0.50/total" in table
    text = with_url("keys", "show", key_id).out
    assert "on model" in text
    assert "0.50/total" in text
    assert "100 a second" in with_url("accounts", "show", "acme").out
    with_url("limits", "clear", "account:acme")
    assert len(with_url("limits", "list", "--json").json()) == 2
    for subject in ("account:nobody", "key:nosuchkey000"):
        result = with_url("limits", "set", subject, "--rpm", "5")
        assert (result.code, result.err.count("\n")) == (1, 1)
    result = with_url("limits", "set", "model:llama", "--budget", "0/day")
    assert (result.code, "budget must be" in result.err) == (1, True)


def test_accounts(with_url: Forebay) -> None:
    made = with_url("accounts", "create", "acme", "--weight", "2.5", "--json").json()
    assert (made["id"], made["weight"], made["keys"]) == ("acme", 2.5, 0)
    assert with_url("accounts", "create", "acme").code == 1
    changed = with_url("accounts", "set", "acme", "--name", "Acme Ltd", "--json").json()
    assert (changed["name"], changed["weight"]) == ("Acme Ltd", 2.5)
    make(with_url)
    assert [a["id"] for a in with_url("accounts", "list", "--json").json()] == ["acme", "default"]
    assert "Acme Ltd" in with_url("accounts", "list").out
    shown = with_url("accounts", "show", "acme", "--json").json()
    assert shown["limits"] == NONE
    assert with_url("accounts", "show", "nobody").code == 1
    assert with_url("accounts", "set", "acme", "--weight", "0").code == 1


def test_a_key_is_changed(with_url: Forebay) -> None:
    key_id = make(with_url, "--models", "a", "--expires", "9d")
    changed = with_url(
        *("keys", "set", key_id, "--name", "web", "--models", "a, b", "--priority", "batch"),
        *("--expires", "never", "--json"),
    ).json()
    assert (changed["name"], changed["models"], changed["priority"]) == ("web", ["a", "b"], "batch")
    assert changed["expires_at"] is None
    assert with_url("keys", "set", key_id, "--models", "all", "--json").json()["models"] is None


LIVE = {
    "scope": "key",
    "subject": "k",
    "model": None,
    "dimension": "budget",
    "period": "month",
    "limit": "25.00",
    "burst": "25.00",
    "remaining": "24.123",
    "reset_s": None,
}


class Asked(BaseHTTPRequestHandler):
    """A gateway that has one live figure."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        key = self.headers["authorization"]
        self.seen.append((self.path, key))
        good = key == "Bearer fb-admin"
        error = {"message": "Incorrect API key provided.", "type": "x", "param": None, "code": "x"}
        body: dict[str, Any] = {"data": [LIVE]} if good else {"error": error}
        data = json.dumps(body).encode()
        self.send_response(200 if good else 401)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Asked.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_live_figures(with_url: Forebay, gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id = make(with_url)
    assert "FOREBAY_ADMIN_KEY" in with_url("keys", "show", key_id, "--url", gateway_url).err
    monkeypatch.setenv("FOREBAY_ADMIN_KEY", "fb-admin")
    shown = with_url("keys", "show", key_id, "--url", gateway_url + "/", "--json").json()
    assert shown["live"] == [LIVE]
    assert Asked.seen == [(f"/admin/v1/keys/{key_id}/limits", "Bearer fb-admin")]
    monkeypatch.setenv("FOREBAY_URL", gateway_url)
    assert "24.123" in with_url("keys", "show", key_id).out
    monkeypatch.setenv("FOREBAY_ADMIN_KEY", "fb-wrong")
    result = with_url("keys", "show", key_id)
    assert (result.code, "Incorrect API key" in result.err) == (1, True)
    assert "fb-wrong" not in result.err
    for url in ("http://127.0.0.1:1", "ftp://x"):
        result = with_url("keys", "show", key_id, "--url", url)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)

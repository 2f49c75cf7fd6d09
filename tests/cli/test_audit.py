"""Commands that write are in the audit log, and `forebay audit` shows it."""

import json
import os
import pwd
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from forebay.cli.main import app

from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url
from tests.conftest import run_apart
from tests.support.prompt_logs import BOTH, OLD, insert, log

__all__ = ["elsewhere", "forebay", "with_url"]

WRITES = {
    "keys create": ("--name x --account acme", "key.create"),
    "keys set": ("KEY --name y", "key.change"),
    "keys rotate": ("KEY", "key.rotate"),
    "keys revoke": ("KEY", "key.revoke"),
    "accounts create": ("new", "account.create"),
    "accounts set": ("acme --weight 2", "account.change"),
    "limits set": ("account:acme --rpm 7", "limits.create"),
    "limits clear": ("account:acme", "limits.delete"),
    "logs rotate": ("--config logs.yaml", "logs.rotate"),
    "logs search": ("", "logs.search"),
    "logs show": ("EVENT --config logs.yaml", "logs.show"),
}
"""Arguments for every command that writes or looks, and what the log calls it."""

READS = {
    *("keys list", "keys show", "accounts list", "accounts show", "limits list", "limits show"),
    *("config check", "config show", "config schema", "usage", "audit", "doctor"),
    *("serve", "dev"),
}

CONFIG = f"""\
upstreams:
  gpu: {{kind: sglang, url: http://127.0.0.1:1, discover: true}}
prompt_logs:
  keys: {json.dumps(BOTH.keys)}
  active: new
"""

ME = f"cli:{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"


def commands(command: Any, name: str = "") -> Iterator[str]:
    """The names of all commands."""
    if hasattr(command, "commands"):
        for part, inner in command.commands.items():
            yield from commands(inner, f"{name} {part}".strip())
    else:
        yield name


def test_every_command_that_writes_is_in_it(
    with_url: Forebay, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set(commands(typer.main.get_command(app)))
    assert names == set(WRITES) | READS
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    with open("logs.yaml", "w") as file:
        file.write(CONFIG)
    one = log(key=("old", OLD))
    run_apart(lambda: insert(database_url, one))
    key = with_url("keys", "create", "--name", "x", "--account", "acme", "--json").json()["id"]
    places = {"KEY": key, "EVENT": str(one["event_id"])}
    for name, (text, action) in sorted(WRITES.items(), key=lambda w: w[0] == "keys revoke"):
        if name == "limits clear":
            with_url("limits", "set", "account:acme", "--rpm", "7")
        elif name == "limits set":
            with_url("limits", "clear", "account:acme")
        arguments = [places.get(word, word) for word in text.split()]
        result = with_url(*name.split(), *arguments)
        assert result.code == 0, result.err
        (newest,) = with_url("audit", "--limit", "1", "--json").json()
        assert (newest["action"], newest["actor"]) == (action, ME), name


def test_for_people_and_for_programs(with_url: Forebay) -> None:
    with_url("accounts", "create", "acme", "--weight", "2")
    with_url("accounts", "set", "acme", "--weight", "3", "--name", "Acme Inc.")
    change, made = with_url("audit", "--subject", "account:acme", "--json").json()
    assert made["before"] is None
    assert (change["before"]["weight"], change["after"]["weight"]) == (2, 3)
    table = with_url("audit", "--since", "1h", "--actor", "cli").out
    assert "account.change" in table
    assert "name acme -> Acme Inc., weight 2 -> 3" in table
    assert with_url("audit", "--actor", "key", "--json").json() == []
    assert with_url("audit", "--since", "soon").code == 2
    assert with_url("audit", "--limit", "0").code == 2

"""Commands that write are in the audit log, and `forebay audit` shows it."""

import json
import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from forebay.cli.main import app
from forebay.store import Database

from tests.cli.test_commands import Forebay, elsewhere, forebay, with_url
from tests.support.databases import run_apart
from tests.support.invoices import Event, Ledger, utc
from tests.support.prompt_logs import BOTH, OLD, insert, log

__all__ = ["elsewhere", "forebay", "with_url"]

WRITES = {
    "accounts create": ("new", {"account.create"}),
    "accounts set": ("acme --weight 2", {"account.change"}),
    "accounts billing": ("acme --payment-days 14", {"billing.create"}),
    "keys create": ("--name x --account acme", {"key.create"}),
    "keys set": ("KEY --name y", {"key.change"}),
    "keys rotate": ("KEY", {"key.rotate"}),
    "keys revoke": ("KEY", {"key.revoke"}),
    "limits set": ("account:acme --rpm 7", {"limits.create"}),
    "limits clear": ("account:acme", {"limits.delete"}),
    "prices set": ("n --input 1 --output 2", {"price.create"}),
    "prices import": ("prices.csv", {"price.create", "price.change"}),
    "prices end": ("PRICE", {"price.change"}),
    "prices correct": ("PRICE --input 0.5", {"price.create", "price.change"}),
    "seller set": ("--name Forebay", {"seller.create"}),
    "terms add": ("acme fee --amount 10 --from 2025-10", {"term.create"}),
    "terms end": ("1 --to 2025-11", {"term.change"}),
    "invoice rerate": ("--since 2025-10-01 --until 2025-11-01", {"adjustment.create"}),
    "invoice": (
        "--account acme --month 2025-10 --finalize",
        {"invoice.create", "adjustment.change"},
    ),
    "invoice credit": ("INV-000001 --reason Outage --amount 2.50", {"invoice.create"}),
    "logs rotate": ("--config logs.yaml", {"logs.rotate"}),
    "logs search": ("", {"logs.search"}),
    "logs show": ("EVENT --config logs.yaml", {"logs.show"}),
}
"""Arguments for every command that writes or looks, and what the log has of it; each finds what
those before it have left."""

READS = {
    *("keys list", "keys show", "accounts list", "accounts show", "limits list", "limits show"),
    *("prices list", "prices show", "invoice list", "invoice show", "terms list", "seller show"),
    *("config check", "config show", "config schema", "usage", "audit", "doctor", "export"),
    *("serve", "dev", "health"),
    # Where an upstream stands is a matter of the processes that run, not of the database.
    *("upstreams list", "upstreams drain", "upstreams undrain"),
}

UPKEEP = {"rollup", "migrate"}
"""What the gateway does by itself: it changes nothing that people set."""

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
        if name and command.invoke_without_command:
            yield name
        for part, inner in command.commands.items():
            yield from commands(inner, f"{name} {part}".strip())
    else:
        yield name


async def use(url: str) -> int:
    """Let acme use a million tokens in October 2025; returns their price's id."""
    async with await Database.connect(url, max_size=1) as database:
        ledger = Ledger(database)
        await ledger.account("acme")
        rate = await ledger.price("m", input="1", output="2", start=utc(2025, 1, 1))
        await ledger.ship([Event("acme", "m", utc(2025, 10, 5), prompt=10**6, rate=rate)])
        return rate.id


def test_every_command_that_writes_is_in_it(
    with_url: Forebay, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set(commands(typer.main.get_command(app)))
    assert names == set(WRITES) | READS | UPKEEP
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    Path("logs.yaml").write_text(CONFIG)
    Path("prices.csv").write_text("model,input,output\nn,3,4\n")
    one = log(key=("old", OLD))
    run_apart(lambda: insert(database_url, one))
    price = run_apart(lambda: use(database_url))
    key = with_url("keys", "create", "--name", "x", "--account", "acme", "--json").json()["id"]
    places = {"KEY": key, "EVENT": str(one["event_id"]), "PRICE": str(price)}
    last = with_url("audit", "--limit", "1", "--json").json()[0]["id"]
    for name, (text, actions) in WRITES.items():
        arguments = [places.get(word, word) for word in text.split()]
        result = with_url(*name.split(), *arguments)
        assert result.code == 0, result.err
        entries = with_url("audit", "--limit", "10", "--json").json()
        made = [entry for entry in entries if entry["id"] > last]
        assert {entry["action"] for entry in made} == actions, name
        assert {entry["actor"] for entry in made} == {ME}, name
        for entry in made:
            verb = entry["action"].partition(".")[2]
            if not name.startswith("logs "):
                assert (entry["before"] is None) == (verb == "create"), entry
                assert (entry["after"] is None) == (verb == "delete"), entry
                assert entry["before"] != entry["after"], entry
        last = entries[0]["id"]


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

"""The command: what it prints, what it returns, and how it fails."""

import csv
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import asyncpg
import pytest
from forebay import __version__
from forebay.cli import main
from forebay.metering.shipper import Shipper
from forebay.store import Database, parse

from tests.support.databases import run_apart
from tests.support.ledger import DAY_US, NOW_US, Event, Spool, event

CONFIG = """\
upstreams:
  gpu: {kind: sglang, url: http://127.0.0.1:1, api_key: topsecret}
models:
  m: {targets: [{upstream: gpu}]}
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Forebay = Callable[..., Result]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("FOREBAY_", "INFERENCE_", "DATABASE_URL")):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def forebay(capfd: pytest.CaptureFixture[str]) -> Forebay:
    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = main(arguments)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def with_url(forebay: Forebay, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Forebay:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return forebay


def test_version_and_help(forebay: Forebay) -> None:
    assert forebay("--version") == (0, f"forebay {__version__}\n", "")
    text = forebay("--help").out
    for command in ("serve", "dev", "config", "keys", "limits", "accounts", "usage", "doctor"):
        assert re.search(rf"\b{command}\b", text)


def test_it_starts_quickly() -> None:
    def once(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    # Against a bare interpreter, so that a slow machine does not decide.
    bare = statistics.median(once("-c", "import json") for _ in range(3))
    ours = min(once("-m", "forebay.cli", "--version") for _ in range(5))
    assert ours < 0.3 + 3 * bare


def test_key_life(with_url: Forebay) -> None:
    created = with_url(
        "keys", "create", "--name", "shop", "--account", "acme", "--rpm", "60", "--tpm", "1000",
        "--concurrency", "3", "--models", "a, b", "--expires", "90d", "--json",
    ).json()  # fmt: skip
    assert set(created) == {"id", "key"}
    assert parse(created["key"]).id == created["id"]
    (listed,) = with_url("keys", "list", "--json").json()
    shown = with_url("keys", "show", created["id"], "--json").json()
    assert shown == listed
    assert shown["models"] == ["a", "b"]
    assert (shown["rpm"], shown["rpm_burst"]) == (60, 10)
    assert (shown["tpm"], shown["tpm_burst"], shown["concurrency"]) == (1000, 1000, 3)
    assert shown["expires_at"] == pytest.approx(time.time() + 90 * 86_400, abs=120)
    assert "digest" not in shown
    rotated = with_url("keys", "rotate", created["id"], "--overlap", "24h", "--json").json()
    assert rotated["id"] == created["id"]
    assert rotated["key"] != created["key"]
    assert "old secret" in with_url("keys", "show", created["id"]).out
    revoked = with_url("keys", "revoke", created["id"], "--json").json()
    assert revoked == {"id": created["id"], "revoked": True}
    assert with_url("keys", "show", created["id"], "--json").json()["revoked"] is True


def test_keys_for_people(with_url: Forebay) -> None:
    created = with_url("keys", "create", "--name", "shop", "--kind", "admin")
    match = re.fullmatch(r"id   (\w{12})\nkey  (fb-a\w{50})\n", created.out)
    assert match
    assert "not shown again" in created.err
    table = with_url("keys", "list").out
    assert match[1] in table
    assert "shop" in table
    assert match[2] not in table
    shown = with_url("keys", "show", match[1])
    assert "no limit" in shown.out
    assert match[2] not in shown.out
    assert with_url("keys", "list", "--account", "nobody", "--json").json() == []


MISUSE = [
    ("keys create", "--name"),
    ("keys create --name x --rpm 0", "--rpm"),
    ("keys create --name x --rpm-burst 5", "needs --rpm"),
    ("keys create --name x --rps-burst 5", "needs --rps"),
    ("keys create --name x --expires soon", "no duration"),
    ("keys create --name x --budget 25", "no budget"),
    ("keys create --name x --budget 25/week", "no budget"),
    ("keys create --name x --budget 1e3/day", "no budget"),
    ("keys create --name x --priority vip", "--priority"),
    ("keys create --name x --on-store-loss panic", "--on-store-loss"),
    ("keys set x", "at least one change"),
    ("limits set key:x", "at least one limit"),
    ("limits set x --rpm 5", "no key:ID"),
    ("limits set user:x --rpm 5", "no key:ID"),
    ("limits set account:x --model m --rpm 5", "goes with key:ID"),
    ("limits clear model:x colour", "no limit"),
    ("accounts set x", "at least one change"),
    ("keys create --name x --kind root", "--kind"),
    ("usage --by colour", "--by"),
    ("usage --since 0d", "no duration"),
    ("serve --http nowhere", "HOST:PORT"),
    ("dev --grpc 1.2.3.4:99999", "0 to 65535"),
    ("frobnicate", "frobnicate"),
    ("config check --config /nowhere.yaml", "No such file"),
]


@pytest.mark.parametrize(("arguments", "reason"), MISUSE)
def test_misuse_is_one_line_and_code_2(forebay: Forebay, arguments: str, reason: str) -> None:
    result = forebay(*arguments.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("forebay: ")
    assert result.err.count("\n") == 1
    assert reason in result.err


FAILURES = [
    ("keys list", "no database"),
    ("keys list --database-url postgresql://u:s3cret@127.0.0.1:1/x", "cannot reach"),
    ("keys list --database-url mysql://x", "must start with postgresql://"),
]


@pytest.mark.parametrize(("arguments", "reason"), FAILURES)
def test_failure_is_one_line_and_code_1(forebay: Forebay, arguments: str, reason: str) -> None:
    result = forebay(*arguments.split())
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert reason in result.err
    assert "s3cret" not in result.err


def test_unknown_ids_and_values_the_store_refuses(with_url: Forebay) -> None:
    for arguments in (["show", "nosuchkey000"], ["revoke", "x"], ["create", "--name", "a\nb"]):
        result = with_url("keys", *arguments)
        assert result.code == 1
        assert result.err.count("\n") == 1


def test_no_command_shows_help(forebay: Forebay) -> None:
    result = forebay()
    assert result.code == 2
    assert "Usage" in result.out + result.err


def test_the_database_of_a_running_dev_is_found(
    forebay: Forebay, database_url: str, elsewhere: Path
) -> None:
    state = elsewhere / ".forebay" / "dev.json"
    state.parent.mkdir()
    state.write_text(json.dumps({"database_url": database_url, "http": "", "pid": os.getpid()}))
    key_id = forebay("keys", "create", "--name", "x", "--json").json()["id"]
    assert [k["id"] for k in forebay("keys", "list", "--json").json()] == [key_id]
    dead = subprocess.Popen(["true"])
    dead.wait()
    state.write_text(json.dumps({"database_url": database_url, "http": "", "pid": dead.pid}))
    assert "no database" in forebay("keys", "list").err
    state.write_text("not json")
    assert "no database" in forebay("keys", "list").err


def test_config_commands(forebay: Forebay, elsewhere: Path) -> None:
    (elsewhere / "other.yaml").write_text(CONFIG)
    assert forebay("config", "check", "other.yaml").out == "ok: 1 upstreams, 1 models\n"
    assert forebay("config", "check", "-c", "other.yaml", "--json").json()["ok"] is True
    assert forebay("config", "check").code == 2
    (elsewhere / "forebay.yaml").write_text(CONFIG)  # now found by itself
    assert forebay("config", "check").code == 0
    shown = forebay("config", "show", "--json").json()
    assert shown["upstreams"]["gpu"]["api_key"] == "***"
    text = forebay("config", "show").out
    assert "topsecret" not in text
    assert "url: http://127.0.0.1:1" in text
    assert "upstreams" in json.dumps(forebay("config", "schema").json())
    (elsewhere / "forebay.yaml").write_text(CONFIG.replace("kind", "knid"))
    result = forebay("config", "check")
    assert result.code == 2
    assert result.err.startswith("forebay: forebay.yaml:2: upstreams.gpu.knid: unknown field")


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        ("['ok', '(']", "forebay.yaml:6: prompt_logs.patterns[1]: unclosed group"),
        ("['(?<=a)b']", "forebay.yaml:6: prompt_logs.patterns[0]: look-around"),
        ("['a*']", "forebay.yaml:6: prompt_logs.patterns[0]: it matches nothing at all"),
        ("['(?:\\pL{1000}){1000}']", "forebay.yaml:6: prompt_logs.patterns[0]: too large"),
    ],
)
@pytest.mark.parametrize("command", [("config", "check"), ("serve",), ("serve", "--workers", "2")])
def test_a_pattern_that_will_not_do_is_named(
    with_url: Forebay, elsewhere: Path, command: tuple[str, ...], patterns: str, told: str
) -> None:
    section = f"prompt_logs:\n  patterns: {patterns}\n"
    (elsewhere / "forebay.yaml").write_text(CONFIG + section)
    result = with_url(*command)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"forebay: {told}")
    assert len(result.err.splitlines()) == 1


def ship(url: str, *events: Event) -> None:
    """Write events as a gateway does."""

    async def run() -> None:
        async with await Database.connect(url, max_size=1) as database:
            spool = Spool()
            spool.events = list(events)
            shipper = Shipper(database, spool)
            assert await shipper.flush(10)
            await shipper.stop()

    run_apart(run)


def now_us() -> int:
    return time.time_ns() // 1000


def test_usage(with_url: Forebay, database_url: str) -> None:
    assert with_url("usage", "--json").json() == []
    ship(
        database_url,
        event(now_us(), account="acme", model_served="m", ttft_ms=None, cost_pico=1),
        event(now_us(), account="other", model_served="m"),
    )
    (row,) = with_url("usage", "--by", "model", "--format", "json").json()
    assert (row["group"], row["requests"], row["prompt_tokens"]) == ("m", 2, 20)
    mine = ("--account", "acme")
    (row,) = csv.DictReader(
        io.StringIO(with_url("usage", "--by", "account", "--format", "csv", *mine).out)
    )
    assert (row["group"], row["completion_tokens"], row["ttft_ms_p50"]) == ("acme", "5", "")
    assert row["cost"] == "0.000000000001"
    header, line = with_url("usage", "--by", "day", "--since", "24h", *mine).out.splitlines()
    assert header.split()[:2] == ["DAY", "REQUESTS"]
    assert line.split()[1:6] == ["1", "0", "10", "2", "1"]


def test_rollup(with_url: Forebay, database_url: str, elsewhere: Path) -> None:
    ship(database_url, event(), event())
    done = with_url("rollup", "--json").json()
    assert done["recount"] == {"days": 1, "differences": 0, "differing": []}
    assert done["partitions"] == {"partitions": ["2023-11"]}
    assert with_url("rollup", "--json").json()["recount"]["days"] == 0

    async def damage() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE usage_daily SET requests = 3")
        await connection.close()

    run_apart(damage)
    found = with_url("rollup", "--since", "9000d")
    assert found.code == 3
    assert "1 sums replaced" in found.out
    assert "2023-11-14 differed" in found.out
    assert with_url("rollup", "--since", "9000d").code == 0
    kept = CONFIG + "retention: {usage_days: 30}\n"
    (elsewhere / "forebay.yaml").write_text(kept)
    assert with_url("rollup", "--json").json()["retention"]["dropped"] == ["2023-11"]
    # The sums of what was dropped stay, whatever is recounted.
    assert with_url("rollup", "--since", "9000d").code == 0
    (row,) = with_url("usage", "--since", "9000d", "--json").json()
    assert row["requests"] == 2


def test_export(with_url: Forebay, database_url: str, elsewhere: Path) -> None:
    ship(database_url, event(), event(account="acme"), event(NOW_US + DAY_US))
    day = ("--since", "2023-11-14", "--until", "2023-11-15T00:00Z")
    rows = list(csv.DictReader(io.StringIO(with_url("export", "usage", *day).out)))
    assert [row["account"] for row in rows] == ["default", "acme"]
    (row,) = csv.DictReader(
        io.StringIO(with_url("export", "rollups", *day, "--account", "acme").out)
    )
    assert (row["hour"], row["cost"]) == ("2023-11-14T22:00:00Z", "1.250000000001")
    lines = with_url("export", "usage", *day, "--format", "openmeter").out.splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["default", "acme"]
    done = with_url("export", "usage", "--since", "9000d", "--format", "stripe", "--out", "f")
    assert done.out == "3 rows in f\n"
    assert len((elsewhere / "f").read_text().splitlines()) == 3 * 6
    for arguments, reason in (
        (("usage", "--since", "yesterday"), "'yesterday' is neither a time"),
        (("usage", "--since", "1h", "--until", "2h"), "--since is after --until"),
        (("usage", "--since", "1h", "--format", "parquet"), "Parquet needs --out"),
        (("usage",), "--since"),
        (("all", "--since", "1h"), "'all'"),
    ):
        refused = with_url("export", *arguments)
        assert (refused.code, refused.out) == (2, "")
        assert reason in refused.err
        assert len(refused.err.splitlines()) == 1
    assert with_url("export", "usage", "--since", "1h", "--out", "no/f").code == 1
    assert sorted(path.name for path in elsewhere.iterdir()) == ["f"]


class Engine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"object": "list", "data": [{"id": "m"}]}' if self.path == "/v1/models" else b""
        self.send_response(200 if body or self.path == "/ready" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_doctor(
    with_url: Forebay, engine: str, monkeypatch: pytest.MonkeyPatch, empty_database_url: str
) -> None:
    monkeypatch.setenv("INFERENCE_URL", f"{engine}/v1")
    well = with_url("doctor")
    assert well.code == 0, well.out
    assert [line.split()[:2] for line in well.out.splitlines()] == [
        ["ok", "configuration"],
        ["ok", "database"],
        ["ok", "ledger"],
        ["ok", "upstream"],
    ]
    assert "PostgreSQL 18" in well.out
    monkeypatch.setenv("INFERENCE_URL", "http://127.0.0.1:1")
    ill = with_url("doctor", "--json", "--database-url", empty_database_url)
    assert ill.code == 1
    assert [finding["ok"] for finding in json.loads(ill.out)] == [True, False, False]
    monkeypatch.delenv("INFERENCE_URL")
    monkeypatch.delenv("DATABASE_URL")
    bare = with_url("doctor")
    assert bare.code == 1
    assert "set INFERENCE_URL" in bare.out
    assert "set DATABASE_URL" in bare.out

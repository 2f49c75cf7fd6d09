"""Prompt logs of a running gateway: from a client's words to `forebay logs show`, redacted."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from forebay.store import EmbeddedPostgres

from tests.limits_e2e.conftest import new_database
from tests.support.admin import Admin
from tests.support.databases import run_apart
from tests.support.processes import Gateway, Key
from tests.support.prompt_logs import BOTH
from tests.support.upstream import Connection, Received, ScriptedUpstream, delta, finish, usage
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, Client, chat, request

API_KEY = "sk-proj-aBcDeFgHiJkLmNoPqRsTuVwX"
EMAIL = "ada.lovelace@example.com"
CARD = "4111 1111 1111 1111"
CASE = "CASE-314159"
SECRETS = (API_KEY, EMAIL, CARD, CASE)
SAID = "the sluice gate is open"
ASKED = f"{SAID}; {API_KEY}, {EMAIL}, {CARD}, {CASE}"
LEFT = f"{SAID}; [redacted:key], [redacted:email], [redacted:card], [redacted:pattern]"
HOLDS_S = 1.0
"""Seconds within which a change holds."""


def config(engine: ScriptedUpstream, spool: Path) -> dict[str, Any]:
    return {
        "upstreams": {"gpu": {"kind": "sglang", "url": engine.url}},
        "models": {"tiny": {"targets": [{"upstream": "gpu"}]}},
        "prompt_logs": {
            "keys": BOTH.keys,
            "active": "new",
            "patterns": ["CASE-[0-9]{6}"],
        },
        "spool": {"dir": str(spool)},
    }


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedUpstream]:
    """An engine that says what it is asked."""
    engine = ScriptedUpstream()
    engine.start()
    yield engine
    engine.stop()
    assert not engine.failures, engine.failures


@pytest.fixture(scope="module")
def running(
    postgres: EmbeddedPostgres, engine: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("prompt-logs")
    url = new_database(postgres, "prompt_logs")
    gateway = Gateway(folder, config(engine, folder / "spool"), url)
    gateway.start()
    until(lambda: gateway.health()["checks"]["upstream:gpu"] == "ok", "the engine")
    yield gateway
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()
    for secret in (API_KEY, EMAIL, CARD):
        assert secret not in gateway.log()


@pytest.fixture(scope="module")
def admin(running: Gateway) -> Admin:
    admin = Admin(running)
    admin.send("POST", "/accounts", {"id": "acme"})
    return admin


@pytest.fixture(autouse=True)
def echoing(engine: ScriptedUpstream) -> None:
    engine.reset()
    engine.script = echo


def asked(received: Received) -> str:
    text: str = received.json()["messages"][0]["content"]
    return text


def echo(connection: Connection, received: Received) -> None:
    """Answer with what was asked; in a stream three characters an event, so that no secret is in
    one piece."""
    text = asked(received)
    if not received.json().get("stream"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "tiny"}
        connection.json({**whole, "choices": [choice], "usage": usage(9, 9)})
        return
    connection.begin()
    for start in range(0, len(text), 3):
        connection.event(delta(text[start : start + 3]))
    connection.event(finish())
    connection.event("[DONE]")
    connection.end()


def ask(gateway: Gateway, key: Key, content: str = ASKED, **fields: Any) -> Answer:
    return gateway.call(CHAT, chat(content=content, **fields), key=key.secret)


def id_of(answer: Answer) -> str:
    found = answer.header("x-request-id")
    assert found is not None
    return found


def forebay(gateway: Gateway, *arguments: str) -> Any:
    """What `forebay logs` prints as JSON."""
    command = [sys.executable, "-m", "forebay.cli", "logs", *arguments, "--json"]
    command += ["--database-url", gateway.database_url]
    command += ["--config", str(gateway.folder / "gateway.yaml")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)


def rows(gateway: Gateway, request_id: str | None = None) -> list[dict[str, Any]]:
    """What the table has."""
    query = "SELECT * FROM prompt_logs WHERE $1::text IS NULL OR request_id = $1"

    async def run() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(gateway.database_url)
        try:
            return [dict(row) for row in await connection.fetch(query, request_id)]
        finally:
            await connection.close()

    return run_apart(run)


def logged(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The one row of a request, once it is there."""
    until(lambda: bool(rows(gateway, request_id)), "the log", timeout_s=10.0)
    (row,) = rows(gateway, request_id)
    return row


def shown(admin: Admin, request_id: str) -> dict[str, Any]:
    """A request's log with its texts: the command's and the admin API's, which are the same."""
    row = logged(admin.gateway, request_id)
    found = forebay(admin.gateway, "search", "--request-id", request_id)
    assert admin.send("GET", f"/logs?request_id={request_id}")["data"] == found
    assert [log["event_id"] for log in found] == [str(row["event_id"])]
    log: dict[str, Any] = forebay(admin.gateway, "show", found[0]["event_id"])
    assert admin.send("GET", f"/logs/{found[0]['event_id']}") == log
    for secret in SECRETS:
        assert secret not in json.dumps(log)
    return log


def in_time(admin: Admin, path: str, **settings: Any) -> None:
    """Change a setting, and wait as long as it may take to hold."""
    changed = time.monotonic()
    admin.send("PATCH", path, settings)
    time.sleep(max(0.0, changed + HOLDS_S - time.monotonic()))


@pytest.fixture(scope="module")
def full(admin: Admin) -> Key:
    """A key of the account all of whose requests are logged."""
    key = admin.make(account="acme")
    in_time(admin, "/accounts/acme", log_level="full")
    return key


def test_a_whole_answer(running: Gateway, admin: Admin, full: Key) -> None:
    answer = ask(running, full)
    assert answer.json()["choices"][0]["message"]["content"] == ASKED, "clients get all of it"
    log = shown(admin, id_of(answer))
    assert (log["account"], log["key_id"], log["model"]) == ("acme", full.id, "tiny")
    assert (log["level"], log["status"], log["enc_key"]) == ("full", 200, "new")
    assert json.loads(log["request"])["messages"] == [{"role": "user", "content": LEFT}]
    assert json.loads(log["answer"])["choices"][0]["message"]["content"] == LEFT
    assert log["redactions"] == 2 * len(SECRETS)
    assert log["answer_bytes"] == len(answer.body)
    (event,) = running.usage(1, request_id=id_of(answer))
    assert str(event["event_id"]) == log["event_id"]
    (found,) = forebay(running, "search", "--contains", "SLUICE GATE", "--key", full.id)
    assert found["event_id"] == log["event_id"]


def test_a_stream(running: Gateway, admin: Admin, full: Key) -> None:
    answer = ask(running, full, stream=True)
    assert answer.data()[-1] == "[DONE]"
    log = shown(admin, id_of(answer))
    assert log["answer"] == LEFT
    assert json.loads(log["request"])["stream"] is True
    assert log["answer_bytes"] == len(answer.body)


def test_an_error(running: Gateway, admin: Admin, full: Key, engine: ScriptedUpstream) -> None:
    engine.script = lambda connection, received: connection.json(
        {"object": "error", "message": asked(received), "type": "BadRequest", "code": 400}, 400
    )
    answer = ask(running, full)
    assert answer.status == 400
    log = shown(admin, id_of(answer))
    assert log["status"] == 400
    assert SAID in log["request"]
    assert log["answer_bytes"] == len(answer.body)


def test_the_gateways_own_log_quotes_nobody(
    running: Gateway, full: Key, engine: ScriptedUpstream
) -> None:
    def told(status: int) -> str:
        """The line on an engine that answers so, and quotes what it was asked."""
        engine.script = lambda connection, received: connection.json(
            {"error": {"message": asked(received)}}, status
        )
        request_id = id_of(ask(running, full))
        until(lambda: request_id in running.log(), "the failure in the gateway's log")
        (line,) = [line for line in running.log().splitlines() if request_id in line]
        assert f"upstream status {status}" in json.loads(line)["cause"]
        return line

    for status in (400, 413):
        assert SAID not in told(status)
    # What an engine says of its own failure is there, for whoever runs it, without secrets.
    line = told(500)
    assert SAID in line
    assert not any(secret in line for secret in (API_KEY, EMAIL, CARD))


def test_a_client_that_hangs_up(
    running: Gateway, admin: Admin, full: Key, engine: ScriptedUpstream
) -> None:
    def begin(connection: Connection, received: Received) -> None:
        connection.begin()
        connection.event(delta(f"{asked(received)} and"))
        connection.hung_up()
        connection.close()

    engine.script = begin
    name = "hung-up"
    with Client(running.port) as client:
        body = chat(content=ASKED, stream=True)
        client.send(request(CHAT, body, key=full.secret, headers=[("x-request-id", name)]))
        answer = client.head()
        next(client.body(answer))
    log = shown(admin, name)
    assert log["answer"] == f"{LEFT} and"
    assert SAID in log["request"]


def test_metadata_and_nothing(running: Gateway, admin: Admin, full: Key) -> None:
    metadata, off = admin.make(account="acme"), admin.make(account="acme")
    none, stranger = admin.make(account="acme"), admin.make(account="other")
    admin.send("PATCH", f"/keys/{metadata.id}", {"log_level": "metadata"})
    admin.send("PATCH", f"/keys/{off.id}", {"log_level": "off"})
    in_time(admin, f"/keys/{none.id}", log_sample=0)
    silent = [id_of(ask(running, key)) for key in (off, none, stranger) for _ in range(3)]
    log = shown(admin, id_of(ask(running, metadata)))
    assert (log["level"], log["status"], log["model"]) == ("metadata", 200, "tiny")
    assert log["request_bytes"] > len(ASKED)
    assert (log["request"], log["answer"], log["enc_key"]) == (None, None, None)
    logged(running, id_of(ask(running, full)))
    assert not set(silent) & {row["request_id"] for row in rows(running)}


def test_a_change_holds_within_a_second(running: Gateway, admin: Admin) -> None:
    key = admin.make(account="acme")
    in_time(admin, f"/keys/{key.id}", log_level="off")
    before = id_of(ask(running, key))
    in_time(admin, f"/keys/{key.id}", log_level="full")
    assert logged(running, id_of(ask(running, key)))["level"] == "full"
    in_time(admin, f"/keys/{key.id}", log_level="metadata")
    assert logged(running, id_of(ask(running, key)))["level"] == "metadata"
    in_time(admin, "/accounts/acme", log_sample=0)
    unsampled = id_of(ask(running, key))
    in_time(admin, "/accounts/acme", log_sample=1)
    assert logged(running, id_of(ask(running, key)))["level"] == "metadata"
    assert not {before, unsampled} & {row["request_id"] for row in rows(running)}


def test_the_table_has_no_plain_text(running: Gateway, full: Key) -> None:
    logged(running, id_of(ask(running, full)))
    found = rows(running)
    assert any(row["level"] == "full" for row in found)
    for row in found:
        whole = b"\0".join(
            value if isinstance(value, bytes) else str(value).encode() for value in row.values()
        )
        for text in (*SECRETS, SAID, "redacted", "messages"):
            assert text.encode() not in whole


def kept(gateway: Gateway) -> float:
    """Logs that have got into the spool."""
    return gateway.metric("forebay_prompt_logs_total", level="full")


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_killed_gateway_leaves_its_logs_in_the_spool(
    postgres: EmbeddedPostgres, engine: ScriptedUpstream, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    url = new_database(postgres, "prompt_logs_killed")
    gateway = Gateway(tmp_path / "first", config(engine, spool), url)
    gateway.start()
    admin = Admin(gateway)
    admin.send("POST", "/accounts", {"id": "acme", "log_level": "full"})
    key = admin.make(account="acme")

    async def kill() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                # Nothing gets into the table while the gateway lives.
                await connection.execute("LOCK TABLE prompt_logs IN ACCESS EXCLUSIVE MODE")
                sent = [
                    id_of(await asyncio.to_thread(ask, gateway, key, stream=stream))
                    for stream in (False, True)
                ]
                counted = ("forebay_prompt_logs_total", {"level": "full"})
                await asyncio.to_thread(
                    until,
                    lambda: gateway.metric(counted[0], **counted[1]) == 2,
                    "both in the spool",
                )
                assert gateway.popen is not None
                gateway.popen.kill()
                gateway.popen.wait()
        finally:
            await connection.close()
        return sent

    sent = run_apart(kill)
    assert rows(gateway) == []
    on_disk = files(spool)
    assert on_disk
    for text in (*SECRETS, SAID):
        assert text.encode() not in on_disk
    again = Gateway(tmp_path / "second", config(engine, spool), url)
    again.start()
    try:
        until(lambda: len(rows(again)) == 2, "the logs", timeout_s=10.0)
        assert {row["request_id"] for row in rows(again)} == set(sent)
        admin = Admin(again)
        log, stream = (shown(admin, request_id) for request_id in sent)
        assert json.loads(log["answer"])["choices"][0]["message"]["content"] == LEFT
        assert stream["answer"] == LEFT
    finally:
        assert again.stop() == 0, again.log()

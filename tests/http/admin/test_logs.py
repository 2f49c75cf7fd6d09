"""Prompt logs by the admin API: who is logged, and looking into what was."""

import time
from typing import Any

import msgspec
import pytest
from forebay.config.schema import PromptLogs
from forebay.store import Database

from tests.http.admin.conftest import CONFIG, Admin, MakeAdmin
from tests.support.prompt_logs import OLD, insert, log


async def test_search_and_show(admin: Admin, database: Database) -> None:
    now = time.time()
    one = log(request_id="one", at=now - 5, request=b"what is a sluice?", key=("old", OLD))
    await insert(database.url, one, log(request_id="two", at=now), log(account="other", at=now - 9))
    page = await admin.get("/logs?account=acme&limit=1")
    assert [entry["request_id"] for entry in page["data"]] == ["two"]
    assert "request" not in page["data"][0]
    page = await admin.get(f"/logs?account=acme&limit=1&after={page['next']}")
    assert [entry["request_id"] for entry in page["data"]] == ["one"]
    assert page["next"] is None
    assert (await admin.get(f"/logs?since={now + 1}"))["data"] == []
    page = await admin.get("/logs", params={"contains": "SLUICE"})
    assert [entry["event_id"] for entry in page["data"]] == [str(one["event_id"])]
    shown = await admin.get(f"/logs/{one['event_id']}")
    assert shown["request"] == "what is a sluice?"
    looks = (await admin.get("/audit?subject=log"))["data"]
    assert [look["subject_id"] for look in looks] == [str(one["event_id"])]
    assert len((await admin.get("/audit?subject=logs"))["data"]) == 4


async def test_what_cannot_be_shown(admin: Admin, database: Database) -> None:
    lost, strange = log(key=("lost", OLD)), log(key=("new", OLD))
    await insert(database.url, lost, strange)
    assert await admin.refused("GET", "/logs/nothing") == (404, "log_not_found", None)
    refusal = await admin.refused("GET", f"/logs/{lost['event_id']}")
    assert refusal == (400, "log_key_missing", None)
    refusal = await admin.refused("GET", f"/logs/{strange['event_id']}")
    assert refusal == (400, "log_unreadable", None)
    for query, code, param in (
        ("limit=0", "invalid_value", "limit"),
        ("status=x", "invalid_type", "status"),
        ("after=x", "invalid_value", "after"),
        ("since=5&until=4", "invalid_value", "until"),
    ):
        assert await admin.refused("GET", f"/logs?{query}") == (400, code, param)


async def test_rotate(admin: Admin, database: Database) -> None:
    old = log(key=("old", OLD))
    await insert(database.url, old, log(key=("lost", OLD)))
    step = await admin.send("POST", "/logs/rotate")
    assert step == {"rotated": 1, "unreadable": {"lost": 1}, "next": None}
    assert (await admin.get(f"/logs/{old['event_id']}"))["enc_key"] == "new"
    assert (await admin.send("POST", "/logs/rotate", {"after": None}))["rotated"] == 0


async def test_who_is_logged(admin: Admin) -> None:
    made = await admin.send("POST", "/accounts", {"id": "acme"}, status=201)
    assert (made["log_level"], made["log_sample"]) == ("off", 1.0)
    change = {"log_level": "full", "log_sample": 0.1}
    changed = await admin.send("PATCH", "/accounts/acme", change)
    assert (changed["log_level"], changed["log_sample"]) == ("full", 0.1)
    body: dict[str, Any] = {"name": "x", "account": "acme", "log_level": "off"}
    key = await admin.send("POST", "/keys", body, status=201)
    assert (key["log_level"], key["log_sample"]) == ("off", None)
    path = f"/keys/{key['id']}"
    changed = await admin.send("PATCH", path, {"log_level": "metadata", "log_sample": 0})
    assert (changed["log_level"], changed["log_sample"]) == ("metadata", 0.0)
    changed = await admin.send("PATCH", path, {"name": "y"})
    assert (changed["log_level"], changed["log_sample"]) == ("metadata", 0.0)
    changed = await admin.send("PATCH", path, {"log_level": None, "log_sample": None})
    assert (changed["log_level"], changed["log_sample"]) == (None, None)
    for where in ("/accounts/acme", path):
        assert (await admin.refused("PATCH", where, {"log_level": "all"}))[2] == "log_level"
        assert (await admin.refused("PATCH", where, {"log_sample": 1.5}))[2] == "log_sample"


@pytest.mark.parametrize("full", [True, False])
async def test_no_contents_without_a_key_to_encrypt_with(
    make_admin: MakeAdmin, database: Database, full: bool
) -> None:
    admin = await make_admin(database)
    await admin.send("POST", "/accounts", {"id": "acme"}, status=201)
    key = await admin.send("POST", "/keys", {"name": "x"}, status=201)
    admin.gateway.config = msgspec.structs.replace(CONFIG, prompt_logs=PromptLogs())
    admin = await make_admin(database)
    body = {"log_level": "full" if full else "metadata"}
    for method, path, more in (
        ("POST", "/accounts", {"id": "b"}),
        ("PATCH", "/accounts/acme", {}),
        ("POST", "/keys", {"name": "y"}),
        ("PATCH", f"/keys/{key['id']}", {}),
    ):
        answer = await admin.call(method, path, {**body, **more})
        assert (answer.status_code == 400) is full
        if full:
            error = answer.json()["error"]
            assert error["param"] == "log_level"
            assert "prompt_logs.keys and prompt_logs.active" in error["message"]

"""The audit log as the admin API writes and shows it."""

import re
from typing import Any

from forebay.http.admin.table import OPERATIONS
from forebay.store import Database

from tests.http.admin.conftest import Admin, MakeAdmin
from tests.support.prompt_logs import OLD, insert, log

PRICE = {"model": "known/model", "input": "1", "output": "2"}
WRITES: dict[tuple[str, str], tuple[Any, str]] = {
    ("POST", "/keys"): ({"name": "x", "account": "acme"}, "key.create"),
    ("PATCH", "/keys/{key_id}"): ({"rpm": 7}, "key.change"),
    ("POST", "/keys/{key_id}/rotate"): (None, "key.rotate"),
    ("POST", "/keys/{key_id}/revoke"): (None, "key.revoke"),
    ("PUT", "/keys/{key_id}/models/{model}/limits"): ({"rpm": 7}, "limits.create"),
    ("DELETE", "/keys/{key_id}/models/{model}/limits"): (None, "limits.delete"),
    ("POST", "/accounts"): ({"id": "new"}, "account.create"),
    ("PATCH", "/accounts/{account}"): ({"weight": 2}, "account.change"),
    ("PUT", "/accounts/{account}/limits"): ({"rpm": 7}, "limits.create"),
    ("DELETE", "/accounts/{account}/limits"): (None, "limits.delete"),
    ("PUT", "/models/{model}/limits"): ({"rpm": 7}, "limits.create"),
    ("DELETE", "/models/{model}/limits"): (None, "limits.delete"),
    ("POST", "/logs/rotate"): (None, "logs.rotate"),
    ("POST", "/prices"): ({**PRICE, "model": "one"}, "price.create"),
    ("POST", "/prices/import"): ({"prices": [{**PRICE, "model": "two"}]}, "price.create"),
    ("POST", "/prices/{price_id}/end"): (None, "price.change"),
    ("POST", "/prices/{price_id}/correct"): ({"input": "2"}, "price.create"),
}
"""A body for every operation that writes, and what the log calls it."""


async def test_every_operation_that_writes_is_in_it(admin: Admin, database: Database) -> None:
    writing = [operation for operation in OPERATIONS if operation.method != "GET"]
    assert {(operation.method, operation.path) for operation in writing} == set(WRITES)
    await insert(database.url, log(key=("old", OLD)))
    key = await admin.send("POST", "/keys", {"name": "x", "account": "acme"}, status=201)
    price = await admin.send("POST", "/prices", PRICE, status=201)
    (own,) = (await admin.get("/keys?account=ops"))["data"]
    # What leaves nothing to write to comes last.
    ordered = sorted(
        writing, key=lambda operation: operation.path.endswith(("/revoke", "/correct"))
    )
    for number, operation in enumerate(ordered):
        body, action = WRITES[operation.method, operation.path]
        names = {"key_id": key["id"], "account": "acme", "price_id": price["id"]}
        path = operation.path.format(**names, model="known/model")
        # As the core's listener passes it on.
        asked = {"x-request-id": f"walk-{number}", "x-forebay-peer": "2001:db8::7"}
        answer = await admin.call(operation.method, path, body, headers=asked)
        assert answer.status_code == operation.status, answer.text
        assert answer.headers["x-request-id"] == f"walk-{number}"
        newest = (await admin.get("/audit?limit=1"))["data"][0]
        assert newest["action"] == action, path
        assert newest["actor"] == f"key:{own['id']}"
        assert newest["request_id"] == f"walk-{number}"
        assert newest["remote"] == "2001:db8::7"


async def test_what_is_refused_is_not_in_it(admin: Admin) -> None:
    known = await admin.get("/audit")
    await admin.refused("PATCH", "/accounts/nobody", {"weight": 2})
    await admin.refused("POST", "/accounts", {"id": "a/b"})
    assert await admin.get("/audit") == known


async def test_requests_have_an_id(admin: Admin) -> None:
    answer = await admin.call("GET", "/keys")
    assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
    answer = await admin.call("GET", "/keys", headers={"x-request-id": "not kept"})
    assert answer.headers["x-request-id"].startswith("req_")
    answer = await admin.call("GET", "/nothing", headers={"x-request-id": "kept"})
    assert answer.headers["x-request-id"] == "kept"
    answer = await admin.call("DELETE", "/models/m/limits", headers={"x-request-id": "kept"})
    assert answer.headers["x-request-id"] == "kept"
    answer = await admin.client.get("/admin/v1/keys", headers={"x-request-id": "stranger"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (401, "stranger")


async def test_listing(admin: Admin) -> None:
    for name in ("one", "two", "three"):
        await admin.send("POST", "/accounts", {"id": name, "weight": 0.5}, status=201)
    await admin.send("PATCH", "/accounts/two", {"name": "zwei"})
    (change, made) = (await admin.get("/audit?subject=account:two"))["data"]
    assert (made["before"], made["after"]["weight"]) == (None, 0.5)
    assert (change["before"]["name"], change["after"]["name"]) == ("two", "zwei")
    seen: list[str] = []
    after = ""
    while True:
        page = await admin.get(f"/audit?subject=account&actor=key&limit=2{after}")
        seen += [entry["subject_id"] for entry in page["data"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == ["two", "three", "two", "one"]
    assert (await admin.get("/audit?since_s=0.000001"))["data"] == []
    for query, param in (("since_s=0", "since_s"), ("after=0", "after"), ("actor=", "actor")):
        assert await admin.refused("GET", f"/audit?{query}") == (400, "invalid_value", param)
    assert await admin.refused("GET", "/audit?after=x") == (400, "invalid_type", "after")


async def test_the_database_away(make_admin: MakeAdmin) -> None:
    admin = await make_admin(None)
    assert await admin.refused("GET", "/audit") == (503, "service_unavailable", None)

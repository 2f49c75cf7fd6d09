"""The audit log as the admin API writes and shows it."""

import re
from typing import Any

from forebay.http.admin.table import OPERATIONS
from forebay.store import Database

from tests.http.admin.conftest import Admin, MakeAdmin
from tests.support.invoices import Event, Ledger, utc
from tests.support.prompt_logs import OLD, insert, log

PRICE = {"model": "known/model", "input": "1", "output": "2"}
_YEAR_AGO = utc(2025, 1, 1)
_OCTOBER = {"since": "2025-10-01T00:00:00Z", "until": "2025-11-01T00:00:00Z"}
_FEE = {"kind": "fee", "description": "Plan", "amount": "10", "starts": "2025-10-01"}

WRITES: dict[tuple[str, str], tuple[Any, set[str]]] = {
    ("POST", "/keys"): ({"name": "x", "account": "acme"}, {"key.create"}),
    ("PATCH", "/keys/{key_id}"): ({"rpm": 7}, {"key.change"}),
    ("POST", "/keys/{key_id}/rotate"): (None, {"key.rotate"}),
    ("PUT", "/keys/{key_id}/models/{model}/limits"): ({"rpm": 7}, {"limits.create"}),
    ("DELETE", "/keys/{key_id}/models/{model}/limits"): (None, {"limits.delete"}),
    ("POST", "/keys/{key_id}/revoke"): (None, {"key.revoke"}),
    ("POST", "/accounts"): ({"id": "new"}, {"account.create"}),
    ("PATCH", "/accounts/{account}"): ({"weight": 2}, {"account.change"}),
    ("PUT", "/accounts/{account}/limits"): ({"rpm": 7}, {"limits.create"}),
    ("DELETE", "/accounts/{account}/limits"): (None, {"limits.delete"}),
    ("PUT", "/models/{model}/limits"): ({"rpm": 7}, {"limits.create"}),
    ("DELETE", "/models/{model}/limits"): (None, {"limits.delete"}),
    ("POST", "/prices"): ({"model": "n", "input": "1", "output": "2"}, {"price.create"}),
    ("POST", "/prices/import"): (
        {"prices": [{"model": "n", "input": "3", "output": "4"}]},
        {"price.create", "price.change"},
    ),
    ("POST", "/prices/{price_id}/end"): (None, {"price.change"}),
    ("POST", "/prices/{price_id}/correct"): (
        {"input": "0.5"},
        {"price.create", "price.change"},
    ),
    ("PUT", "/seller"): ({"name": "Forebay Ltd"}, {"seller.create"}),
    ("PATCH", "/accounts/{account}/billing"): ({"payment_days": 14}, {"billing.create"}),
    ("POST", "/accounts/{account}/terms"): (_FEE, {"term.create"}),
    ("POST", "/terms/{term}/end"): ({"ends": "2025-11-01"}, {"term.change"}),
    ("POST", "/rerate"): ({"account": "acme", **_OCTOBER}, {"adjustment.create"}),
    ("POST", "/invoices"): (
        {"account": "acme", "month": "2025-10"},
        {"invoice.create", "adjustment.change"},
    ),
    ("POST", "/invoices/{number}/credit"): (
        {"reason": "Outage", "amount": "2.50"},
        {"invoice.create"},
    ),
    ("POST", "/logs/rotate"): (None, {"logs.rotate"}),
}
"""For every operation that writes a body, and what the log has of it; each finds what those before
it have left."""


async def test_every_operation_that_writes_is_in_it(admin: Admin, database: Database) -> None:
    operations = {
        (operation.method, operation.path): operation
        for operation in OPERATIONS
        # Where an upstream stands is a matter of the processes that run, not of the database.
        if operation.method != "GET" and not operation.path.startswith("/upstreams/")
    }
    assert operations.keys() == WRITES.keys()
    await insert(database.url, log(key=("old", OLD)))
    key = await admin.send("POST", "/keys", {"name": "x", "account": "acme"}, status=201)
    (own,) = (await admin.get("/keys?account=ops"))["data"]
    ledger = Ledger(database)
    rate = await ledger.price("m", input="1", output="2", start=_YEAR_AGO)
    await ledger.ship([Event("acme", "m", utc(2025, 10, 5), prompt=10**6, rate=rate)])
    places = {
        "key_id": key["id"],
        "account": "acme",
        "model": "known/model",
        "price_id": rate.id,
        "term": 1,
        "number": "INV-000001",
    }
    for number, (named, (body, actions)) in enumerate(WRITES.items()):
        method, path = named
        asked = f"walk-{number}"
        headers = {"x-request-id": asked, "x-forebay-peer": "2001:db8::7"}
        answer = await admin.call(method, path.format(**places), body, headers=headers)
        assert answer.status_code == operations[named].status, answer.text
        assert answer.headers["x-request-id"] == asked
        entries = (await admin.get("/audit?limit=10"))["data"]
        made = [entry for entry in entries if entry["request_id"] == asked]
        assert {entry["action"] for entry in made} == actions, path
        for entry in made:
            assert entry["actor"] == f"key:{own['id']}"
            assert entry["remote"] == "2001:db8::7"
            verb = entry["action"].partition(".")[2]
            if named != ("POST", "/logs/rotate"):
                assert (entry["before"] is None) == (verb == "create"), entry
                assert (entry["after"] is None) == (verb == "delete"), entry
                assert entry["before"] != entry["after"], entry


async def test_it_says_what_became_of_money(admin: Admin, database: Database) -> None:
    await admin.send("POST", "/accounts", {"id": "acme"}, status=201)
    ledger = Ledger(database)
    rate = await ledger.price("m", input="1", output="2", start=_YEAR_AGO)
    await ledger.ship([Event("acme", "m", utc(2025, 10, 5), prompt=10**6, rate=rate)])
    await admin.send("POST", f"/prices/{rate.id}/correct", {"input": "0.5"})
    new, old = (await admin.get("/audit?subject=price&limit=2"))["data"]
    assert (new["subject_id"], old["subject_id"]) == (str(new["after"]["id"]), str(rate.id))
    assert (old["before"]["superseded_at"], new["after"]["supersedes"]) == (None, rate.id)
    assert (old["after"]["input"], new["after"]["input"]) == ("1", "0.5")
    await admin.send("POST", "/rerate", {"account": "acme", **_OCTOBER})
    entries = (await admin.get("/audit?subject=account:acme"))["data"]
    adjusted = [e["after"] for e in entries if e["action"] == "adjustment.create"]
    assert {row["token_kind"]: row["amount"] for row in adjusted}["input"] == "-0.5"
    billing = {"taxes": [{"name": "VAT", "rate": "19"}]}
    await admin.send("PATCH", "/accounts/acme/billing", billing)
    await admin.send("PATCH", "/accounts/acme/billing", {"payment_days": 7})
    (change, made) = (await admin.get("/audit?subject=account:acme&limit=2"))["data"]
    assert (change["before"]["payment_days"], change["after"]["payment_days"]) == (30, 7)
    assert made["after"]["taxes"] == [{"name": "VAT", "on": "all", "rate": "19"}]
    final = await admin.send("POST", "/invoices", {"account": "acme", "month": "2025-10"})
    (invoice,) = (await admin.get(f"/audit?subject=invoice:{final['number']}"))["data"]
    assert (invoice["after"]["net"], invoice["after"]["total"]) == ("0.5", "0.6")
    known = await admin.get("/audit")
    await admin.send("POST", "/invoices", {"account": "acme", "month": "2025-10"})
    await admin.send("POST", "/rerate", {"account": "acme", **_OCTOBER})
    assert await admin.get("/audit") == known, "what changes nothing is not in it"


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

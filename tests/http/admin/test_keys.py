"""Keys by the admin API."""

import time
from typing import Any

import pytest
from forebay.store import Database, KeyStore, encode_records, parse

from tests.http.admin.conftest import Admin

LIMITS = {
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


async def test_a_key_from_its_making_to_its_end(admin: Admin, database: Database) -> None:
    made = await admin.send(
        "POST",
        "/keys",
        {
            "name": "shop",
            "account": "acme",
            "models": ["a", "b"],
            "priority": "batch",
            "rps": 5,
            "rpm": 60,
            "budget": "25.00",
            "budget_period": "month",
            "on_store_loss": "deny",
        },
        status=201,
    )
    secret = made.pop("key")
    assert parse(secret).id == made["id"]
    assert made == await admin.get(f"/keys/{made['id']}")
    expected = {
        **LIMITS,
        "kind": "inference",
        "account": "acme",
        "name": "shop",
        "last4": secret[-4:],
        "models": ["a", "b"],
        "priority": "batch",
        "rps": 5,
        "rps_burst": 5,
        "rpm": 60,
        "rpm_burst": 10,
        "budget": "25.00",
        "budget_period": "month",
        "on_store_loss": "deny",
        "per_model": {},
        "revoked": False,
        "expires_at": None,
        "previous_expires_at": None,
        "log_level": None,
        "log_sample": None,
    }
    assert {name: made[name] for name in expected} == expected
    assert set(made) == {*expected, "id", "created_at"}

    changed = await admin.send(
        "PATCH",
        f"/keys/{made['id']}",
        {"rpm": 600, "rps": None, "budget": "1.5", "name": "web", "models": None},
    )
    assert (changed["rpm"], changed["rpm_burst"]) == (600, 100)
    assert (changed["rps"], changed["rps_burst"]) == (None, None)
    assert (changed["budget"], changed["budget_period"]) == ("1.50", "month")
    assert (changed["name"], changed["models"], changed["priority"]) == ("web", None, "batch")

    rotated = await admin.send("POST", f"/keys/{made['id']}/rotate", {"overlap_s": 60})
    assert rotated["key"] != secret
    assert rotated["previous_expires_at"] == pytest.approx(time.time() + 60, abs=30)
    again = await admin.send("POST", f"/keys/{made['id']}/rotate")
    assert again["previous_expires_at"] is None
    ended = await admin.send("POST", f"/keys/{made['id']}/revoke")
    assert ended["revoked"] is True
    assert await admin.send("POST", f"/keys/{made['id']}/revoke") == ended
    for path, body in ((f"/keys/{made['id']}/rotate", None), (f"/keys/{made['id']}", {"rpm": 1})):
        refusal = await admin.refused("PATCH" if body else "POST", path, body)
        assert refusal == (400, "key_revoked", None)
    text = await database.pool.fetchval("SELECT string_agg(k::text, ' ') FROM api_keys k")
    for shown in (secret, rotated["key"], again["key"]):
        assert shown not in text


async def test_expiry(admin: Admin) -> None:
    soon = round(time.time()) + 3600
    made = await admin.send("POST", "/keys", {"name": "x", "expires_at": soon}, status=201)
    assert made["expires_at"] == soon
    path = f"/keys/{made['id']}"
    assert (await admin.send("PATCH", path, {"name": "y"}))["expires_at"] == soon
    assert (await admin.send("PATCH", path, {"expires_at": None}))["expires_at"] is None
    refusal = await admin.refused("PATCH", path, {"expires_at": time.time() - 1})
    assert refusal == (400, "invalid_value", "expires_at")


async def test_pages(admin: Admin, database: Database) -> None:
    store = KeyStore(database)
    made = [(await store.create(name=f"k{i}", account=f"a{i % 2}"))[0].id for i in range(7)]
    (root,) = [k["id"] for k in (await admin.get("/keys?account=ops"))["data"]]
    seen: list[str] = []
    query = "?limit=3"
    for _ in range(3):
        page = await admin.get(f"/keys{query}")
        assert len(page["data"]) <= 3
        seen += [key["id"] for key in page["data"]]
        query = f"?limit=3&after={page['next']}"
    assert page["next"] is None
    assert seen == [root, *made]
    page = await admin.get("/keys?account=a1&limit=2")
    assert [key["id"] for key in page["data"]] == [made[1], made[3]]
    page = await admin.get(f"/keys?account=a1&limit=2&after={page['next']}")
    assert ([key["id"] for key in page["data"]], page["next"]) == ([made[5]], None)
    assert (await admin.get("/keys?account=nobody")) == {"data": [], "next": None}
    assert await admin.refused("GET", "/keys?after=nosuchkey000") == (400, "invalid_value", "after")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_required_parameter", "name"),
    ({"name": ""}, "invalid_value", "name"),
    ({"name": "a\nb"}, "invalid_value", "name"),
    ({"name": 5}, "invalid_type", "name"),
    ({"name": "x", "colour": 1}, "unknown_parameter", "colour"),
    ({"name": "x", "kind": "root"}, "invalid_value", "kind"),
    ({"name": "x", "account": "a/b"}, "invalid_value", "account"),
    ({"name": "x", "rpm": 0}, "invalid_value", "rpm"),
    ({"name": "x", "rpm": 1 << 40}, "invalid_value", "rpm"),
    ({"name": "x", "rpm": 1 << 80}, "invalid_value", "rpm"),
    ({"name": "x", "rpm": "60"}, "invalid_type", "rpm"),
    ({"name": "x", "rpm": 1.5}, "invalid_type", "rpm"),
    ({"name": "x", "rpm_burst": 5}, "invalid_value", "rpm_burst"),
    ({"name": "x", "concurrency": 1 << 31}, "invalid_value", "concurrency"),
    ({"name": "x", "budget": 5, "budget_period": "day"}, "invalid_type", "budget"),
    ({"name": "x", "budget": "5"}, "invalid_value", "budget_period"),
    ({"name": "x", "budget_period": "day"}, "invalid_value", "budget_period"),
    ({"name": "x", "budget": "0", "budget_period": "day"}, "invalid_value", "budget"),
    ({"name": "x", "budget": "1e3", "budget_period": "day"}, "invalid_value", "budget"),
    ({"name": "x", "budget": "10000000.01", "budget_period": "day"}, "invalid_value", "budget"),
    ({"name": "x", "budget": "0.0000000001", "budget_period": "day"}, "invalid_value", "budget"),
    ({"name": "x", "budget": "5", "budget_period": "week"}, "invalid_value", "budget_period"),
    ({"name": "x", "on_store_loss": "panic"}, "invalid_value", "on_store_loss"),
    ({"name": "x", "priority": "vip"}, "invalid_value", "priority"),
    ({"name": "x", "models": []}, "invalid_value", "models"),
    ({"name": "x", "models": ["a", ""]}, "invalid_value", "models"),
    ({"name": "x", "models": ["a", 1]}, "invalid_type", "models"),
    ({"name": "x", "expires_at": 1}, "invalid_value", "expires_at"),
]


@pytest.mark.parametrize(("body", "code", "param"), WRONG, ids=lambda value: str(value)[:60])
async def test_a_bad_field_is_named(
    admin: Admin, body: dict[str, Any], code: str, param: str
) -> None:
    assert await admin.refused("POST", "/keys", body) == (400, code, param)
    if "name" in body:
        path = f"/keys/{(await admin.get('/keys'))['data'][0]['id']}"
        changes = {name: value for name, value in body.items() if value != "x"}
        if not changes.keys() & {"account", "kind"}:
            assert await admin.refused("PATCH", path, changes) == (400, code, param)


async def test_what_cannot_be_changed(admin: Admin) -> None:
    path = f"/keys/{(await admin.get('/keys'))['data'][0]['id']}"
    for name in ("id", "account", "kind", "revoked", "key", "digest"):
        refusal = await admin.refused("PATCH", path, {name: "x"})
        assert refusal == (400, "unknown_parameter", name)


@pytest.mark.parametrize("key_id", ["nosuchkey000", "x", "a%00b", "%F0%9F%8E%88", "a" * 300])
async def test_unknown_keys(admin: Admin, key_id: str) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"rpm": 5}),
        ("POST", "/rotate", None),
        ("POST", "/revoke", None),
        ("GET", "/limits", None),
        ("GET", "/models/m/limits", None),
        ("PUT", "/models/m/limits", {"rpm": 5}),
        ("DELETE", "/models/m/limits", None),
    ):
        refusal = await admin.refused(method, f"/keys/{key_id}{path}", body)
        assert refusal == (404, "key_not_found", None), path


async def test_live_figures(admin: Admin, database: Database) -> None:
    record, _ = await KeyStore(database).create(
        name="x", rpm=60, concurrency=3, budget="5.25", budget_period="total"
    )
    assert (await admin.refused("GET", f"/keys/{record.id}/limits"))[0] == 404
    admin.gateway.core.load_keys(encode_records([record]), False)
    live = (await admin.get(f"/keys/{record.id}/limits"))["data"]
    found = {entry["dimension"]: entry for entry in live}
    assert set(found) == {"requests", "concurrency", "budget"}
    requests, budget = found["requests"], found["budget"]
    assert (requests["scope"], requests["subject"]) == ("key", record.id)
    assert (requests["limit"], requests["burst"], requests["remaining"]) == (60, 10, 10)
    assert (found["concurrency"]["limit"], found["concurrency"]["remaining"]) == (3, 3)
    assert (budget["limit"], budget["remaining"], budget["period"]) == ("5.25", "5.25", "total")

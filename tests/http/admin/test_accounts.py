"""Accounts and limits by the admin API."""

import pytest
from forebay.store import Database, KeyStore

from tests.http.admin.conftest import Admin
from tests.http.admin.test_keys import LIMITS


async def test_accounts(admin: Admin) -> None:
    made = await admin.send("POST", "/accounts", {"id": "acme", "weight": 2.5}, status=201)
    assert made == await admin.get("/accounts/acme")
    assert (made["id"], made["name"], made["weight"], made["keys"]) == ("acme", "acme", 2.5, 0)
    refusal = await admin.refused("POST", "/accounts", {"id": "acme"})
    assert refusal == (400, "account_exists", "id")
    changed = await admin.send("PATCH", "/accounts/acme", {"name": "Acme Ltd"})
    assert (changed["name"], changed["weight"]) == ("Acme Ltd", 2.5)
    await admin.send("POST", "/keys", {"name": "k", "account": "acme"}, status=201)
    page = await admin.get("/accounts?limit=1")
    assert (page["data"][0]["id"], page["data"][0]["keys"], page["next"]) == ("acme", 1, "acme")
    page = await admin.get("/accounts?after=acme")
    assert ([a["id"] for a in page["data"]], page["next"]) == (["ops"], None)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "id"),
        ({"id": "a/b"}, "invalid_value", "id"),
        ({"id": ""}, "invalid_value", "id"),
        ({"id": "a", "weight": 0}, "invalid_value", "weight"),
        ({"id": "a", "weight": 1001}, "invalid_value", "weight"),
        ({"id": "a", "weight": "1"}, "invalid_type", "weight"),
        ({"id": "a", "name": "\0"}, "invalid_value", "name"),
    ],
)
async def test_bad_accounts(admin: Admin, body: dict[str, object], code: str, param: str) -> None:
    assert await admin.refused("POST", "/accounts", body) == (400, code, param)


async def test_unknown_accounts(admin: Admin) -> None:
    for account in ("nobody", "a%00b"):
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "", {"weight": 2}),
            ("GET", "/limits", None),
            ("PUT", "/limits", {"rpm": 5}),
            ("PUT", "/limits", {}),
            ("DELETE", "/limits", None),
        ):
            refusal = await admin.refused(method, f"/accounts/{account}{path}", body)
            assert refusal == (404, "account_not_found", None)


async def test_limits_of_every_subject(admin: Admin, database: Database) -> None:
    record, _ = await KeyStore(database).create(name="x", account="acme")
    for path in (
        "/accounts/acme/limits",
        "/models/llama/limits",
        "/models/meta-llama/Llama-3-8B/limits",
        "/models/meta-llama%2FLlama-3-8B/limits",
        f"/keys/{record.id}/models/llama/limits",
        f"/keys/{record.id}/models/meta-llama/Llama-3-8B/limits",
    ):
        assert await admin.get(path) == LIMITS
        put = await admin.send("PUT", path, {"tpm": 1000, "budget": "7", "budget_period": "day"})
        expected = {
            **LIMITS,
            "tpm": 1000,
            "tpm_burst": 1000,
            "budget": "7.00",
            "budget_period": "day",
        }
        assert put == expected
        assert await admin.get(path) == expected
        # All of them are set: what is not given is gone.
        put = await admin.send("PUT", path, {"rpm": 6, "on_store_loss": "deny"})
        assert put == {**LIMITS, "rpm": 6, "rpm_burst": 1, "on_store_loss": "deny"}
        await admin.send("DELETE", path, status=204)
        assert await admin.get(path) == LIMITS
        await admin.send("DELETE", path, status=204)
        assert await admin.refused("PUT", path, {"rpm": -1}) == (400, "invalid_value", "rpm")
    assert await database.pool.fetchval("SELECT count(*) FROM limits") == 0


async def test_a_key_shows_its_limits_on_models(admin: Admin, database: Database) -> None:
    record, _ = await KeyStore(database).create(name="x")
    await admin.send("PUT", f"/keys/{record.id}/models/llama/limits", {"rpm": 6})
    shown = await admin.get(f"/keys/{record.id}")
    assert shown["per_model"] == {"llama": {**LIMITS, "rpm": 6, "rpm_burst": 1}}
    refusal = await admin.refused("PUT", f"/keys/{record.id}/models/a%00b/limits", {"rpm": 6})
    assert refusal == (400, "invalid_value", "model")


async def test_an_alias_has_no_limits_of_its_own(admin: Admin, database: Database) -> None:
    record, _ = await KeyStore(database).create(name="x")
    for path in ("/models/{}/limits", f"/keys/{record.id}/models/{{}}/limits"):
        refusal = await admin.refused("PUT", path.format("nick"), {"rpm": 6})
        assert refusal == (400, "invalid_value", "model")
        answer = await admin.call("PUT", path.format("nick"), {"rpm": 6})
        assert "known/model" in answer.json()["error"]["message"]
        for name in ("known/model", "may-be-discovered-later"):
            await admin.send("PUT", path.format(name), {"rpm": 6})
        # What came in another way can go.
        await admin.send("DELETE", path.format("nick"), status=204)

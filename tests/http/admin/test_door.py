"""Who may enter the admin API, and what becomes of requests that are wrong in form."""

import asyncio
import time

import pytest
from forebay.metering.shipper import Shipper
from forebay.store import Database, EmbeddedPostgres, KeyStore, encode_records

from tests.http.admin.conftest import Admin, MakeAdmin
from tests.support.ledger import Spool, event


async def test_an_admin_key_alone_opens_it(admin: Admin, database: Database) -> None:
    record, secret = await KeyStore(database).create(name="x")
    admin.gateway.core.load_keys(encode_records([record]), False)
    for path in ("/keys", "/openapi.json", "/usage", f"/keys/{record.id}/limits"):
        refusal = await admin.refused("GET", path, headers={"authorization": f"Bearer {secret}"})
        assert refusal == (403, "permission_denied", None)
        refusal = await admin.refused("GET", path, headers={"authorization": "Bearer nonsense"})
        assert refusal == (401, "invalid_api_key", None)
    answer = await admin.client.get("/admin/v1/keys")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "missing_api_key"
    revoked = await KeyStore(database).revoke(
        (await admin.get("/keys?account=ops"))["data"][0]["id"]
    )
    admin.gateway.core.load_keys(encode_records([revoked]), False)
    assert (await admin.refused("GET", "/keys"))[:2] == (401, "api_key_revoked")


async def test_a_stranger_learns_nothing_of_a_body(admin: Admin) -> None:
    answer = await admin.client.post("/admin/v1/keys", content=b"{")
    assert answer.status_code == 401
    assert answer.headers["connection"] == "close"


async def test_wrong_paths_and_methods(admin: Admin) -> None:
    assert (await admin.refused("GET", "/nothing"))[:2] == (404, "unknown_url")
    answer = await admin.call("DELETE", "/keys")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].replace(" ", "").split(",")) >= {"GET", "POST"}


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"{", {}, (400, "invalid_json", None)),
        (b"", {}, (400, "invalid_json", None)),
        (b"\xff", {}, (400, "invalid_json", None)),
        (b'{"name": "\xff"}', {}, (400, "invalid_json", None)),
        (b"[]", {}, (400, "invalid_type", None)),
        (b"{}", {"content-type": "text/plain"}, (400, "unsupported_content_type", "content-type")),
        (b" " * 5000, {}, (413, "request_too_large", None)),
        (b"[" * 4000, {}, (400, "invalid_type", None)),
    ],
)
async def test_bodies(
    admin: Admin, content: bytes, headers: dict[str, str], expected: tuple[int, str, str | None]
) -> None:
    assert await admin.refused("POST", "/keys", content=content, headers=headers) == expected


async def test_query_parameters(admin: Admin) -> None:
    for query, code, param in (
        ("limit=0", "invalid_value", "limit"),
        ("limit=1001", "invalid_value", "limit"),
        ("limit=x", "invalid_type", "limit"),
        ("colour=1", "unknown_parameter", "colour"),
        ("limit=1&limit=2", "invalid_value", None),
    ):
        assert await admin.refused("GET", f"/keys?{query}") == (400, code, param)
    for query, param in (("/accounts?after=%00", "after"), ("/keys?account=%00", "account")):
        assert await admin.refused("GET", query) == (400, "invalid_value", param)
    assert await admin.refused("GET", "/keys?after=%00") == (400, "invalid_value", "after")
    path = f"/keys/{(await admin.get('/keys'))['data'][0]['id']}"
    assert await admin.refused("GET", f"{path}?x=1") == (400, "unknown_parameter", "x")


async def test_before_the_database_was_ever_reached(make_admin: MakeAdmin) -> None:
    admin = await make_admin(None)
    for method, path, body in (("GET", "/keys", None), ("PUT", "/models/m/limits", {"rpm": 1})):
        assert await admin.refused(method, path, body) == (503, "service_unavailable", None)
    assert (await admin.get("/openapi.json"))["openapi"] == "3.1.0"


async def test_while_the_database_is_away(
    admin: Admin, database: Database, postgres: EmbeddedPostgres
) -> None:
    assert await admin.get("/keys")
    await asyncio.to_thread(postgres.stop)
    answer = await admin.call("GET", "/keys")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert (await admin.refused("POST", "/keys", {"name": "x"}))[0] == 503
    await asyncio.to_thread(postgres.start)
    assert await admin.get("/keys")


async def test_usage(admin: Admin, database: Database) -> None:
    assert await admin.get("/usage") == {"data": []}
    now_us = time.time_ns() // 1000
    spool = Spool()
    spool.events = [
        event(now_us, account="acme", model_served="m", cost_pico=1_234_000),
        event(now_us, account="other", model_served="n"),
    ]
    shipper = Shipper(database, spool)
    assert await shipper.flush(5)
    await shipper.stop()
    (row,) = (await admin.get("/usage?by=model&since_s=3600&account=acme"))["data"]
    assert (row["group"], row["requests"], row["prompt_tokens"]) == ("m", 1, 10)
    assert row["cost"] == "0.000001234"
    assert await admin.refused("GET", "/usage?by=colour") == (400, "invalid_value", "by")

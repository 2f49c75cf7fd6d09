"""The price book over the admin API."""

from typing import Any

from forebay.store import AccountStore, Database

from tests.http.admin.conftest import Admin

PRICE = {"model": "m", "input": "0.15", "output": "0.6", "effective_from": 1000}


async def test_a_price_is_set_read_and_corrected(admin: Admin, database: Database) -> None:
    await AccountStore(database).create("acme")
    made = await admin.send("POST", "/prices", {**PRICE, "account": "acme"}, 201)
    assert made == await admin.get(f"/prices/{made['id']}")
    assert (made["input"], made["reasoning"], made["second"]) == ("0.15", "0.60", "0.00")
    assert (made["effective_from"], made["effective_to"]) == (1000, None)
    path = f"/prices/{made['id']}/correct"
    answer = await admin.send("POST", path, {"input": "0.2", "effective_to": 2000})
    first, second = answer["data"]
    assert (first["input"], first["effective_to"]) == ("0.20", 2000)
    assert (second["input"], second["effective_from"]) == ("0.15", 2000)
    assert first["supersedes"] == second["supersedes"] == made["id"]
    listed = await admin.get("/prices")
    assert listed == {"data": [second], "next": None}
    page = await admin.get("/prices?history=true&limit=2")
    assert [p["id"] for p in page["data"]] == [made["id"], first["id"]]
    rest = await admin.get(f"/prices?history=true&limit=2&after={page['next']}")
    assert rest == {"data": [second], "next": None}
    assert (await admin.get("/prices?at=1500"))["data"] == [first]
    assert (await admin.get("/prices?account=acme&model=m&upstream=x"))["data"] == []


async def test_a_price_is_ended(admin: Admin) -> None:
    made = await admin.send("POST", "/prices", PRICE, 201)
    path = f"/prices/{made['id']}/end"
    assert await admin.refused("POST", path, {"effective_to": 1000}) == (
        *(400, "invalid_value", "effective_to"),
    )
    ended = await admin.send("POST", path)
    assert ended["effective_to"] > 1000
    assert await admin.refused("POST", path) == (400, "invalid_value", "price_id")


async def test_many_are_set_or_none(admin: Admin) -> None:
    prices: list[dict[str, Any]] = [PRICE, {**PRICE, "upstream": "gpu"}]
    answer = await admin.send("POST", "/prices/import", {"prices": prices}, 201)
    assert [p["upstream"] for p in answer["data"]] == [None, "gpu"]
    bad = [{**PRICE, "model": "n"}, PRICE]
    assert await admin.refused("POST", "/prices/import", {"prices": bad}) == (
        *(400, "invalid_value", "prices[1].effective_from"),
    )
    assert len((await admin.get("/prices"))["data"]) == 2
    assert (await admin.refused("POST", "/prices/import", {"prices": []}))[0] == 400


async def test_what_is_refused(admin: Admin) -> None:
    for fields, code, param in (
        ({"input": "-1"}, "invalid_value", "input"),
        ({"input": 1.5}, "invalid_type", "input"),
        ({"output": "0.1234567"}, "invalid_value", "output"),
        ({"account": "nobody"}, "invalid_value", "account"),
        ({"currency": "usd"}, "invalid_value", "currency"),
        ({"currency": "EUR"}, "invalid_value", "currency"),
        ({"model": "nick"}, "invalid_value", "model"),
        ({"effective_to": 999}, "invalid_value", "effective_to"),
        ({"hour": "1"}, "unknown_parameter", "hour"),
        ({"effective_from": "2026-01-01"}, "invalid_type", "effective_from"),
    ):
        refusal = await admin.refused("POST", "/prices", {**PRICE, **fields})
        assert refusal == (400, code, param), fields
    assert await admin.refused("POST", "/prices", {"model": "m", "input": "1"}) == (
        *(400, "missing_required_parameter", "output"),
    )
    assert (await admin.get("/prices?history=true"))["data"] == []
    for query in ("model=%00", "account=", "at=1e20", "limit=0", "after=-1", "x=1"):
        assert (await admin.refused("GET", f"/prices?{query}"))[0] == 400, query


async def test_unknown_prices(admin: Admin) -> None:
    for unknown in ("7", "0", "-1", "x", "%D9%A1", "9" * 30):
        assert await admin.refused("GET", f"/prices/{unknown}") == (404, "price_not_found", None)
        answer = await admin.refused("POST", f"/prices/{unknown}/correct", {"input": "1"})
        assert answer == (404, "price_not_found", None)
    made = await admin.send("POST", "/prices", PRICE, 201)
    path = f"/prices/{made['id']}/correct"
    assert await admin.refused("POST", path, {}) == (400, "invalid_value", "input")
    await admin.send("POST", path, {"input": "1"})
    assert await admin.refused("POST", path, {"input": "2"}) == (400, "invalid_value", "price_id")

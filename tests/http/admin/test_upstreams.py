"""Upstreams by the admin API: how they stand, and taking one out."""

import orjson
from forebay.gateway.standing import Stands
from forebay.store import Database

from tests.http.admin.conftest import Admin, MakeAdmin


async def test_how_an_upstream_stands(admin: Admin) -> None:
    admin.gateway.core.report_upstream(
        "none", "warm", orjson.dumps({"running": 3, "waiting": 2, "tokens": 10})
    )
    (listed,) = (await admin.get("/upstreams"))["data"]
    one = await admin.get("/upstreams/none")
    assert 0 <= one["load"].pop("age_s") < 60
    listed["load"].pop("age_s")
    assert one == listed
    assert one == {
        "name": "none",
        "kind": "sglang",
        "state": "warm",
        "agent": None,
        "availability": "open",
        "share": 1.0,
        "draining": False,
        "in_flight": 0,
        "waiting": 0,
        "limit": None,
        "load": {"running": 3, "waiting": 2, "tokens": 10},
        "first_token_ms": None,
        "successes": 0,
        "failures": 0,
        "backs_off_s": None,
        "ejections": 0,
        "ejection": None,
    }
    found: tuple[tuple[Stands, str], ...] = (
        ("down", "out"),
        ("cold", "cold"),
        ("loading", "loading"),
        ("draining", "draining"),
    )
    for state, availability in found:
        admin.gateway.core.report_upstream("none", state, None)
        stands = await admin.get("/upstreams/none")
        assert (stands["state"], stands["availability"]) == (state, availability)


async def test_draining_and_undraining_are_audited(admin: Admin) -> None:
    told: list[tuple[str, bool]] = []
    admin.gateway.tell_drain = lambda name, draining: told.append((name, draining))
    drained = await admin.send("POST", "/upstreams/none/drain")
    assert (drained["draining"], drained["availability"]) == (True, "draining")
    back = await admin.send("POST", "/upstreams/none/undrain")
    assert (back["draining"], back["availability"]) == (False, "open")
    assert told == [("none", True), ("none", False)]
    entries = (await admin.get("/audit?subject=upstream:none"))["data"]
    assert [entry["action"] for entry in entries] == ["upstream.undrain", "upstream.drain"]
    assert [entry["after"] for entry in entries] == [{"draining": False}, {"draining": True}]


async def test_an_unknown_upstream(admin: Admin) -> None:
    for method, path in (
        ("GET", "/upstreams/x"),
        ("POST", "/upstreams/x/drain"),
        ("POST", "/upstreams/x/undrain"),
    ):
        assert await admin.refused(method, path) == (404, "upstream_not_found", None)
    assert await admin.get("/audit?subject=upstream") == {"data": [], "next": None}


async def test_an_upstream_is_drained_while_the_database_is_away(make_admin: MakeAdmin) -> None:
    admin = await make_admin(None)
    assert (await admin.send("POST", "/upstreams/none/drain"))["draining"]
    assert (await admin.get("/upstreams"))["data"][0]["draining"]


async def test_it_needs_an_admin_key(admin: Admin, database: Database) -> None:
    answer = await admin.client.post("/admin/v1/upstreams/none/drain")
    assert answer.status_code == 401
    assert not (await admin.get("/upstreams/none"))["draining"]


async def test_metrics_show_the_state(admin: Admin) -> None:
    admin.gateway.core.report_upstream("none", "down", None)
    text = admin.gateway.core.metrics()
    assert 'forebay_upstream_state{upstream="none",state="out"} 1' in text
    assert 'forebay_upstream_state{upstream="none",state="open"} 0' in text
    assert 'forebay_upstream_probes_total{upstream="none",found="down"} 1' in text
    assert 'forebay_upstream_ejections_total{upstream="none",reason="consecutive"} 0' in text

"""Prices of a running gateway: set by command, they are what the next requests are booked at."""

import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres

from tests.limits_e2e.conftest import new_database
from tests.support.admin import everywhere
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway, Key
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, chat


def config(url: str, price: str = "1") -> dict[str, Any]:
    def model() -> dict[str, Any]:
        return {"targets": [{"upstream": "sim", "model": "sim"}]}

    seeded = {**model(), "price": {"input": price, "output": "2"}}
    gone = f"http://127.0.0.1:{closed_port()}"
    return {
        "upstreams": {
            "sim": {"kind": "sglang", "url": url},
            "gone": {"kind": "sglang", "url": gone},
        },
        "models": {
            "seeded": seeded,
            "failing": {"targets": [{"upstream": "gone"}]},
            **{name: model() for name in ("free", "m", "n")},
        },
    }


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def running(
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    sim: Engine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    url = new_database(postgres, f"prices_{request.param}")
    folder = tmp_path_factory.mktemp("prices")
    gateway = Gateway(folder, config(sim.url), url, workers=request.param)
    gateway.start()
    until(lambda: gateway.health()["checks"]["upstream:sim"] == "ok", "the engine")
    yield gateway
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()


def prices(gateway: Gateway, *arguments: str) -> Any:
    """What `forebay prices` prints as JSON."""
    command = [sys.executable, "-m", "forebay.cli", "prices", *arguments, "--json"]
    command += ["--database-url", gateway.database_url]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)


def ask(gateway: Gateway, key: Key, model: str) -> Answer:
    return gateway.call(CHAT, chat(model, max_tokens=5), key=key.secret)


def served(gateway: Gateway, key: Key, model: str) -> dict[str, Any]:
    """The usage row of an answered request."""
    answer = ask(gateway, key, model)
    assert answer.status == 200, answer.body
    return gateway.usage_of(answer)


def tokens(row: dict[str, Any], input: int, output: int) -> Decimal:
    """What a row's tokens cost, at so many dollars for 10^6."""
    return Decimal(row["prompt_tokens"] * input + row["completion_tokens"] * output) / 10**6


def test_a_price_holds_for_the_next_request_within_a_second(running: Gateway) -> None:
    key = running.key()
    saver = running.key(budget="5", budget_period="day")
    row = served(running, key, "m")
    assert (row["price_id"], row["cost"]) == (None, None)
    assert running.metric("forebay_unpriced_requests_total", model="m") == 1
    refusal = ask(running, saver, "m")
    assert (refusal.status, refusal.json()["error"]["code"]) == (403, "model_has_no_price")
    made = prices(running, "set", "m", "--input", "3", "--output", "5", "--request", "0.01")
    everywhere("the price", lambda: ask(running, saver, "m").status == 200)
    row = served(running, key, "m")
    assert row["price_id"] == made["id"]
    assert row["cost"] == tokens(row, 3, 5) + Decimal("0.01")
    # A change, which ends the first one; again within a second, wherever the request goes.
    later = prices(running, "set", "m", "--input", "7", "--output", "5")
    until(
        lambda: all(served(running, key, "m")["price_id"] == later["id"] for _ in range(4)),
        "the change",
        timeout_s=5.0,
    )
    row = served(running, key, "m")
    assert row["cost"] == tokens(row, 7, 5)
    assert running.metric("forebay_unpriced_requests_total", model="m") == 1


def test_the_most_specific_price_is_booked(running: Gateway) -> None:
    key, other = running.key(account="acme"), running.key(account="else")
    base = prices(running, "set", "n", "--input", "1", "--output", "1")
    there = prices(running, "set", "n", "--input", "2", "--output", "2", "--upstream", "sim")
    nowhere = prices(running, "set", "n", "--input", "9", "--output", "9", "--upstream", "none")
    own = prices(running, "set", "n", "--input", "3", "--output", "3", "--account", "acme")

    def booked(who: Key) -> tuple[int, Decimal]:
        row = served(running, who, "n")
        return row["price_id"], row["cost"] / (row["prompt_tokens"] + row["completion_tokens"])

    until(lambda: booked(key)[0] == own["id"], "the account's", timeout_s=5.0)
    assert booked(key) == (own["id"], Decimal("0.000003"))
    assert booked(other) == (there["id"], Decimal("0.000002"))
    assert base["id"] != nowhere["id"]


def test_seconds_are_the_whole_request(running: Gateway) -> None:
    key = running.key()
    prices(running, "set", "free", "--input", "0", "--output", "0", "--second", "0.5")
    until(lambda: served(running, key, "free")["price_id"] is not None, "the price", timeout_s=5.0)
    row = served(running, key, "free")
    duration_us = round(row["duration_ms"] * 1000)
    assert duration_us > 0
    assert row["cost"] == Decimal(duration_us) * Decimal("0.5") / 10**6
    lasted = row["ended_at"] - row["admitted_at"]
    assert lasted.total_seconds() * 1e6 == pytest.approx(duration_us, abs=0.5)


def test_what_fails_costs_nothing(running: Gateway) -> None:
    key, saver = running.key(), running.key(budget="5", budget_period="day")
    assert ask(running, saver, "failing").status == 403
    prices(running, "set", "failing", "--input", "1", "--output", "1", "--request", "1")
    everywhere("the price", lambda: ask(running, saver, "failing").status == 503)
    row = running.usage_of(ask(running, key, "failing"))
    assert (row["outcome"], row["price_id"], row["cost"]) == ("error", None, Decimal(0))
    assert running.metric("forebay_unpriced_requests_total", model="failing") == 0


def test_the_configuration_seeds_the_book_and_the_book_holds(
    running: Gateway, sim: Engine, tmp_path: Path
) -> None:
    (seeded,) = prices(running, "list", "--model", "seeded")
    assert (seeded["input"], seeded["created_by"]) == ("1.00", "config")
    assert seeded["effective_from"] == 0
    key = running.key()
    row = served(running, key, "seeded")
    assert (row["price_id"], row["cost"]) == (seeded["id"], tokens(row, 1, 2))
    again = Gateway(tmp_path / "again", config(sim.url, price="4"), running.database_url)
    again.start()
    try:
        until(lambda: again.health()["checks"]["upstream:sim"] == "ok", "the engine")
        row = served(again, key, "seeded")
        assert (row["price_id"], row["cost"]) == (seeded["id"], tokens(row, 1, 2))
        (line,) = [entry for entry in again.log().splitlines() if "price book" in entry]
        told = json.loads(line)
        assert (told["level"], told["model"], told["price"]) == ("warning", "seeded", seeded["id"])
        assert told["configured"]["input"] == "4.00"
        assert told["book"]["input"] == "1.00"
    finally:
        assert again.stop() == 0, again.log()

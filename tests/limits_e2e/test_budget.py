"""The last dollar: who gets it, what is overspent, what clients are told."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from forebay.store import EmbeddedPostgres
from openai import OpenAI, RateLimitError

from tests.limits_e2e.conftest import config, new_database
from tests.support.admin import Admin
from tests.support.many import Got, all_of, ask
from tests.support.processes import Engine, Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer, plain
from tests.support.wait import until
from tests.support.wire import CHAT, COMPLETIONS, chat, request

PROMPT, OUTPUT = 100, 50
COST = Decimal(PROMPT * 1 + OUTPUT * 2) / 10**6
"""Dollars: what each request reserves, its prompt being token ids and its output capped."""
AT_ONCE = 100


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def bank(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres: EmbeddedPostgres,
    own_sim: Engine,
    own_engine: ScriptedUpstream,
) -> Iterator[Admin]:
    folder = tmp_path_factory.mktemp("bank")
    url = new_database(postgres, f"bank_{request.param}")
    gateway = Gateway(folder, config(own_sim, own_engine), url, workers=request.param)
    gateway.start()
    yield Admin(gateway)
    assert gateway.stop() == 0, gateway.log()
    assert "Traceback (most recent" not in gateway.log(), gateway.log()


@pytest.fixture
def paid(bank: Admin, own_engine: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """The engine behind the model with a price, which takes a while and uses all of its cap."""
    own_engine.wait_idle()
    own_engine.reset()
    own_engine.script = using(OUTPUT)
    yield own_engine
    own_engine.wait_idle()
    bank.gateway.wait_idle()
    own_engine.reset()


def using(output: int) -> Any:
    """The script of an engine that answers with so many tokens, after a while."""

    def script(connection: Connection, _: Received) -> None:
        time.sleep(0.1)
        connection.json(answer(PROMPT, output))

    return script


def data(key: Key) -> bytes:
    body = {"model": "priced", "prompt": list(range(PROMPT)), "max_tokens": OUTPUT}
    return request(COMPLETIONS, body, key=key.secret, close=True)


def race(gateway: Gateway, key: Key, count: int = AT_ONCE) -> list[Got]:
    """So many requests at once."""
    return all_of([ask(gateway.port, data(key)) for _ in range(count)], count)


def left(bank: Admin, key: Key) -> Decimal:
    return Decimal(bank.live(key)["key", "budget"]["remaining"])


def kinds(got: list[Got]) -> Counter[str]:
    """How many answers of each kind: 200, or the error's code."""
    return Counter(
        "200" if one.status == 200 else f"{one.status} {one.json()['error']['code']}" for one in got
    )


def test_a_race_for_the_last_dollar(bank: Admin, paid: ScriptedUpstream) -> None:
    """Of 100 at once as many pass as it pays for, to the last nano-dollar."""
    budget = 10 * COST + COST / 2
    key = bank.make(budget=str(budget), budget_period="total")
    got = race(bank.gateway, key)
    # While others hold the rest it may come back, so the refused are told to wait, or, once all
    # is spent, not to come again.
    assert set(kinds(got)) <= {"200", "429 rate_limit_exceeded", "429 insufficient_quota"}
    assert kinds(got)["200"] == len(paid.requests) == 10
    until(lambda: left(bank, key) == budget - 10 * COST, "settled")
    assert kinds(race(bank.gateway, key, 20)) == {"429 insufficient_quota": 20}
    assert len(paid.requests) == 10
    rows = bank.gateway.usage(10, key_id=key.id)
    assert sum(row["cost"] for row in rows) == 10 * COST


def test_what_was_not_spent_goes_to_those_who_come_later(
    bank: Admin, paid: ScriptedUpstream
) -> None:
    """Half of each reservation comes back; the whole is spent, and never overspent."""
    paid.script = using(0)
    cost = Decimal(PROMPT) / 10**6
    key = bank.make(budget=str(10 * COST), budget_period="total")
    passed = 0
    for _ in range(12):
        passed += kinds(race(bank.gateway, key, 30))["200"]
        bank.gateway.wait_idle()
        assert left(bank, key) == 10 * COST - passed * cost >= 0
    # 2,000 micro-dollars at 100 a request, of which the last ones ask for 200 to be free.
    assert passed == 19


def test_an_engine_that_used_more_overspends_by_that(bank: Admin, paid: ScriptedUpstream) -> None:
    """The spend passes the budget by no more than what those in flight used beyond their cap."""
    used = OUTPUT + 30
    paid.script = using(used)
    beyond = Decimal(2 * (used - OUTPUT)) / 10**6
    key = bank.make(budget=str(10 * COST), budget_period="total")
    passed = kinds(race(bank.gateway, key))["200"]
    assert passed == 10
    bank.gateway.wait_idle()
    spent = sum(row["cost"] for row in bank.gateway.usage(passed, key_id=key.id))
    assert spent == 10 * COST + 10 * beyond
    assert left(bank, key) == 0
    assert kinds(race(bank.gateway, key, 5)) == {"429 insufficient_quota": 5}
    # One after another, each is settled before the next: beyond by a single one's difference.
    key = bank.make(budget=str(10 * COST), budget_period="total")
    while kinds(race(bank.gateway, key, 1))["200"]:
        bank.gateway.wait_idle()
    # 260 micro-dollars each, and 200 must be left of the 2,000 before the next.
    rows = bank.gateway.usage(7, key_id=key.id)
    assert sum(row["cost"] for row in rows) <= 10 * COST + beyond


def test_a_race_of_estimates(bank: Admin) -> None:
    """Prompts of text, whose tokens are estimated: beyond by one request's difference at most."""
    draw = random.Random(5)

    def data(key: Key) -> bytes:
        text = "".join(draw.choices("abcdefgh ", k=draw.randint(1000, 6000)))
        body = {**chat("dear", f"{text} /words {OUTPUT}"), "max_tokens": OUTPUT}
        return request(CHAT, body, key=key.secret, close=True)

    learner = bank.make()
    all_of([ask(bank.gateway.port, data(learner)) for _ in range(200)], 8)
    for _ in range(5):
        key = bank.make(budget="0.02", budget_period="total")
        got = all_of([ask(bank.gateway.port, data(key)) for _ in range(AT_ONCE)], AT_ONCE)
        passed = kinds(got)["200"]
        assert 0 < passed < AT_ONCE
        bank.gateway.wait_idle()
        costs = [row["cost"] for row in bank.gateway.usage(passed, key_id=key.id)]
        assert sum(costs) <= Decimal("0.02") + max(costs) / 10, (sum(costs), max(costs))


def test_the_sdk_is_told_not_to_try_again(bank: Admin, paid: ScriptedUpstream) -> None:
    paid.script = plain
    key = bank.make(budget=str(COST / 2), budget_period="month")
    base = f"{bank.gateway.url}/v1"
    labels = {"scope": "key", "dimension": "budget"}
    before = bank.gateway.metric("forebay_limit_refusals_total", **labels)
    with (
        OpenAI(base_url=base, api_key=key.secret, max_retries=5) as client,
        pytest.raises(RateLimitError) as caught,
    ):
        client.completions.create(model="priced", prompt=list(range(PROMPT)), max_tokens=OUTPUT)
    after = bank.gateway.metric("forebay_limit_refusals_total", **labels)
    assert after == before + 1, "it did not try again"
    error = caught.value
    assert (error.status_code, error.code, error.type) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert "A new month begins in" in error.message
    assert paid.requests == []


def test_every_scope_has_its_purse(bank: Admin, paid: ScriptedUpstream) -> None:
    """A request spends of the account's, the key's and the key's on the model."""
    paid.script = plain
    account = f"purse-{bank.gateway.port}"
    key = bank.make(account=account, budget=str(5 * COST), budget_period="day")
    bank.limit(f"/accounts/{account}", key, budget=str(4 * COST), budget_period="month")
    bank.limit(f"/keys/{key.id}/models/priced", key, budget=str(3 * COST), budget_period="total")
    cost = Decimal(3 * 1 + 2 * 2) / 10**6  # what `answer()` says
    for count in range(1, 4):
        assert kinds(race(bank.gateway, key, 1)) == {"200": 1}
        bank.gateway.wait_idle()
        found = {
            entry["scope"]: (Decimal(entry["remaining"]), entry["period"])
            for entry in bank.entries(key)
        }
        assert found == {
            "account": (4 * COST - count * cost, "month"),
            "key": (5 * COST - count * cost, "day"),
            "key_model": (3 * COST - count * cost, "total"),
        }


def test_a_restart_remembers(
    folder: Path, postgres: EmbeddedPostgres, own_sim: Engine, own_engine: ScriptedUpstream
) -> None:
    """Also after kill -9, once usage was written."""
    own_engine.reset()
    own_engine.script = using(OUTPUT)
    gateway = Gateway(folder, config(own_sim, own_engine), new_database(postgres, "bank_restart"))
    gateway.start()
    admin = Admin(gateway)
    key = admin.make(budget=str(3 * COST), budget_period="month")
    assert kinds(race(gateway, key)) == {"200": 3, "429 rate_limit_exceeded": 97}
    gateway.usage(3, key_id=key.id)
    assert gateway.popen is not None
    gateway.popen.kill()
    gateway.popen.wait()
    gateway.ready_file.unlink()
    gateway.start()
    assert kinds(race(gateway, key, 3)) == {"429 insufficient_quota": 3}
    assert gateway.stop() == 0
    own_engine.reset()

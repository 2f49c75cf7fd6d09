"""Four scopes, one decision: a refusal by one costs nothing at the others, and is counted."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.admin import Admin
from tests.support.many import Got, all_of, ask
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer
from tests.support.wait import until
from tests.support.wire import COMPLETIONS, Answer, Client, request

SCOPES = ("account", "key", "model", "key_model")
ROOMY = {"rpm": 1, "rpm_burst": 1000, "tpm": 1, "tpm_burst": 100_000, "concurrency": 100}
"""One unit a minute comes back: what is taken shows."""
TIGHT: dict[str, dict[str, Any]] = {
    "requests": {"rpm": 1, "rpm_burst": 2},
    "tokens": {"tpm": 1, "tpm_burst": 100},
    "concurrency": {"concurrency": 2},
}
PROMPT, OUTPUT = 30, 15


@pytest.fixture
def subject(admin: Admin) -> Callable[..., tuple[Key, str]]:
    """Makes a key and a model, with limits of all four scopes."""

    def make(number: int, limits: dict[str, dict[str, Any]]) -> tuple[Key, str]:
        model = f"raw-{number}"
        key = admin.make(account=f"scopes-{number}", **limits["key"])
        admin.limit(f"/accounts/scopes-{number}", key, **limits["account"])
        admin.limit(f"/models/{model}", key, **limits["model"])
        admin.limit(f"/keys/{key.id}/models/{model}", key, **limits["key_model"])
        return key, model

    return make


def body(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": list(range(PROMPT)), "max_tokens": OUTPUT}


def call(gateway: Gateway, key: Key, model: str) -> Answer:
    return gateway.call(COMPLETIONS, body(model), key=key.secret)


def taken(admin: Admin, key: Key, model: str) -> dict[tuple[str, str], int]:
    """Units taken, by scope and dimension, of the limits that apply on the model."""
    return {
        (entry["scope"], entry["dimension"]): entry["burst"] - entry["remaining"]
        for entry in admin.entries(key)
        if entry["model"] in (None, model)
    }


def refusals(gateway: Gateway, scope: str, dimension: str) -> float:
    return gateway.metric("forebay_limit_refusals_total", scope=scope, dimension=dimension)


@pytest.mark.parametrize("tight", SCOPES)
@pytest.mark.parametrize("dimension", ["requests", "tokens"])
def test_a_refusal_costs_nothing_anywhere(
    limited: Gateway,
    admin: Admin,
    engine: ScriptedUpstream,
    subject: Callable[..., tuple[Key, str]],
    tight: str,
    dimension: str,
) -> None:
    engine.script = lambda connection, _: connection.json(answer(PROMPT, OUTPUT))
    number = SCOPES.index(tight) + 4 * (dimension == "tokens")
    limits = {scope: ROOMY for scope in SCOPES}
    limits[tight] = {**ROOMY, **TIGHT[dimension]}
    key, model = subject(number, limits)
    before = refusals(limited, tight, dimension)
    statuses = [call(limited, key, model).status for _ in range(10)]
    assert statuses == [200] * 2 + [429] * 8
    limited.wait_idle()
    expected = {
        (scope, what): count
        for scope in SCOPES
        for what, count in (("requests", 2), ("tokens", 90), ("concurrency", 0))
    }
    assert taken(admin, key, model) == expected
    assert refusals(limited, tight, dimension) == before + 8
    assert len(engine.requests) == 2


@pytest.mark.parametrize("tight", SCOPES)
def test_permits_are_taken_of_all_or_of_none(
    limited: Gateway,
    admin: Admin,
    engine: ScriptedUpstream,
    subject: Callable[..., tuple[Key, str]],
    tight: str,
) -> None:
    def script(connection: Connection, _: Received) -> None:
        connection.hung_up()

    engine.script = script
    limits = {scope: ROOMY for scope in SCOPES}
    limits[tight] = {**ROOMY, **TIGHT["concurrency"]}
    key, model = subject(8 + SCOPES.index(tight), limits)
    before = refusals(limited, tight, "concurrency")
    data = request(COMPLETIONS, body(model), key=key.secret)
    clients = [Client(limited.port).send(data) for _ in range(2)]
    until(lambda: engine.active == 2, "both run")
    for _ in range(5):
        assert call(limited, key, model).status == 429
    held = taken(admin, key, model)
    assert {held[scope, "concurrency"] for scope in SCOPES} == {2}
    assert {held[scope, "requests"] for scope in SCOPES} == {2}
    assert refusals(limited, tight, "concurrency") == before + 5
    for client in clients:
        client.socket.close()
    until(
        lambda: {taken(admin, key, model)[scope, "concurrency"] for scope in SCOPES} == {0},
        "all return",
        2,
    )


def test_a_race_at_four_scopes_is_exact(
    limited: Gateway,
    admin: Admin,
    engine: ScriptedUpstream,
    subject: Callable[..., tuple[Key, str]],
) -> None:
    """Whoever loses a race at one scope has given back what it took at the others."""
    engine.script = lambda connection, _: connection.json(answer(PROMPT, OUTPUT))
    bursts = {"account": 40, "key": 35, "model": 30, "key_model": 25}
    limits = {scope: {**ROOMY, "rpm_burst": bursts[scope]} for scope in SCOPES}
    key, model = subject(12, limits)
    data = request(COMPLETIONS, body(model), key=key.secret, close=True)
    got: list[Got] = all_of([ask(limited.port, data) for _ in range(200)], 50)
    assert sorted(one.status for one in got) == [200] * 25 + [429] * 175
    limited.wait_idle()
    for (scope, what), count in taken(admin, key, model).items():
        assert count == {"requests": 25, "tokens": 25 * 45, "concurrency": 0}[what], (scope, what)


def test_the_longest_wait_is_told(
    limited: Gateway,
    admin: Admin,
    engine: ScriptedUpstream,
    subject: Callable[..., tuple[Key, str]],
) -> None:
    """Of several that refuse, the one that has to be waited for; what no wait cures before all."""
    waits = {"account": 6, "key": 30, "model": 2, "key_model": 12}
    limits: dict[str, dict[str, Any]] = {
        scope: {"rpm": 60 // wait, "rpm_burst": 1} for scope, wait in waits.items()
    }
    key, model = subject(13, limits)
    assert call(limited, key, model).status == 200
    refused = call(limited, key, model)
    assert refused.status == 429
    assert refused.header("retry-after") == "30"
    assert "for this API key: 2 requests per minute" in refused.error()["message"]
    admin.limit(f"/keys/{key.id}/models/{model}", key, rpm=5, rpm_burst=1, tpm=10)
    refused = call(limited, key, model)
    assert refused.brief()[2] == "request_over_limit"
    assert refused.header("retry-after") is None
    assert refused.header("x-should-retry") == "false"

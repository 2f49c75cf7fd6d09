"""The rate-limit headers, as the official SDK shows them, against a model of the buckets."""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from openai import OpenAI, RateLimitError

from tests.support.admin import Admin
from tests.support.processes import Gateway, Key
from tests.support.upstream import Connection, Received, ScriptedUpstream, answer
from tests.support.wire import COMPLETIONS, Answer

SLACK_S = 0.001
"""Headers have whole milliseconds."""


@dataclass
class Bucket:
    """A limit's bucket, exact but for when between two instants each request was looked at.

    rate: units a second. empty: the theoretical arrival time of GCRA, seconds, at the earliest and
    at the latest.
    """

    name: str
    limit: int
    rate: float
    burst: int
    empty: tuple[float, float] = (0.0, 0.0)

    def missing(self, began: float, ended: float) -> tuple[float, float]:
        """Units that it lacks between these two instants, at least and at most."""
        first, last = self.empty
        return max(0.0, first - ended) * self.rate, max(0.0, last - began) * self.rate

    def take(self, units: int, began: float, ended: float) -> None:
        first, last = self.empty
        self.empty = (
            max(first, began) + units / self.rate,
            max(last, ended) + units / self.rate,
        )

    def give(self, units: int) -> None:
        """What was taken and not used; less than nothing where more was used."""
        first, last = self.empty
        self.empty = first - units / self.rate, last - units / self.rate

    def remaining(self, began: float, ended: float) -> tuple[int, int]:
        """What headers may tell."""
        least, most = self.missing(began, ended)
        return max(0, math.floor(self.burst - most)), max(0, math.floor(self.burst - least))

    def shows(self, remaining: int, reset_s: float, began: float, ended: float) -> bool:
        """Whether both figures are right to one unit, as far as it is known."""
        least, most = self.remaining(began, ended)
        missing = self.missing(began, ended)
        unit = 1 / self.rate
        # Rounded up: to a millisecond below a second, to a second above.
        above = SLACK_S if reset_s < 1 else 1.0
        return (
            least - 1 <= remaining <= most + 1
            and missing[0] * unit - unit <= reset_s <= missing[1] * unit + unit + above
        )


class Buckets:
    """Four scopes of one dimension."""

    def __init__(self, limits: dict[str, tuple[int, int]]) -> None:
        self.all = [Bucket(name, pm, pm / 60, burst) for name, (pm, burst) in limits.items()]

    def passes(self, units: int, began: float, ended: float) -> bool | None:
        """Whether all have so much; None where that cannot be known."""
        missing = [(bucket.missing(began, ended), bucket.burst - units) for bucket in self.all]
        if all(most <= room for (_, most), room in missing):
            return True
        return False if any(least > room for (least, _), room in missing) else None

    def take(self, units: int, began: float, ended: float) -> None:
        for bucket in self.all:
            bucket.take(units, began, ended)

    def give(self, units: int) -> None:
        for bucket in self.all:
            bucket.give(units)

    def check(self, limit: int, remaining: int, reset_s: float, began: float, ended: float) -> None:
        """The headers tell the tightest, or one of those that may be, and tell it right."""
        tightest = min(bucket.remaining(began, ended)[1] for bucket in self.all)
        told = [
            bucket
            for bucket in self.all
            if bucket.limit == limit
            and bucket.remaining(began, ended)[0] <= tightest
            and bucket.shows(remaining, reset_s, began, ended)
        ]
        known = {bucket.name: bucket.remaining(began, ended) for bucket in self.all}
        assert told, f"{limit=} {remaining=} {reset_s=}: {known} {self.all}"


def seconds(text: str) -> float:
    """A duration as OpenAI writes it: `17ms`, `1s`, `6m0s`."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", text)
    assert found is not None, text
    hours, minutes, secs, millis = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + secs + millis / 1000


def figures(headers: Any, of: str) -> tuple[int, int, float]:
    """Limit, remaining and reset."""
    return (
        int(headers[f"x-ratelimit-limit-{of}"]),
        int(headers[f"x-ratelimit-remaining-{of}"]),
        seconds(headers[f"x-ratelimit-reset-{of}"]),
    )


def using(engine: ScriptedUpstream, tokens: list[int]) -> None:
    """The engine answers each request with the next of these counts."""

    def script(connection: Connection, received: Received) -> None:
        prompt = len(received.json()["prompt"])
        connection.json(answer(prompt, tokens[-1] - prompt))

    engine.script = script


@pytest.fixture
def sdk(limited: Gateway) -> Iterator[Any]:
    """Makes clients of the official SDK that do not try again."""
    opened: list[OpenAI] = []

    def connect(key: Key) -> OpenAI:
        client = OpenAI(base_url=f"{limited.url}/v1", api_key=key.secret, max_retries=0)
        opened.append(client)
        return client

    yield connect
    for client in opened:
        client.close()


@pytest.mark.parametrize("seed", range(6))
def test_headers_follow_a_model(
    limited: Gateway, admin: Admin, engine: ScriptedUpstream, sdk: Any, seed: int
) -> None:
    """Random limits of four scopes, random requests and pauses, refusals and debts."""
    draw = random.Random(seed)
    scopes = ("account", "key", "model", "key_model")
    # Slow enough for a request to take less than a unit's time, and all different.
    per_minute = dict(zip(scopes, draw.sample(range(60, 600), 4), strict=True))
    tokens_per_minute = dict(zip(scopes, draw.sample(range(1000, 6000), 4), strict=True))
    bursts = {scope: draw.randrange(5, 40) for scope in scopes}
    token_bursts = {scope: draw.randrange(300, 3000) for scope in scopes}

    def limits(scope: str) -> dict[str, int]:
        return {
            "rpm": per_minute[scope],
            "rpm_burst": bursts[scope],
            "tpm": tokens_per_minute[scope],
            "tpm_burst": token_bursts[scope],
        }

    model = f"raw-{14 + seed}"
    key = admin.make(account=f"headers-{seed}", **limits("key"))
    admin.limit(f"/accounts/headers-{seed}", key, **limits("account"))
    admin.limit(f"/models/{model}", key, **limits("model"))
    admin.limit(f"/keys/{key.id}/models/{model}", key, **limits("key_model"))
    requests = Buckets({s: (per_minute[s], bursts[s]) for s in scopes})
    tokens = Buckets({s: (tokens_per_minute[s], token_bursts[s]) for s in scopes})
    used: list[int] = []
    using(engine, used)
    client = sdk(key)
    statuses = []
    for _ in range(60):
        prompt, cap = draw.randrange(1, 60), draw.randrange(1, 300)
        reserved = min(prompt + cap, *token_bursts.values())
        used.append(prompt + draw.choice((0, cap // 3, cap, 3 * cap)))
        began = time.monotonic()
        try:
            raw = client.completions.with_raw_response.create(
                model=model, prompt=list(range(prompt)), max_tokens=cap
            )
            status, headers = 200, raw.headers
        except RateLimitError as error:
            status, headers = 429, error.response.headers
        ended = time.monotonic()
        statuses.append(status)
        passes = (requests.passes(1, began, ended), tokens.passes(reserved, began, ended))
        assert status == 200 or passes != (True, True), (requests.all, tokens.all)
        assert status == 429 or False not in passes, (requests.all, tokens.all)
        if status == 200:
            requests.take(1, began, ended)
            tokens.take(reserved, began, ended)
        requests.check(*figures(headers, "requests"), began, ended)
        tokens.check(*figures(headers, "tokens"), began, ended)
        if status == 200:
            tokens.give(reserved - used[-1])
        check_live(admin, key, model, requests, tokens)
        if draw.random() < 0.15:
            time.sleep(draw.uniform(0, 0.5))
    assert set(statuses) == {200, 429}, statuses


def check_live(admin: Admin, key: Key, model: str, requests: Buckets, tokens: Buckets) -> None:
    """What the admin API shows: every scope, not the tightest alone."""
    began = time.monotonic()
    entries = [entry for entry in admin.entries(key) if entry["model"] in (None, model)]
    ended = time.monotonic()
    assert len(entries) == 8
    for what, buckets in (("requests", requests), ("tokens", tokens)):
        by_scope = {entry["scope"]: entry for entry in entries if entry["dimension"] == what}
        for bucket in buckets.all:
            entry = by_scope[bucket.name]
            assert (entry["limit"], entry["burst"]) == (bucket.limit, bucket.burst)
            shown = entry["remaining"], entry["reset_s"]
            assert bucket.shows(*shown, began, ended), (entry, bucket)


@pytest.mark.parametrize(
    ("limits", "cap"),
    [
        ({"rps": 2, "rps_burst": 1}, 1),
        ({"rpm": 100, "rpm_burst": 2}, 1),
        ({"tpm": 6000, "tpm_burst": 60}, 20),
    ],
)
def test_a_wait_suffices_and_less_does_not(
    limited: Gateway,
    admin: Admin,
    engine: ScriptedUpstream,
    limits: dict[str, int],
    cap: int,
) -> None:
    """To the millisecond that the header has, and what a request takes on its way."""
    key = admin.make(**limits)
    engine.script = lambda connection, _: connection.json(answer(20, cap))
    body = {"model": "tiny", "prompt": list(range(20)), "max_tokens": cap}

    def ask() -> tuple[float, Answer, float]:
        began = time.monotonic()
        got = limited.call(COMPLETIONS, body, key=key.secret)
        limited.wait_idle()
        return began, got, time.monotonic()

    rounds = 0
    while rounds < 3:
        began, got, ended = ask()
        if got.status == 200:
            continue
        wait_s = int(got.header("retry-after-ms") or "") / 1000
        assert int(got.header("retry-after") or "") == max(1, -int(-wait_s // 1))
        # Until shortly before, all that is surely too early is refused, and costs nothing.
        while True:
            _, got, answered = ask()
            if answered > began + wait_s - SLACK_S:
                break
            assert got.status == 429
        time.sleep(max(0.0, ended + wait_s - time.monotonic()))
        if got.status == 429:
            assert ask()[1].status == 200
        rounds += 1


def test_a_cost_above_the_burst_is_another_error_at_once(
    limited: Gateway, admin: Admin, engine: ScriptedUpstream, sdk: Any
) -> None:
    key = admin.make(tpm=6000, tpm_burst=50)
    client = sdk(key).with_options(max_retries=5)
    labels = {"scope": "key", "dimension": "tokens"}
    before = limited.metric("forebay_limit_refusals_total", **labels)
    with pytest.raises(RateLimitError) as caught:
        client.completions.create(model="tiny", prompt=list(range(51)), max_tokens=1)
    after = limited.metric("forebay_limit_refusals_total", **labels)
    assert after == before + 1, "it did not try again"
    assert caught.value.code == "request_over_limit"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers
    client.completions.create(model="tiny", prompt=list(range(20)), max_tokens=1)


def test_the_sdk_waits_as_it_is_told(
    limited: Gateway, admin: Admin, engine: ScriptedUpstream, sdk: Any
) -> None:
    """With its own retries it comes through, and is refused once only."""
    key = admin.make(rps=1, rps_burst=1)
    client = sdk(key).with_options(max_retries=2)
    labels = {"scope": "key", "dimension": "requests"}
    before = limited.metric("forebay_limit_refusals_total", **labels)
    for _ in range(2):
        client.completions.create(model="tiny", prompt=[1], max_tokens=1)
    assert limited.metric("forebay_limit_refusals_total", **labels) == before + 1
    first, second = engine.requests
    assert second.at - first.at >= 0.99


def test_the_command_shows_what_headers_tell(
    limited: Gateway, admin: Admin, engine: ScriptedUpstream
) -> None:
    engine.script = lambda connection, _: connection.json(answer(20, 10))
    key = admin.make(rpm=1, rpm_burst=7, tpm=1, tpm_burst=1000)
    body = {"model": "tiny", "prompt": list(range(20)), "max_tokens": 10}
    got = limited.call(COMPLETIONS, body, key=key.secret)
    limited.wait_idle()
    environment = {**os.environ, "FOREBAY_ADMIN_KEY": admin.key}
    environment["DATABASE_URL"] = limited.database_url

    def show(*options: str) -> str:
        command = [sys.executable, "-m", "forebay.cli", "keys", "show", key.id, *options]
        return subprocess.run(
            [*command, "--url", limited.url], env=environment, capture_output=True, check=True
        ).stdout.decode()

    shown = json.loads(show("--json"))["live"]
    remaining = {
        entry["dimension"]: entry["remaining"] for entry in shown if entry["scope"] == "key"
    }
    assert remaining == {
        "requests": int(got.header("x-ratelimit-remaining-requests") or ""),
        "tokens": int(got.header("x-ratelimit-remaining-tokens") or ""),
    }
    assert re.search(r"requests +minute +1 +6 ", show())

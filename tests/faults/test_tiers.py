"""A tier that dies, comes back, or has to be started first: what its clients see of it.

`FOREBAY_TEST_EXACT=1` holds the times of the promises on a machine that does nothing else;
`FOREBAY_TEST_COLD_S=30` has engines take as long to start as real ones.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.admin import Admin
from tests.support.many import Got, all_of, ask
from tests.support.ports import closed_port
from tests.support.processes import Engine, Gateway, Key
from tests.support.wait import until
from tests.support.wire import CHAT, chat, request

EXACT = os.environ.get("FOREBAY_TEST_EXACT") == "1"
SWITCH_S = 0.05 if EXACT else 0.5
"""From the connect error to tier 1's answer, without what tier 1 takes itself."""
BACK_S = 10.0
COLD_S = float(os.environ.get("FOREBAY_TEST_COLD_S", "3"))
SPILL_S = 2.0 if COLD_S > 10 else 0.5
SPILLED_S = SPILL_S + (1.0 if EXACT else 4.0)
CLIENTS = 100
NAMES = ("gpu-a", "gpu-b", "gpu-c")
MANAGED = {"kind": "openai", "api_key": "sk-sim"}


class Place:
    """An engine at an address that stays, dead or alive."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        self.name = name
        self.port = closed_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder / name
        self._options = ("--model", "sim", "--port", str(self.port), "--warmup", "0", *options)
        self._lives = 0
        self._engine: Engine | None = None

    def begin(self, *options: str) -> None:
        """Start, and wait until its address is known."""
        self._lives += 1
        self._engine = Engine(self._folder / str(self._lives), *self._options, *options)
        self._engine.start()

    def die(self) -> None:
        """SIGKILL."""
        if self._engine is not None and self._engine.popen is not None:
            self._engine.popen.send_signal(signal.SIGKILL)
            self._engine.popen.wait()


@contextmanager
def house(
    folder: Path, database_url: str, kind: str, **upstream: Any
) -> Iterator[tuple[Gateway, list[Place], Place]]:
    """A gateway over three places, none of them alive, and a provider behind them."""
    common = ("--decode-rate", "1000", "--health-delay", "0")
    places = [Place(name, folder, *common, "--kind", kind) for name in NAMES]
    provider = Place("managed", folder, *common, "--kind", "openai", "--api-key", "sk-sim")
    settings = {"kind": kind, "probe": {"interval": 0.3, "timeout": 0.3}, **upstream}
    base = {place.name: {**settings, "url": place.url} for place in places}
    own = [{"upstream": place.name, "model": "sim"} for place in places]
    managed = {"upstream": "managed", "model": "sim", "tier": 1}
    waits = {"first_byte": 10, "idle": 5, "total": 90}
    config = {
        "upstreams": {**base, "managed": {**MANAGED, "url": provider.url}},
        "models": {
            "both": {"targets": [*own, managed], "timeouts": waits},
            "own": {"targets": own, "timeouts": waits},
        },
    }
    gateway = Gateway(folder / "gateway", config, database_url)
    try:
        provider.begin()
        yield gateway, places, provider
    finally:
        if gateway.popen is not None:
            assert gateway.stop() == 0, gateway.log()
        for place in [*places, provider]:
            place.die()


def served(gateway: Gateway, key: Key, model: str = "both") -> tuple[str, float]:
    """By which upstream one request was served, and how long it took, seconds."""
    began = time.monotonic()
    answer = gateway.call(CHAT, chat(model), key=key.secret)
    took_s = time.monotonic() - began
    assert answer.status == 200, answer.body
    return str(gateway.usage_of(answer)["upstream"]), took_s


def standing(admin: Admin) -> dict[str, dict[str, Any]]:
    """How each upstream stands."""
    return {entry["name"]: entry for entry in admin.send("GET", "/upstreams")["data"]}


def test_a_tier_that_dies_and_comes_back(tmp_path: Path, database_url: str) -> None:
    outlier = {"consecutive": 1, "base_ejection": 1, "max_ejection": 2, "max_ejection_percent": 100}
    settings = {"outlier": outlier, "slow_start": 2}
    with house(tmp_path, database_url, "sglang", **settings) as (gateway, places, _):
        for place in places:
            place.begin()
        gateway.start()
        key, admin = gateway.key(), Admin(gateway)
        until(lambda: served(gateway, key)[0] in NAMES, "tier 0 serves")
        usual_s = min(served(gateway, key)[1] for _ in range(5))
        for place in places:
            place.die()
        upstream, took_s = served(gateway, key)
        assert upstream == "managed"
        assert took_s - usual_s < SWITCH_S, f"{took_s:.3f} s, {usual_s:.3f} s in the calm"

        for place in places:
            place.begin()
        began = time.monotonic()
        shares: list[float] = []
        seen: list[str] = []
        while time.monotonic() - began < BACK_S:
            seen.append(served(gateway, key)[0])
            shares += [standing(admin)[name]["share"] for name in NAMES]
            if len(seen) >= 20 and set(seen[-20:]) == set(NAMES):
                break
        assert set(seen[-20:]) <= set(NAMES), f"after {BACK_S:g} s: {seen[-20:]}"
        assert min(shares) < 1.0, "it comes back slowly"


@pytest.mark.parametrize("kind", ["sglang", "tgi"])
def test_a_cold_start_under_waiting_clients(tmp_path: Path, database_url: str, kind: str) -> None:
    cold = {"hold": 60, "spill_after": SPILL_S, "keep_alive": 0.5}
    with house(tmp_path, database_url, kind, cold=cold) as (gateway, places, _):
        gateway.start()
        key = gateway.key()
        for place in places:
            place.begin("--cold", str(COLD_S))
        spilled = storm(gateway, key, "both")
        assert [got.status for got in spilled] == [200] * CLIENTS
        waits = sorted(got.at - got.began for got in spilled)
        assert waits[-1] < SPILLED_S, f"the last after {waits[-1]:.1f} s"
        held = storm(gateway, key, "own")
        assert [got.status for got in held] == [200] * CLIENTS
        for got in [*spilled, *held]:
            assert b"data: [DONE]" in got.body
            assert text(got) == " Hello there, this is a scripted answer."
        gateway.wait_idle()
        rows = gateway.usage(2 * CLIENTS)
        assert {row["outcome"] for row in rows} == {"ok"}
        by = {row["upstream"] for row in rows if row["model_asked"] == "both"}
        assert "managed" in by
        assert {row["upstream"] for row in rows if row["model_asked"] == "own"} <= set(NAMES)


def storm(gateway: Gateway, key: Key, model: str) -> list[Got]:
    """CLIENTS streams at once, each to its end."""
    data = request(CHAT, chat(model, stream=True), key=key.secret, close=True)
    return all_of([ask(gateway.port, data) for _ in range(CLIENTS)], CLIENTS)


def text(got: Got) -> str:
    """What a stream says; its framing is chunked, its comments are passed over."""
    found = ""
    for line in got.body.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                found += choice["delta"].get("content") or ""
    return found

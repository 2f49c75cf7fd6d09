"""The script on a real Valkey: the replies of its model, expiry, and what a cluster needs."""

import json
import re
from pathlib import Path
from typing import Any

import redis
from forebay.limits.store import SCRIPT

from tests.support.valkey import Valkey

RECORDED = Path(__file__).parents[1] / "data" / "leases.json"
RATE = ["r", "600", "60000000000", "100"]


def on_a_clock_of_the_test() -> str:
    """The script with the time, microseconds, as its last argument."""
    text, count = re.subn(
        r"local time = .*\nlocal now = .*\n", "local now = tonumber(ARGV[#ARGV])\n", SCRIPT
    )
    assert count == 1
    return text


def rate(*, owed: int = 0, returned: int = 0, want: int = 0, known: int = 0) -> list[str]:
    """Arguments for a limit of 600 a minute with a burst of 100."""
    return [*RATE, *map(str, (owed, returned, want, 0, 1, known, 0))]


def test_it_answers_as_its_model(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        script = client.register_script(on_a_clock_of_the_test())
        calls: list[dict[str, Any]] = json.loads(RECORDED.read_text())
        for i, one in enumerate(calls):
            args = [one["me"], *one["args"], one["at_us"]]
            assert script(one["keys"], args) == one["reply"], f"call {i}"


def test_a_limit_is_forgotten_once_it_is_full_again(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        script = client.register_script(SCRIPT)
        assert script(["fb:{a}:x"], ["me", *rate(want=5)]) == [5, 95, 0, 0]
        # 100 come back in 10 s; twice that.
        assert 19_000 < client.pttl("fb:{a}:x") <= 20_000
        permits = ["h", "10", "10000", "1", "0", "0", "0", "2", "2", "1", "0"]
        assert script(["fb:{a}:y"], ["me", *permits]) == [2, 8, 0, 0]
        assert 9_000 < client.pttl("fb:{a}:y") <= 10_000


def test_a_lost_key_gives_no_second_burst(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        script = client.register_script(SCRIPT)
        script(["fb:{a}:x"], ["me", *rate(want=5)])
        client.flushall()
        units, level, retry_ms, _ = script(["fb:{a}:x"], ["me", *rate(want=5, known=1)])
        assert (units, level) == (0, 0)
        assert 1 <= retry_ms <= 100

"""Prompts go where their beginning is cached: families of conversations over four engines.

`FOREBAY_TEST_TURNS=1000` has as many turns of each family as the promise names.
"""

from __future__ import annotations

import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.many import all_of, ask
from tests.support.processes import Engine, Gateway
from tests.support.wire import CHAT, request

TURNS = int(os.environ.get("FOREBAY_TEST_TURNS", "60"))
FAMILIES = 10
AT_ONCE = 12
NAMES = ("gpu-a", "gpu-b", "gpu-c", "gpu-d")
HIT_SHARE = 0.95
IMBALANCE = 1.25
BLOCK_BYTES = 256
BYTES_PER_TOKEN = 4


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[Engine]]:
    options = ("--model", "sim", "--cache-report", "--decode-rate", "2000", "--health-delay", "0")
    made = [Engine(tmp_path / name, *options) for name in NAMES]
    for engine in made:
        engine.launch()
    for engine in made:
        engine.wait_ready()
    yield made
    for engine in made:
        engine.stop()


def bodies() -> list[dict[str, Any]]:
    """Every turn, in the order in which they are asked: families by chance, each in its order."""
    chance = random.Random(5)
    heads = [" ".join(f"{chance.getrandbits(32):08x}" for _ in range(250)) for _ in range(FAMILIES)]
    order = [family for family in range(FAMILIES) for _ in range(TURNS)]
    chance.shuffle(order)
    return [
        {
            "model": "sim",
            "messages": [
                {"role": "system", "content": heads[family]},
                {"role": "user", "content": f"turn {number}: {chance.getrandbits(64):x}"},
            ],
        }
        for number, family in enumerate(order)
    ]


def ideal(asked: list[dict[str, Any]]) -> int:
    """Tokens that one cache without bounds would have had, block by block as the simulator."""
    cache: set[int] = set()
    tokens = 0
    for body in asked:
        parts = [f"{m['role']}\n{m['content']}\n" for m in body["messages"]]
        data = ("".join(parts) + "assistant\n").encode()
        key, known, hits = 0, True, 0
        for start in range(0, len(data), BLOCK_BYTES):
            key = zlib.crc32(data[start : start + BLOCK_BYTES], key)
            known = known and key in cache
            cache.add(key)
            hits = min(start + BLOCK_BYTES, len(data)) if known else hits
        tokens += hits // BYTES_PER_TOKEN
    return tokens


def test_prefixes_stay_where_they_are_cached(
    tmp_path: Path, database_url: str, engines: list[Engine]
) -> None:
    upstreams = {
        name: {"kind": "sglang", "url": engine.url}
        for name, engine in zip(NAMES, engines, strict=True)
    }
    targets = [{"upstream": name, "model": "sim"} for name in NAMES]
    config = {
        "upstreams": upstreams,
        "models": {"sim": {"targets": targets, "policy": "prefix_affinity"}},
    }
    gateway = Gateway(tmp_path / "gateway", config, database_url)
    gateway.start()
    try:
        key = gateway.key()
        asked = bodies()
        work = [
            ask(gateway.port, request(CHAT, body, key=key.secret, close=True)) for body in asked
        ]
        assert {got.status for got in all_of(work, AT_ONCE)} == {200}
        rows = gateway.usage(len(asked))
    finally:
        assert gateway.stop() == 0, gateway.log()
    cached = sum(row["cached_tokens"] for row in rows)
    share = cached / ideal(asked)
    load = Counter(row["upstream"] for row in rows)
    mean = len(rows) / len(NAMES)
    print(f"{share:.1%} of ideal, {max(load.values()) / mean:.2f} x the mean: {dict(load)}")
    assert share >= HIT_SHARE
    assert max(load.values()) <= IMBALANCE * mean

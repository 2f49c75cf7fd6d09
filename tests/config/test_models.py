"""Targets, tiers, fallbacks: what is accepted, and what each mistake is answered with."""

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from forebay.config import (
    Config,
    ConfigError,
    Hedge,
    Retry,
    Shadow,
    Sticky,
    Target,
    json_schema,
    load,
    to_public,
)
from forebay.gateway import snapshot
from hypothesis import given
from hypothesis import strategies as st

FULL = """\
upstreams:
  gpu: {kind: sglang, url: "http://10.0.0.5:30000"}
  far: {kind: together, api_key: k}
models:
  small:
    aliases: [s]
    policy: prefix_affinity
    sticky: {by: user, ttl: 60}
    shadow: {upstream: far, percent: 2.5}
    retry: {attempts: 4, budget: 0.5, backoff: 0.1, max_backoff: 1, statuses: [409]}
    hedge: {after: 1.5}
    fallbacks: [other, l]
    context_fallback: l
    content_filter_fallback: other
    resume: true
    targets:
      - {upstream: gpu, weight: 3}
      - {upstream: gpu, model: new, canary_percent: 5}
      - {upstream: far, tier: 1, max_cost: 0.012345678, first_byte: 5, context_tokens: 8192}
  large:
    aliases: [l]
    fallbacks: [other]
    targets: [{upstream: far}]
  other:
    targets: [{upstream: far, model: x/y}]
"""


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "forebay.yaml"
    file.write_text(text)
    return load(file, {})


def test_all_of_it(tmp_path: Path) -> None:
    small = read(tmp_path, FULL).models["small"]
    assert small.targets == (
        Target(upstream="gpu", weight=3),
        Target(upstream="gpu", model="new", canary_percent=5),
        Target(
            upstream="far",
            tier=1,
            max_cost=Decimal("0.012345678"),
            first_byte=5,
            context_tokens=8192,
        ),
    )
    assert small.sticky == Sticky(by="user", ttl=60)
    assert small.shadow == Shadow(upstream="far", percent=2.5, max_in_flight=16)
    assert small.hedge == Hedge(after=1.5, max_percent=5)
    assert small.retry == Retry(
        attempts=4, budget=0.5, min_per_second=10, backoff=0.1, max_backoff=1, statuses=(409,)
    )


def test_as_the_core_gets_it(tmp_path: Path) -> None:
    built = msgspec.json.decode(snapshot.build(read(tmp_path, FULL), {}))
    small = built["models"][0]
    assert small["targets"][2] == {
        "upstream": "far",
        "model": "small",
        "tier": 1,
        "weight": 1,
        "canary_percent": None,
        "max_cost_nano": 12_345_678,
        "first_byte_s": 5,
        "context_tokens": 8192,
    }
    # Names are the models' own, whatever the file calls them.
    assert small["fallbacks"] == ["other", "large"]
    assert (small["context_fallback"], small["content_filter_fallback"]) == ("large", "other")
    assert small["sticky"] == {"by": "user", "ttl_s": 60}
    assert small["shadow"] == {
        "upstream": "far",
        "model": "small",
        "percent": 2.5,
        "max_in_flight": 16,
    }
    assert small["hedge"] == {"after_s": 1.5, "max_percent": 5}
    assert small["retry"] == {
        "attempts": 4,
        "budget": 0.5,
        "min_per_second": 10,
        "backoff_s": 0.1,
        "max_backoff_s": 1,
        "on": [409],
    }
    assert (small["resume"], small["policy"]) == (True, "prefix_affinity")


def test_what_nobody_asked_for_is_off(tmp_path: Path) -> None:
    built = msgspec.json.decode(snapshot.build(read(tmp_path, FULL), {}))
    other = built["models"][2]
    for name in ("sticky", "shadow", "hedge", "context_fallback", "content_filter_fallback"):
        assert other[name] is None
    assert (other["resume"], other["fallbacks"], other["policy"]) == (False, [], "round_robin")


def test_the_core_takes_it(tmp_path: Path) -> None:
    from forebay._core import Core

    core = Core()
    try:
        core.configure(snapshot.build(read(tmp_path, FULL), {}))
    finally:
        core.close()


MISTAKES = [
    # replaced, by, line, field, part of the reason
    ("weight: 3", "weight: 0", 17, "targets[0].weight", ">= 1"),
    ("weight: 3", "tier: 256", 17, "targets[0].tier", "<= 255"),
    ("canary_percent: 5", "canary_percent: 101", 18, "targets[1].canary_percent", "<= 100"),
    ("weight: 3", "canary_percent: 95.5", 18, "targets[1].canary_percent", "100.5 %"),
    ("0.012345678", "0.0123456789", 19, "targets[2].max_cost", "9 decimal places"),
    ("0.012345678", "-1", 19, "targets[2].max_cost", "0 to 1000000"),
    ("0.012345678", ".inf", 19, "targets[2].max_cost", "decimal"),
    ("context_tokens: 8192", "context_tokens: 0", 19, "targets[2].context_tokens", ">= 1"),
    ("policy: prefix_affinity", "policy: fastest", 7, "policy", "choose from round_robin"),
    ("by: user", "by: address", 8, "sticky.by", "choose from session, user, key"),
    ("upstream: far, percent", "upstream: gone, percent", 9, "shadow.upstream", "known: gpu, far"),
    ("percent: 2.5", "percent: 101", 9, "shadow.percent", "<= 100"),
    ("attempts: 4", "attempts: 0", 10, "retry.attempts", ">= 1"),
    ("[409]", "[200]", 10, "retry.statuses[0]", ">= 400"),
    ("max_backoff: 1", "max_backoff: 0.01", 10, "retry.max_backoff", "at least backoff"),
    ("after: 1.5", "after: 0", 11, "hedge.after", "> 0"),
    ("fallbacks: [other, l]", "fallbacks: [other, m]", 12, "fallbacks[1]", "no model named 'm'"),
    ("fallbacks: [other, l]", "fallbacks: [s]", 12, "fallbacks[0]", "small -> small"),
    ("context_fallback: l", "context_fallback: x", 13, "context_fallback", "known: small, large"),
    ("filter_fallback: other", "filter_fallback: q", 14, "content_filter_fallback", "no model"),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "reason"), MISTAKES)
def test_mistakes(tmp_path: Path, old: str, new: str, line: int, field: str, reason: str) -> None:
    assert old in FULL
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, FULL.replace(old, new, 1))
    assert (caught.value.field, caught.value.line) == (f"models.small.{field}", line)
    assert reason in caught.value.reason


def test_some_target_has_tier_0(tmp_path: Path) -> None:
    text = FULL.replace("targets: [{upstream: far}]", "targets: [{upstream: far, tier: 1}]")
    with pytest.raises(ConfigError, match=r"models\.large\.targets: no target of tier 0"):
        read(tmp_path, text)


def test_a_way_that_leads_back(tmp_path: Path) -> None:
    text = FULL.replace("targets: [{upstream: far, model: x/y}]", "fallbacks: [s]\n    targets: []")
    text = text.replace("targets: []", "targets: [{upstream: far}]")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.field == "models.other.fallbacks[0]"
    assert caught.value.reason == "leads back: small -> other -> small"


def test_ways_of_different_kinds_may_cross(tmp_path: Path) -> None:
    text = FULL.replace(
        "targets: [{upstream: far, model: x/y}]",
        "context_fallback: small\n    targets: [{upstream: far}]",
    )
    assert read(tmp_path, text).models["other"].context_fallback == "small"


@given(st.integers(0, 10**15))
def test_every_cost_is_exact(tmp_path_factory: pytest.TempPathFactory, nano: int) -> None:
    text = f"{nano // 10**9}.{nano % 10**9:09d}"
    folder = tmp_path_factory.getbasetemp()
    config = read(folder, FULL.replace("0.012345678", text))
    built = msgspec.json.decode(snapshot.build(config, {}))
    assert built["models"][0]["targets"][2]["max_cost_nano"] == nano


def test_costs_are_shown_and_described_as_they_are_written(tmp_path: Path) -> None:
    shown = to_public(read(tmp_path, FULL))["models"]["small"]["targets"][2]["max_cost"]
    assert shown == "0.012345678"
    described = json_schema()["$defs"]["Target"]["properties"]["max_cost"]["anyOf"][0]
    assert described["type"] == ["string", "number"]

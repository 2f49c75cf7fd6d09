"""Sizes against what others published: files of weights, and capacities that SGLang logged."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.size_support import NAMES, reported, rows, weights

EXACT = {
    "llama-3.1-8b",
    "llama-3.1-70b",
    "qwen2.5-7b",
    "qwq-32b",
    "qwen3-14b",
    "qwen3-30b-a3b",
    "mixtral-8x7b",
    "gemma-2-9b",
    "phi-3-mini-4k",
    "gpt-oss-20b",
    "gpt-oss-120b",
}


@pytest.mark.parametrize("row", rows("published"), ids=lambda row: row["config"])
def test_weights_are_as_published(row: dict[str, Any]) -> None:
    found = weights(row["config"]).computed_bytes(mtp=True)
    if row["config"] in EXACT:
        assert round(found) == row["bytes"]
    assert found == pytest.approx(row["bytes"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # Model cards; DeepSeek's and Qwen's counts of what is active have the input embedding in
        # them, OpenAI's have not.
        ("deepseek-v3", 671e9, 37e9 - 0.9e9),
        ("qwen3-30b-a3b", 30.5e9, 3.3e9 - 0.3e9),
        ("qwen3-235b-a22b-fp8", 235e9, 22e9 - 0.6e9),
        ("mixtral-8x7b", 46.7e9, 12.9e9 - 0.1e9),
        ("gpt-oss-20b", 20.9e9, 3.6e9),
        ("gpt-oss-120b", 116.8e9, 5.13e9),
        ("llama-3.1-405b-fp8", 405e9, 405e9 - 2.1e9),
    ],
)
def test_parameters_are_as_model_cards_say(name: str, total: float, active: float) -> None:
    model = weights(name).model
    assert model.parameters == pytest.approx(total, rel=0.01)
    assert model.active_parameters == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize(
    "row", rows("capacity"), ids=lambda row: f"{row['config']}@{row['device']}"
)
def test_capacity_is_what_sglang_logged(row: dict[str, Any]) -> None:
    found = reported(row)
    assert found.tokens == pytest.approx(row["tokens"], rel=0.15)
    if row["weights_gib"] is not None:
        assert found.rank_bytes / 2**30 == pytest.approx(row["weights_gib"], rel=0.05)


@pytest.mark.parametrize(
    "row", rows("capacity"), ids=lambda row: f"{row['config']}@{row['device']}"
)
def test_capacity_without_the_logs_free_memory(row: dict[str, Any]) -> None:
    assert reported(row, measured_free=False).tokens == pytest.approx(row["tokens"], rel=0.15)


@pytest.mark.parametrize(
    ("name", "dtype", "tp", "pool_gib", "tokens"),
    [
        # sgl-project/sglang pull 11309: DeepSeek-V3.2 with the indexer's keys counted.
        ("deepseek-v3.2-exp", "fp8", 1, 43.67, 975424),
        # vllm-project/vllm issue 21348: "Available KV cache memory: 8.11 GiB".
        ("qwen3-235b-a22b-fp8", "bf16", 4, 8.11, 178880),
        # a log of DeepSeek-V3 with an 8-bit cache: 524288 tokens in 17.16 GB.
        ("deepseek-v3", "fp8", 8, 17.16, 524288),
    ],
)
def test_tokens_of_a_known_pool(
    name: str, dtype: str, tp: int, pool_gib: float, tokens: int
) -> None:
    from forebay_engine.size.kv import Kv

    cache = Kv(weights(name).model, dtype)
    assert cache.capacity(pool_gib * 2**30, tp) == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize("row", rows("loaded"), ids=lambda row: row["config"])
def test_what_engines_say_that_they_loaded(row: dict[str, Any]) -> None:
    padded = row["config"] == "gpt-oss-120b"
    found = weights(row["config"]).rank_bytes(row["tp"]) / 2**30
    assert found == pytest.approx(row["gib"], rel=0.06 if padded else 0.03)


def test_every_config_is_read() -> None:
    assert len(NAMES) >= 20
    for name in NAMES:
        assert weights(name).model.parameters > 0

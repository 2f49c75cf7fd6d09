"""Modules that a quantised checkpoint leaves as they were."""

from __future__ import annotations

import time
from typing import Any

import pytest
from forebay_engine.size import modules, quantization
from forebay_engine.size.fields import Fields
from forebay_engine.size.layers import Part
from forebay_engine.size.weights import Weights

from tests.engine.size_support import weights

MLP = 4096 * 14336  # entries of one projection of Llama 3.1 8B
FP8 = 9_084_076_032  # its bytes where only embedding, head and norms stay (with scales)


def loaded(spared: Any, name: str = "llama-3.1-8b") -> Weights:
    model = weights(name).model
    said = {"quant_method": "fp8", "ignored_layers": spared}
    fields = Fields({"quantization_config": said}, "config.json")
    return Weights(model, quantization.of_checkpoint(fields, model))


def spared(pattern: Any, name: str = "llama-3.1-8b") -> dict[tuple[Part, str], float]:
    found = loaded(pattern, name).scheme
    kept = {(part, module): share for part, module, share in found.kept}
    gone = quantization.LINEAR - found.parts
    return kept | {(part, ""): 1.0 for part in gone}


def test_one_projection_is_not_its_whole_part() -> None:
    none, down = loaded([]), loaded(["re:.*down_proj"])
    more = down.total_bytes - none.total_bytes
    assert more == 32 * (MLP - 4 * 4096)  # one byte more each, without a scale for each output
    assert down.total_bytes / 1e9 == pytest.approx(10.97, abs=0.02)
    assert down.by_part()[Part.DENSE] == 32 * (4 * MLP + 2 * 4 * 14336)


def test_one_layers_projection_is_one_of_its_kind() -> None:
    one = loaded(["re:.*lm_head", "model.layers.0.mlp.gate_proj"])
    assert one.scheme.kept == ((Part.DENSE, "gate_proj", 1 / 32),)
    assert one.total_bytes - loaded([]).total_bytes == MLP - 4 * 14336


@pytest.mark.parametrize(
    ("pattern", "modules_of_one_part"),
    [
        ("self_attn", {(Part.ATTENTION, ""): 1}),
        ("model.layers.*.self_attn", {(Part.ATTENTION, ""): 1}),
        ("*self_attn*", {(Part.ATTENTION, ""): 1}),
        ("re:.*self_attn.*", {(Part.ATTENTION, ""): 1}),
        ("model.layers.*.mlp", {(Part.DENSE, ""): 1}),
        ("mlp.gate", {}),
        ("lm_head", {}),
        ("re:visual.*", {}),
        ("model.layers.32.mlp", {}),
        ("re:.*layers\\.(0|1)\\.mlp\\.down_proj$", {(Part.DENSE, "down_proj"): 2 / 32}),
        ("re:.*mlp.(?:gate|up)_proj", {(Part.DENSE, m): 1 for m in ("gate_proj", "up_proj")}),
        ("re:.*\\.layers\\.\\d+\\.mlp\\.up_proj", {(Part.DENSE, "up_proj"): 1}),
        ("model.layers.1*.o_proj", {(Part.ATTENTION, "o_proj"): 11 / 32}),
        (
            "model.layers.3.self_attn.qkv_proj",
            {(Part.ATTENTION, f"{m}_proj"): 1 / 32 for m in "qkv"},
        ),
        ("language_model.model.layers.0.mlp.down_proj", {(Part.DENSE, "down_proj"): 1 / 32}),
        ("model.layers.7", "all"),
    ],
)
def test_what_a_pattern_means(pattern: str, modules_of_one_part: Any) -> None:
    found = spared(pattern)
    if modules_of_one_part == "all":
        assert set(found.values()) == {1 / 32}
        assert len(found) == 7
    else:
        gone = {(part, ""): 1.0 for part in (Part.EXPERT, Part.SHARED, Part.INDEXER)}
        assert {key: share for key, share in found.items() if key not in gone} == (
            modules_of_one_part
        )


def test_every_name_of_a_part_is_the_part() -> None:
    named = [f"model.layers.{n}.self_attn.{m}_proj" for n in range(32) for m in "qkvo"]
    assert Part.ATTENTION not in loaded(named).scheme.parts
    assert loaded(named).scheme.kept == ()


def test_experts_dense_and_shared_are_told_apart() -> None:
    deep = "deepseek-v3"
    assert spared("re:.*down_proj", deep).keys() >= {
        (Part.DENSE, "down_proj"),
        (Part.EXPERT, "down_proj"),
        (Part.SHARED, "down_proj"),
    }
    # Three layers are dense, 58 have experts.
    assert spared("model.layers.0.mlp.down_proj", deep) == {(Part.DENSE, "down_proj"): 1 / 3}
    assert spared("model.layers.5.mlp.shared_experts", deep) == {
        (Part.SHARED, module): 1 / 58 for module in ("gate_proj", "up_proj", "down_proj")
    }
    one = spared("model.layers.5.mlp.experts.7.up_proj", deep)
    assert one == {(Part.EXPERT, "up_proj"): pytest.approx(1 / 58 / 256)}
    assert spared("model.layers.2.self_attn.kv_a_proj_with_mqa", deep) == {
        (Part.ATTENTION, "kv_a_proj_with_mqa"): pytest.approx(1 / 61)
    }


@pytest.mark.parametrize(
    "pattern", ["re:.*layers\\.[0-3]\\..*", "re:(?!x).*", "re:(((a)))", "x" * 1001]
)
def test_what_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"quantization_config: ignored_layers: .*say --weights"):
        loaded([pattern])


def test_a_strange_expression_takes_no_time() -> None:
    began = time.process_time()
    loaded(["re:" + ".*a" * 300, *(f"model.layers.{n}.mlp.x{n}" for n in range(32))])
    assert time.process_time() - began < 5
    with pytest.raises(ValueError, match="too many alternatives"):
        modules.globs("re:" + "(a|b)" * 40)


def test_a_list_of_many_thousand_is_read_or_refused() -> None:
    qwen = "qwen3-235b-a22b-fp8"
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{module}_proj"
        for layer in range(94)
        for expert in range(0, 128, 8)
        for module in ("gate", "up", "down")
    ]
    assert {share for *_, share in loaded(names, qwen).scheme.kept} == {1 / 8}
    with pytest.raises(ValueError, match="too many modules"):
        loaded([f"re:.*strange{n}" for n in range(20_000)])

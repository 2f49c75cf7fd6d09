"""Reading `config.json`, what quantisers write into it, and the files beside it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from forebay_engine.size import quantization, source
from forebay_engine.size.fields import Fields
from forebay_engine.size.layers import Matrix, Part
from forebay_engine.size.plan import undivided
from forebay_engine.size.reserve import vision_factor

from tests.engine.size_support import CONFIGS, read, weights


def llama(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
    return {key: value for key, value in (values | changes).items() if value != "drop"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architectures: MambaForCausalLM is not known"),
        ({"architectures": "drop"}, "architectures: missing"),
        ({"hidden_size": "drop"}, "hidden_size: missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: a whole number of at least 1"),
        ({"vocab_size": 1.5}, "vocab_size: a whole number"),
        ({"hidden_size": 4095}, "hidden_size: no multiple of num_attention_heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads: does not divide"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: true or false"),
        ({"torch_dtype": "int3"}, "torch_dtype: int3"),
        (
            {
                "architectures": ["GptOssForCausalLM"],
                "sliding_window": 128,
                "layer_types": ["linear_attention"] * 32,
            },
            "layer_types: linear_attention: not computed here",
        ),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8},
            "num_experts_per_tok: missing",
        ),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json") as error:
        read(llama(**changes))
    assert says in str(error.value)


def test_a_multimodal_model_is_its_text_part() -> None:
    inner = llama()
    inner.pop("architectures")
    outer = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": inner,
        "vision_config": {"hidden_size": 1024},
        "torch_dtype": "float16",
    }
    found = read(outer)
    assert found.parameters == read(llama()).parameters
    assert found.notes == ("the vision tower is not counted (--other-params)",)
    assert found.vision == (24, 1024)
    assert vision_factor(None) == 1
    assert vision_factor(found.vision) == 0.95
    assert vision_factor((1000, 4096)) == pytest.approx(0.95 * 0.8)


def test_hybrid_windows_keep_less() -> None:
    oss = weights("gpt-oss-20b").model
    assert [layer.window for layer in oss.layers[:4]] == [128, None, 128, None]
    gemma = weights("gemma-3-27b").model
    assert sum(layer.window is None for layer in gemma.layers) == 10
    assert weights("gemma-2-9b").model.layers[0].window == 4096


def test_the_first_layers_of_deepseek_are_dense() -> None:
    model = weights("deepseek-v3").model
    assert len(model.expert_layers) == 58
    assert model.matrices(mtp=True) != model.matrices()


def scheme(name: str = "llama-3.1-8b", **values: Any) -> quantization.Scheme:
    fields = Fields({"quantization_config": values}, "config.json")
    return quantization.of_checkpoint(fields, weights(name).model)


WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}


@pytest.mark.parametrize(
    ("values", "name", "arithmetic"),
    [
        ({"quant_method": "fp8"}, "fp8", "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block", "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", None),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", None),
        ({"quant_method": "mxfp4"}, "mxfp4", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "fp4"),
        ({"quant_algo": "FP8"}, "fp8", "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb-4bit", None),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": WEIGHTS}}},
            "int4",
            None,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "g": {
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                        "input_activations": {"num_bits": 8},
                    }
                },
            },
            "fp8",
            "fp8",
        ),
    ],
)
def test_what_quantisers_write(values: dict[str, Any], name: str, arithmetic: str | None) -> None:
    found = scheme(**values)
    assert (found.name, found.arithmetic) == (name, arithmetic)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"quant_method": "hqq"}, "quant_method: hqq"),
        ({}, "quant_method: missing"),
        ({"quant_method": "awq", "group_size": 128}, "bits or w_bit: missing"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8"}, "quant_algo: W4A8"),
        ({"quant_method": "compressed-tensors"}, "config_groups: missing"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {}}},
            "config_groups: g: weights: missing",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"weights": WEIGHTS},
                    "b": {"weights": WEIGHTS | {"num_bits": 8}},
                },
            },
            "config_groups: weights that differ",
        ),
        (
            {"quant_method": "fp8", "ignore": [r"re:.*layers\.[01]\..*"]},
            "ignore: re:.*layers",
        ),
        ({"quant_method": "fp8", "weight_block_size": [1, 2]}, "weight_block_size"),
    ],
)
def test_what_is_not_understood_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="quantization_config") as error:
        scheme(**values)
    assert says in str(error.value)


def test_bytes_of_a_group_of_four_bits() -> None:
    found = quantization.named("awq").bytes_of(Matrix(Part.DENSE, 256, 1024), 2)
    assert found == 256 * 1024 / 2 + 256 * 8 * (2 + 0.5)
    kept = quantization.named("awq").bytes_of(Matrix(Part.HEAD, 256, 1024), 2)
    assert kept == 256 * 1024 * 2


def test_an_expert_cannot_be_cut_through_its_blocks() -> None:
    loaded = weights("qwen3-235b-a22b-fp8")
    assert undivided(loaded.model, loaded.scheme, 4) is None
    why = undivided(loaded.model, loaded.scheme, 8)
    assert why == "experts of 1536 over 8 GPUs cuts blocks of 128"
    assert undivided(loaded.model, quantization.named("bf16"), 8) is None
    qwen = weights("qwen2.5-7b")
    assert undivided(qwen.model, qwen.scheme, 8) == "28 heads do not divide by 8"


def test_what_older_tools_write_beside(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama()))
    model = read(llama())
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    assert quantization.of_checkpoint(source.config(tmp_path), model).name == "gptq"
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text('{"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}')
    assert quantization.of_checkpoint(source.config(tmp_path), model).name == "nvfp4"
    beside.write_text("{}")
    with pytest.raises(ValueError, match=r"hf_quant_config\.json: quantization: missing"):
        source.config(tmp_path)
    beside.unlink()
    (tmp_path / "config.json").rename(tmp_path / "params.json")
    with pytest.raises(ValueError, match=r"params\.json is not read"):
        source.config(tmp_path)


def test_sizes_of_files(tmp_path: Path) -> None:
    assert source.checkpoint_bytes(tmp_path) is None
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    whole = struct.pack("<Q", len(header)) + header + b"\0" * 4
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert source.checkpoint_bytes(tmp_path) == 4
    (tmp_path / "consolidated.safetensors").write_bytes(whole)
    assert source.checkpoint_bytes(tmp_path) == 4
    index = tmp_path / source.INDEX
    index.write_text('{"metadata": {"total_size": 123.0}}')
    assert source.checkpoint_bytes(tmp_path) == 123
    index.write_text('{"metadata": {"total_size": -1}}')
    with pytest.raises(ValueError, match="metadata: total_size"):
        source.checkpoint_bytes(tmp_path)
    index.unlink()
    (tmp_path / "model-2.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"x")
    with pytest.raises(ValueError, match=r"model-2\.safetensors: no safetensors file"):
        source.checkpoint_bytes(tmp_path)

"""Forms that configs and flags may have, and what of a checkpoint decides about the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forebay_engine.cli import main

from tests.engine.size_support import CONFIGS, read

LLAMA = CONFIGS / "llama-3.1-8b.json"
NVFP4 = {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
V3 = [
    *("--layers", "61", "--hidden", "7168", "--intermediate", "2048", "--heads", "128"),
    *("--vocab", "129280", "--experts", "256", "--experts-per-token", "8"),
    *("--shared-experts", "1", "--dense-layers", "3", "--dense-intermediate", "18432"),
    *("--kv-rank", "512", "--q-rank", "1536", "--nope-dim", "128", "--rope-dim", "64"),
    *("--value-dim", "128"),
]
NUMBERS = [
    *("--layers", "32", "--hidden", "4096", "--intermediate", "14336"),
    *("--heads", "32", "--kv-heads", "8", "--vocab", "128256"),
]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    main(["size", *words, "--json", "--gpu", "H100"])
    return json.loads(capsys.readouterr().out)


def folder(path: Path, **changes: Any) -> Path:
    values = json.loads(LLAMA.read_text()) | changes
    kept = {key: value for key, value in values.items() if value != "drop"}
    (path / "config.json").write_text(json.dumps(kept))
    return path


def test_a_folder_and_its_config_are_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder(tmp_path) / "hf_quant_config.json").write_text(json.dumps({"quantization": NVFP4}))
    whole = run(capsys, str(tmp_path))
    assert whole["weights"]["name"] == "nvfp4"
    assert run(capsys, str(tmp_path / "config.json")) == whole
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "config.json") == run(capsys, ".") == whole
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 4
    )
    assert run(capsys, "config.json")["weights"]["bytes_checkpoint"] == 4
    # Another name is a file by itself.
    (tmp_path / "config.json").rename("other.json")
    assert run(capsys, "other.json")["weights"]["name"] == "bf16"


def test_a_byte_order_mark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + LLAMA.read_bytes())
    assert run(capsys, str(tmp_path))["model"]["parameters"] == 8_030_261_248


def test_a_string_is_a_list_of_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = {"quant_method": "fp8", "ignored_layers": ["self_attn"]}
    listed = run(capsys, str(folder(tmp_path, quantization_config=said)))
    said["ignored_layers"] = "self_attn"  # type: ignore[assignment]
    alone = folder(tmp_path, quantization_config=said, architectures="LlamaForCausalLM")
    assert run(capsys, str(alone)) == listed
    assert "attention" not in listed["weights"]["quantised"]


@pytest.mark.parametrize(
    ("architecture", "context"),
    [("Gemma3ForCausalLM", 131072), ("LlamaForCausalLM", 2048), ("Qwen3ForCausalLM", 32768)],
)
def test_without_a_length_it_is_the_librarys(architecture: str, context: int) -> None:
    values = json.loads(LLAMA.read_text()) | {"sliding_window": 1024}
    values.pop("max_position_embeddings")
    assert read(values | {"architectures": [architecture]}).context == context


@pytest.mark.parametrize(
    ("said", "cache"),
    [
        ({"quant_method": "modelopt", **NVFP4, "kv_cache_quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", **NVFP4, "kv_cache_quant_algo": None}, "bf16"),
        ({"quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8}}, "fp8"),
        ({"quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 4}}, "bf16"),
        ({"quant_method": "fp8", "kv_cache_quant_algo": "fp8"}, "fp8"),
        ({"quant_method": "fp8"}, "bf16"),
        *(
            (
                {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"g": {"weights": {"num_bits": 8, "strategy": "channel"}}},
                    "kv_cache_scheme": {"type": "float", "num_bits": 8, "strategy": strategy},
                },
                cache,
            )
            for strategy, cache in (("tensor", "fp8"), ("channel", "bf16"))
        ),
    ],
)
def test_the_cache_that_a_checkpoint_wants(
    said: dict[str, Any], cache: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(folder(tmp_path, quantization_config=said))
    found = run(capsys, path)
    assert found["kv"]["dtype"] == cache
    assert any("FP8 cache" in note for note in found["model"]["notes"]) is (cache == "fp8")
    assert run(capsys, path, "--kv-dtype", "bf16")["kv"]["dtype"] == "bf16"
    assert run(capsys, path, "--weights", "bf16")["kv"]["dtype"] == "bf16"


def test_deepseek_by_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    model = run(capsys, *V3)["model"]
    assert model["parameters"] / 1e9 == pytest.approx(671.0, abs=0.05)
    assert model["active_parameters"] / 1e9 == pytest.approx(36.6, abs=0.05)
    by_config = run(capsys, str(CONFIGS / "deepseek-v3.json"))["model"]
    biases = 58 * 256  # of routers, which no flag has
    assert by_config["parameters"] - model["parameters"] == biases


def test_numbers_have_no_longest_context(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, *NUMBERS, "--context", "200000")
    assert found["model"]["context"] is None
    assert found["asked"]["context"] == 200_000
    assert run(capsys, *NUMBERS)["asked"]["context"] == 8192

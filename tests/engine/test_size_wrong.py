"""Input that is wrong, impossible or hostile: one line that names the field, at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from forebay_engine.cli import main

from tests.engine.size_support import CONFIGS

LLAMA = str(CONFIGS / "llama-3.1-8b.json")
NUMBERS = [
    *("--layers", "32", "--hidden", "4096", "--intermediate", "14336"),
    *("--heads", "32", "--kv-heads", "8", "--vocab", "128256"),
]
EXPERTS = [*NUMBERS, "--experts", "8", "--experts-per-token", "2"]
DEVICE = "name=X,memory-mib=99999,bandwidth-gbs=100,bf16-tflops=1"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    began = time.process_time()
    with pytest.raises(SystemExit) as exit_:
        main(["size", *words])
    assert exit_.value.code == 2
    assert time.process_time() - began < 5
    return " ".join(capsys.readouterr().err.split())


def folder(path: Path, **changes: Any) -> Path:
    values = json.loads(Path(LLAMA).read_text()) | changes
    (path / "config.json").write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([LLAMA, "--free-gib", "inf"], "--free-gib: above 0"),
        ([LLAMA, "--free-gib", "nan"], "--free-gib: above 0"),
        ([LLAMA, "--free-gib", "1e300"], "at most 1e+06"),
        ([LLAMA, "--mem-fraction", "nan"], "--mem-fraction: above 0"),
        ([LLAMA, "--efficiency", "1e-320"], "--efficiency: above 0"),
        ([LLAMA, "--window-ratio", "nan"], "--window-ratio: above 0"),
        ([LLAMA, "--window-ratio", "0.5"], "--window-ratio: this model has no pool"),
        ([LLAMA, "--chunk", "9" * 23], "--chunk: at most 10,000,000"),
        ([LLAMA, "--batch", "9" * 23], "--batch: at most"),
        ([LLAMA, "--tp", "1000000000000"], "--tp: at most 1,024"),
        ([LLAMA, "--page", "99999999999"], "--page: at most"),
        ([LLAMA, "--graph-batch", "9" * 20], "--graph-batch: at most"),
        ([LLAMA, "--hourly", "H100=1e30"], "--hourly H100=1e30: GPU=PRICE"),
        ([LLAMA, "--hourly", "H100=9999999"], "--hourly H100=9999999: at least 0.000001"),
        ([LLAMA, "--hourly", "H100=nan"], "--hourly H100=nan"),
        ([LLAMA, "--hourly", "H100= 2_5"], "GPU=PRICE"),
        ([LLAMA, "--hourly", "h100=2.5", "--hourly", "H100=3"], "H100 has a price already"),
        ([LLAMA, "--other-params", "-9000000000"], "--other-params: at least 0"),
        ([LLAMA, "--tied"], "--tied: not together with MODEL"),
        ([LLAMA, "--weights", "mxfp4"], "--weights mxfp4: it quantises experts alone"),
        ([*NUMBERS, "--weights", "mxfp4"], "--weights mxfp4"),
        ([*NUMBERS, "--layers", "2000000000"], "--layers: at most 10,000"),
        ([*NUMBERS, "--layers", "-5"], "--layers: a number of a model must not be negative"),
        ([*NUMBERS, "--rope-dim", "64"], "--rope-dim: with --kv-rank"),
        ([*NUMBERS, "--q-rank", "64"], "--q-rank: with --kv-rank"),
        ([*NUMBERS, "--kv-rank", "512"], "--kv-heads: not with --kv-rank"),
        ([*NUMBERS, "--kv-heads", "32", "--kv-rank", "512"], "--rope-dim: needed"),
        (
            [*NUMBERS, "--kv-heads", "32", "--kv-rank", "512", "--rope-dim", "64"],
            "--nope-dim: needed",
        ),
        ([*NUMBERS, "--dense-intermediate", "64"], "--dense-intermediate: with --dense-layers"),
        (
            [*EXPERTS, "--dense-layers", "64", "--dense-intermediate", "64"],
            "--dense-layers: less than --layers",
        ),
        ([*NUMBERS, "--window-every", "2"], "--window-every: with --window"),
        ([*NUMBERS, "--other-params", "5"], "--other-params: with MODEL"),
        ([LLAMA, "--device", DEVICE.replace("100,", "nan,")], "bandwidth-gbs: at least"),
        (
            [LLAMA, "--device", "name=X,memory-mib=9999,bandwidth-gbs=inf,bf16-tflops=inf"],
            "--device: bandwidth-gbs: at least 0.001",
        ),
        ([LLAMA, "--device", DEVICE + ",bf16-tflops=2"], "bf16-tflops: given twice"),
        ([LLAMA, "--device", DEVICE + ",zz-tflops=2"], "--device: zz-tflops: unknown"),
        ([LLAMA, "--device", DEVICE + ",usable-mib=999999"], "usable-mib: at most memory-mib"),
        ([LLAMA, "--device", DEVICE.replace("X", "")], "--device: name: 1 to 64 printable"),
        ([LLAMA, "--device", DEVICE, "--device", DEVICE], "--device: name: X is there already"),
        (["/no\x1b[31mwhere"], "/no\\x1b[31mwhere: No such file"),
        (["/" + "x" * 5000], "File name too long"),
        (["/no\0where"], "MODEL"),
    ],
)
def test_options(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *words)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: at most 10,000"),
        ({"hidden_size": 10**15, "head_dim": 128}, "hidden_size: at most"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings: at most"),
        ({"torch_dtype": "\x1b[31mred"}, "torch_dtype: \\x1b[31mred"),
        (
            {
                "architectures": ["MixtralForCausalLM"],
                "num_local_experts": 8,
                "num_experts_per_tok": 10**6,
            },
            "num_experts_per_tok: at most the 8 experts",
        ),
        (
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
                "mlp_only_layers": [[]],
            },
            "mlp_only_layers: a list of whole numbers",
        ),
        ({"architectures": "Strange"}, "architectures: Strange is not known"),
        *(
            (
                {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}},
                "quantization_config: weight_block_size",
            )
            for block in ([0, 0], [None, None], ["a", "a"], [-128, -128], [True, True], 128)
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 10**15}},
            "quantization_config: bits: at most 32",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "ignored_layers": [1]}},
            "ignored_layers: a list of strings",
        ),
    ],
)
def test_fields(
    changes: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(capsys, str(folder(tmp_path, **changes)))
    assert says in said
    assert "config.json: " in said


@pytest.mark.parametrize("total", [-5.0, 0.0, 0, 1e300, 1.5, "16060522496", True])
def test_an_index_that_cannot_be(
    total: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index = {"metadata": {"total_size": total}}
    (folder(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index.json: metadata: total_size: " in refused(capsys, str(tmp_path))


def test_files_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = folder(tmp_path) / "model-00001-of-00002.safetensors"
    weights.symlink_to("nowhere")
    assert f"{weights.name}: No such file" in refused(capsys, str(tmp_path))
    weights.unlink()
    weights.mkdir()
    assert f"{weights.name}: Is a directory" in refused(capsys, str(tmp_path))
    weights.rmdir()
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "config.json: no JSON of a model: it is nested too deep" in refused(
        capsys, str(tmp_path)
    )
    (tmp_path / "config.json").write_text('{"a": NaN}')
    assert "config.json: no JSON" in refused(capsys, str(tmp_path))
    assert "/dev/zero: more than" in refused(capsys, "/dev/zero")


def test_an_unknown_method_can_be_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strange = folder(tmp_path, quantization_config={"quant_method": "hqq"})
    assert "quant_method: hqq" in refused(capsys, str(strange))
    assert main(["size", str(strange), "--weights", "int4", "--gpu", "H100"]) == 0


def test_the_largest_of_everything_is_computed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    huge = {"hidden_size": 10**9, "intermediate_size": 10**9, "vocab_size": 10**9}
    path = folder(tmp_path, **huge, num_hidden_layers=10_000, max_position_embeddings=10**9)
    slow = "name=slow,memory-mib=100000000,bandwidth-gbs=0.001,bf16-tflops=0.001"
    words = ["--device", slow, "--hourly", "slow=1000000", "--efficiency", "0.001"]
    for more in ([], ["--free-gib", "1000000", "--mem-fraction", "1"]):
        assert main(["size", str(path), *words, *more, "--batch", "1000000000"]) == 1
    capsys.readouterr()
    small = [LLAMA, "--free-gib", "1000000", "--mem-fraction", "1", "--tp", "1", *words]
    assert main(["size", *small, "--hourly", "h100=0.000001", "--gpu", "h100"]) == 0

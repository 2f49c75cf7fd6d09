"""The command, as it is typed."""

from __future__ import annotations

import json
import shutil
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


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["size", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_config_and_its_numbers_are_the_same_model(capsys: pytest.CaptureFixture[str]) -> None:
    by_file = run(capsys, LLAMA, "--gpu", "H100")
    by_hand = run(capsys, *NUMBERS, "--gpu", "h100")
    assert by_file["gpus"] == by_hand["gpus"]
    assert by_file["model"]["parameters"] == by_hand["model"]["parameters"] == 8_030_261_248


def test_what_is_missing_in_the_numbers_is_other(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, *NUMBERS, "--params", "9000000000", "--gpu", "H100")
    assert found["model"]["parameters"] == 9_000_000_000
    assert found["weights"]["by_part"]["other"] == 2 * (9_000_000_000 - 8_030_261_248)


def test_settings_of_a_server_give_its_capacity(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpu", "H100", "--tp", "1", "--mem-fraction", "0.88", "--free-gib", "78.81"]
    found = run(capsys, LLAMA, *words)["gpus"][0]
    assert found["max_total_num_tokens"] == pytest.approx(444_500, rel=0.01)
    halved = run(capsys, LLAMA, *words, "--kv-dtype", "fp8", "--page", "64")["gpus"][0]
    assert halved["max_total_num_tokens"] % 64 == 0
    assert halved["max_total_num_tokens"] == pytest.approx(2 * 444_500, rel=0.01)


def test_prices_are_exact_and_only_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, LLAMA, "--gpu", "H100", "--gpu", "L40S", "--hourly", "H100=2.50")
    priced, free = found["gpus"]
    rate = priced["decode_batch"]["tokens_per_s"]
    price = float(priced["decode_batch"]["price_per_million_out"])
    assert price == pytest.approx(2.5 * 1e6 / 3600 / rate, abs=1e-4)
    assert "price_per_million_in" not in free
    assert main(["size", LLAMA, "--gpu", "H100"]) == 0
    assert "price/M" not in capsys.readouterr().out


def test_files_beside_the_config_give_the_exact_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(LLAMA, tmp_path / "config.json")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"metadata": {"total_size": 16000000000}, "weight_map": {}}'
    )
    found = run(capsys, str(tmp_path), "--gpu", "H100")
    assert found["weights"]["bytes"] == found["weights"]["bytes_checkpoint"] == 16_000_000_000
    assert found["gpus"][0]["weight_bytes_per_gpu"] == 16_000_000_000
    # Loaded in 8 bits, the checkpoint is no longer the size, but still corrects it.
    small = run(capsys, str(tmp_path), "--gpu", "H100", "--weights", "fp8")
    assert small["weights"]["bytes"] < 9_200_000_000


def test_the_table_and_every_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", LLAMA, "--hourly", "H100=2.50", "--explain"]) == 0
    out = capsys.readouterr().out
    for gpu in ("L4", "A10", "L40S", "A100-40", "A100-80", "H100", "H200", "B200"):
        assert gpu in out
    assert "max(1, 8 heads / 1) x (128 + 128) in bf16 = 32 x 4,096" in out
    assert "2.50 x 1 GPUs x 10^6 / 3600 / rate" in out
    assert "price/M out" in out


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", str(CONFIGS / "deepseek-v3.json"), "--gpu", "H100"]) == 1
    assert "H100: weights alone are larger than what is free (tp 8)" in capsys.readouterr().out


def test_too_long_for_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    words = [LLAMA, "--gpu", "L40S", "--tp", "1", "--context", "100000", "--batch", "2"]
    assert main(["size", *words]) == 1
    assert "tokens, 200,000 are needed" in capsys.readouterr().out


def test_a_device_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    device = "name=cpu,memory-mib=16384,bandwidth-gbs=40,bf16-tflops=1"
    words = ["--device", device, "--free-gib", "12", "--mem-fraction", "0.9"]
    found = run(capsys, str(CONFIGS / "qwen3-0.6b.json"), *words)
    (only,) = found["gpus"]
    assert only["gpu"] == "cpu"
    assert only["max_total_num_tokens"] == pytest.approx(
        (12 * 0.9 * 2**30 - 1.19e9) / (28 * 8 * 256 * 2), rel=0.01
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "MODEL, or numbers: --layers"),
        ([LLAMA, "--layers", "2"], "--layers: not together with MODEL"),
        (["/nowhere/config.json"], "/nowhere/config.json: No such file"),
        ([LLAMA, "--weights", "int3"], "--weights int3: not one of"),
        ([LLAMA, "--kv-dtype", "fp3"], "--kv-dtype fp3"),
        ([LLAMA, "--gpu", "T4"], "--gpu T4: not one of L4"),
        ([LLAMA, "--hourly", "H100"], "--hourly H100: GPU=PRICE"),
        ([LLAMA, "--hourly", "H100=-1"], "--hourly H100=-1"),
        ([LLAMA, "--hourly", "H900=1"], "--hourly H900"),
        ([LLAMA, "--context", "9999999"], "--context 9999999: the model has 131072"),
        ([LLAMA, "--mem-fraction", "1.5"], "--mem-fraction: above 0"),
        ([LLAMA, "--free-gib", "0"], "--free-gib: above 0"),
        ([LLAMA, "--batch", "0"], "--batch: at least 1"),
        ([LLAMA, "--efficiency", "0"], "--efficiency"),
        ([LLAMA, "--device", "name=x"], "--device: memory-mib is missing"),
        ([LLAMA, "--device", "name"], "--device: 'name': NAME=VALUE"),
        ([*NUMBERS, "--params", "5"], "--params 5: the layers given already have"),
        ([*NUMBERS, "--experts", "8"], "--experts-per-token: needed"),
        ([*NUMBERS, "--dense-layers", "1"], "--experts: needed"),
    ],
)
def test_wrong_words(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["size", *words])
    assert exit_.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_no_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text in ("{", "[]"):
        file.write_text(text)
        with pytest.raises(SystemExit):
            main(["size", str(tmp_path)])
        assert "JSON" in capsys.readouterr().err

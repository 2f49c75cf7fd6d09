"""What a person sees, on any terminal and with any name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from forebay_engine.cli import main

from tests.engine.size_support import CONFIGS

LLAMA = str(CONFIGS / "llama-3.1-8b.json")


def shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int | None,
    *words: str,
) -> str:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    main(["size", *words])
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [20, 60, 100, 200, None])
def test_no_cell_is_cut(
    columns: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (LLAMA, "--hourly", "H100=2.50")
    main(["size", *words, "--json"])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["gpus"]
    out = shown(capsys, monkeypatch, columns, *words)
    assert "…" not in out.replace("(--explain)", "")
    for row in rows:
        assert row["gpu"] in out
        assert f"{row['max_total_num_tokens']:,}" in out
    assert rows[5]["decode_batch"]["price_per_million_out"] in out
    for name in ("tok/s at batch", "prefill tok/s", "price/M out"):
        assert name in out


def test_a_narrow_terminal_has_a_block_for_each_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(capsys, monkeypatch, 60, LLAMA, "--gpu", "H100").splitlines()
    at = lines.index("H100")
    assert lines[at + 1].split() == ["tp", "1"]
    assert max(map(len, lines[at : at + 11])) < 60


def test_names_are_neither_styles_nor_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "[bold]a[x] :smile: \x1b[31m"
    path.mkdir()
    (path / "config.json").write_text(Path(LLAMA).read_text())
    for columns in (None, 60):
        for name in ("[/x]", "[bold]x[/]", ":smile:"):
            device = f"name={name},memory-mib=99999,bandwidth-gbs=100,bf16-tflops=1"
            words = (str(path), "--device", device, "--explain")
            out = shown(capsys, monkeypatch, columns, *words)
            assert name in out
            assert "[bold]a[x] :smile: \\x1b[31m: LlamaForCausalLM" in out
            assert "\x1b[31m" not in out


def test_a_gpu_named_twice_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["size", LLAMA, "--gpu", "h100", "--gpu", "H100", "--gpu", "L4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["gpu"] for row in found["gpus"]] == ["H100", "L4"]

"""Models and questions of the tests of `forebay-engine size`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forebay_engine.size import architectures, gpus, quantization, source
from forebay_engine.size.gpus import Gpu
from forebay_engine.size.kv import Kv, kv_dtype
from forebay_engine.size.model import Model
from forebay_engine.size.plan import Answer, Question, answer
from forebay_engine.size.reserve import Settings
from forebay_engine.size.weights import Weights

DATA = Path(__file__).parents[1] / "data" / "engine"
CONFIGS = DATA / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
OTHER_GPUS = {
    "RTX 4090": Gpu("RTX 4090", 24564, 24100, 1008, {"bf16": 165}, 150),
    "H20": Gpu("H20", 97871, 97500, 4000, {"bf16": 148, "fp8": 296}, 1250),
}


def rows(name: str) -> list[dict[str, Any]]:
    """A table of published figures."""
    found: list[dict[str, Any]] = json.loads((DATA / f"{name}.json").read_text())
    return found


def weights(name: str, scheme: str | None = None) -> Weights:
    """A model by the name of its config, as it is kept or under another scheme."""
    config = source.config(CONFIGS / f"{name}.json")
    model = architectures.read(config)
    kept = quantization.of_checkpoint(config, model)
    return Weights(model, quantization.named(scheme) if scheme else kept)


def read(values: dict[str, Any]) -> Model:
    """The model of a config given as a dict."""
    return architectures.read(source.Fields(values, "config.json"))


def gpu(name: str) -> Gpu:
    """A GPU by name, also those that only reports have."""
    return (gpus.known() | OTHER_GPUS)[name]


def question(
    loaded: Weights,
    *,
    context: int = 1024,
    kv: str = "auto",
    settings: Settings | None = None,
    **more: Any,
) -> Question:
    """A question with defaults."""
    cache = Kv(loaded.model, kv_dtype(kv, loaded.model))
    return Question(loaded, cache, context, settings=settings or Settings(), **more)


def reported(row: dict[str, Any], *, measured_free: bool = True) -> Answer:
    """Our answer to the settings of an engine's report."""
    free = row["free_gib"] if measured_free else None
    settings = Settings(fraction=row["fraction"], free_gib=free)
    asked = question(weights(row["config"]), tp=row["tp"], settings=settings)
    return answer(asked, gpu(row["device"]))

"""Answers as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forebay_engine.size import quantization
from forebay_engine.size.plan import Answer, Question, Speed
from forebay_engine.size.roofline import Step

if TYPE_CHECKING:
    from rich.table import Table

GIB = 1 << 30


def _step(step: Step) -> dict[str, object]:
    return {
        "tokens_per_s": round(step.rate, 3),
        "step_s": step.seconds,
        "bound": step.bound,
        "weight_bytes_read": round(step.weight_bytes),
        "kv_bytes_read": round(step.kv_bytes),
        "flops": round(step.flops),
        "arithmetic": step.arithmetic,
    }


def _speed(speed: Speed) -> dict[str, object]:
    found: dict[str, object] = {"batch": speed.batch, **_step(speed.step)}
    if speed.price_out is not None:
        found["price_per_million_out"] = str(speed.price_out)
    return found


def _answer(one: Answer) -> dict[str, object]:
    found: dict[str, object] = {
        "gpu": one.gpu.name,
        "fits": one.fits,
        "why_not": one.why or None,
        "tp": one.tp,
        "mem_fraction": one.budget.fraction,
        "free_bytes": round(one.budget.free),
        "reserved_bytes": round(one.budget.kept),
        "weight_bytes_per_gpu": round(one.rank_bytes),
        "kv_bytes_per_gpu": round(one.cache_bytes),
        "kv_bytes_per_token_per_gpu": round(one.token_bytes, 3),
        "max_total_num_tokens": one.tokens,
        "sequences": one.sequences,
    }
    if one.alone and one.full and one.prefill:
        found["decode_alone"] = _speed(one.alone)
        found["decode_batch"] = _speed(one.full)
        found["prefill"] = _step(one.prefill)
        if one.price_in is not None:
            found["price_per_million_in"] = str(one.price_in)
    return found


def document(q: Question, answers: Sequence[Answer]) -> Mapping[str, object]:
    """Everything, for `--json`. Money is text."""
    model, weights = q.weights.model, q.weights
    return {
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "layers": len(model.layers),
            "context": model.context,
            "notes": list(model.notes),
        },
        "weights": {
            **quantization.describe(weights.scheme),
            "bytes": round(weights.total_bytes),
            "bytes_computed": round(weights.computed_bytes()),
            "bytes_checkpoint": weights.checkpoint_bytes,
            "by_part": {part: round(size) for part, size in weights.by_part().items()},
        },
        "kv": {
            "dtype": q.kv.dtype,
            "bytes_per_token": round(q.kv.token_bytes(1), 3),
            "window_pool": q.kv.split,
        },
        "asked": {
            "context": q.context,
            "batch": q.batch,
            "tp": q.tp,
            "efficiency": q.efficiency,
        },
        "gpus": [_answer(one) for one in answers],
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _columns(q: Question) -> list[str]:
    names = ["GPU", "tp", "weights", "cache", "tokens", f"of {q.context:,}"]
    names += ["tok/s at 1", "batch", "tok/s at batch", "bound", "prefill tok/s"]
    return names + (["price/M in", "price/M out"] if q.hourly else [])


def _cells(q: Question, one: Answer) -> list[str]:
    held = [str(one.tp), _gib(one.rank_bytes), _gib(one.cache_bytes), f"{one.tokens:,}"]
    if not (one.fits and one.alone and one.full and one.prefill):
        return [one.gpu.name, *held, "no"]
    row = [
        one.gpu.name,
        *held,
        f"{one.sequences:,}",
        _rate(one.alone.step.rate),
        f"{one.full.batch:,}",
        _rate(one.full.step.rate),
        one.full.step.bound,
        _rate(one.prefill.rate),
    ]
    if q.hourly:
        row += [str(p) if p is not None else "" for p in (one.price_in, one.full.price_out)]
    return row


def table(q: Question, answers: Sequence[Answer]) -> Table:
    """A row a GPU type. A price column only where a price is given."""
    from rich.table import Table

    found = Table(title=None, header_style="bold")
    for number, name in enumerate(_columns(q)):
        found.add_column(name, justify="right" if number else "left", no_wrap=True)
    for one in answers:
        found.add_row(*_cells(q, one), style=None if one.fits else "dim")
    return found


def blocks(q: Question, answers: Sequence[Answer]) -> list[str]:
    """The same as lines, a block a GPU type, for what is narrower than the table."""
    names = _columns(q)[1:]
    width = max(map(len, names))
    lines = []
    for one in answers:
        lines.append(one.gpu.name)
        cells = zip(names, _cells(q, one)[1:], strict=False)
        lines += [f"  {name:<{width}}  {cell}" for name, cell in cells if cell]
    return lines


def summary(q: Question) -> list[str]:
    """Lines above the table."""
    model, weights = q.weights.model, q.weights
    total, active = model.parameters, model.active_parameters
    kept = weights.scheme.name
    source = "checkpoint" if weights.checkpoint_bytes is not None else "computed"
    lines = [
        f"{model.name}: {model.architecture}, {total / 1e9:.2f} B parameters"
        + (f", {active / 1e9:.2f} B active" if model.expert_layers else ""),
        f"weights {kept}: {weights.total_bytes / 1e9:.2f} GB ({source})",
        f"cache {q.kv.dtype}: {q.kv.token_bytes(1):,.0f} bytes a token on one GPU",
    ]
    lines += [f"note: {note}" for note in model.notes]
    if abs(weights.correction - 1) > 0.05:
        share = weights.correction - 1
        lines.append(f"note: the checkpoint is {share:+.1%} of what its config.json says")
    return lines


def footer(answers: Sequence[Answer]) -> list[str]:
    """Lines below the table: why not, and what the figures are."""
    lines = [f"{one.gpu.name}: {one.why} (tp {one.tp})" for one in answers if not one.fits]
    lines.append(
        "weights and cache: GiB on each GPU. Rates: upper bounds by the roofline (--explain)."
    )
    return lines

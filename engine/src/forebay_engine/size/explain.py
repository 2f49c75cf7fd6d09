"""Every number of an answer with the formula that it came from."""

from __future__ import annotations

from forebay_engine.size.kv import layer_bytes
from forebay_engine.size.layers import LatentAttention, Moe
from forebay_engine.size.plan import Answer, Question
from forebay_engine.size.render import GIB
from forebay_engine.size.roofline import Step
from forebay_engine.size.weights import plain_bytes, touched_share


def parameters(q: Question) -> list[str]:
    """The model's matrices and the bytes they take."""
    model, scheme = q.weights.model, q.weights.scheme
    plain = plain_bytes(scheme, model.dtype)
    lines = ["parameters = sum of count x outputs x inputs (+ outputs for a bias)"]
    for m in sorted(model.matrices(), key=lambda m: -m.parameters):
        size = scheme.bytes_of(m, plain)
        name = f"{m.part}.{m.module}" if m.module else m.part
        lines.append(
            f"  {name:<30} {m.count:>6} x {m.outputs:>7} x {m.inputs:<7}"
            f"{' + bias' if m.bias else '':<7} = {m.parameters:>15,}  "
            f"{size / GIB:9.3f} GiB  split: {m.split}"
        )
    lines.append(f"  in all {model.parameters:,}, active {model.active_parameters:,}")
    words = f"{scheme.bits} bits"
    if scheme.scale_bytes:
        group = f" of {scheme.group}" if scheme.group else ""
        words += f" + {scheme.scale_bytes}-byte scale per {scheme.grain}{group}"
    if scheme.zero_bits:
        words += f" + {scheme.zero_bits}-bit zero"
    lines.append(
        f"bytes: {words} for {', '.join(sorted(scheme.parts)) or 'nothing quantised'}; "
        f"{plain} bytes for the rest"
    )
    if q.weights.checkpoint_bytes is not None:
        lines.append(
            f"x {q.weights.correction:.5f} = checkpoint {q.weights.checkpoint_bytes:,} / "
            f"computed {q.weights.computed_bytes(q.weights.stored, mtp=True):,.0f}"
        )
    return lines


def cache(q: Question, tp: int) -> list[str]:
    """Bytes of the cache for a token."""
    lines = [f"cache bytes a token on one of {tp} GPUs"]
    for layer, times in q.kv.model.blocks:
        a = layer.attention
        if isinstance(a, LatentAttention):
            form = f"(rank {a.kv_rank} + rope {a.rope_dim})"
        else:
            form = f"max(1, {a.kv_heads} heads / {tp}) x ({a.head_dim} + {a.value_dim})"
        size = layer_bytes(layer, q.kv.dtype, tp)
        ratio = f" x {q.kv.window_ratio} (window pool)" if q.kv.split and layer.window else ""
        lines.append(f"  {times} layers x {form} in {q.kv.dtype} = {times} x {size:,.0f}{ratio}")
    lines.append(f"  in all {q.kv.token_bytes(tp):,.1f}")
    return lines


def _step(name: str, step: Step, one: Answer, efficiency: float) -> str:
    peak, _ = one.gpu.flops(step.arithmetic)
    return (
        f"  {name}: max(({step.weight_bytes / 1e9:.3f} GB weights + {step.kv_bytes / 1e9:.3f} GB "
        f"cache) / {one.gpu.bandwidth_gbs:g} GB/s = {step.memory_s * 1e3:.3f} ms, "
        f"{step.flops / 1e12:.3f} TFLOP / {peak / 1e12:g} TFLOP/s ({step.arithmetic}) = "
        f"{step.compute_s * 1e3:.3f} ms), efficiency {efficiency:g}: "
        f"{step.tokens} tokens / {step.seconds * 1e3:.3f} ms = {step.rate:,.1f} tok/s"
    )


def answer(q: Question, one: Answer) -> list[str]:
    """Memory, speed and price of one GPU type."""
    b = one.budget
    lines = [
        f"{one.gpu.name} x {one.tp} ({one.gpu.source})",
        f"  free {b.free / GIB:.2f} GiB = usable {one.gpu.usable_mib} MiB - context and group"
        if q.settings.free_gib is None
        else f"  free {b.free / GIB:.2f} GiB, given",
        f"  weights and cache {b.static / GIB:.2f} GiB, kept back {b.kept / GIB:.2f} GiB "
        f"(fraction {b.fraction:g}, chunk {b.chunk}, graphs {b.graphs})",
        f"  cache = {b.static / GIB:.2f} - weights {one.rank_bytes / GIB:.2f} = "
        f"{one.cache_bytes / GIB:.2f} GiB; / {one.token_bytes:,.1f} = {one.tokens:,} tokens; "
        f"/ {q.context} = {one.sequences:,} sequences",
    ]
    if not (one.fits and one.alone and one.full and one.prefill):
        return [*lines, f"  does not fit: {one.why}"]
    for speed in (one.alone, one.full):
        lines.append(_step(f"decode at {speed.batch}", speed.step, one, q.efficiency))
        moe = next(iter(q.weights.model.expert_layers), None)
        if isinstance(moe, Moe):
            share = touched_share(q.weights.model, speed.batch)
            lines.append(
                f"    experts read: 1 - (1 - {moe.per_token}/{moe.experts})^{speed.batch} "
                f"= {share:.1%} of {moe.experts}"
            )
    lines.append(_step("prefill", one.prefill, one, q.efficiency))
    price = (q.hourly or {}).get(one.gpu.name)
    if price is not None:
        lines.append(
            f"  price a million = {price} x {one.tp} GPUs x 10^6 / 3600 / rate: "
            f"in {one.price_in}, out {one.full.price_out} (at {one.full.batch}), "
            f"{one.alone.price_out} (alone)"
        )
    return lines

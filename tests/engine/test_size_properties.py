"""What must hold for any model, whatever its numbers."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from forebay_engine.size import gpus
from forebay_engine.size.kv import Kv
from forebay_engine.size.layers import Attention, LatentAttention, Layer, Mlp, Moe, Part
from forebay_engine.size.model import Model
from forebay_engine.size.plan import WIDTHS, answer, per_million
from forebay_engine.size.quantization import SCHEMES, named
from forebay_engine.size.reserve import Settings, budget, sglang_reserve_mib
from forebay_engine.size.roofline import decode, prefill
from forebay_engine.size.weights import Weights, touched_share
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.size_support import question

GPUS = list(gpus.known().values())
EXAMPLES = settings(max_examples=40, deadline=None)


@st.composite
def attentions(draw: st.DrawFn) -> Attention | LatentAttention:
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    if draw(st.booleans()):
        dim = draw(st.sampled_from([64, 128, 256]))
        kv = draw(st.sampled_from([1, 2, 4, 8]))
        return Attention(heads, kv, dim, dim, draw(st.booleans()), qk_norm=2 * dim)
    rank = draw(st.sampled_from([None, 512]))
    return LatentAttention(heads, rank, draw(st.sampled_from([256, 512])), 128, 64, 128)


@st.composite
def models(draw: st.DrawFn) -> Model:
    attention = draw(attentions())
    width = 128 * draw(st.integers(8, 64))
    feed: Mlp | Moe = Mlp(width)
    if draw(st.booleans()):
        experts = draw(st.integers(2, 64))
        shared = Mlp(width, part=Part.SHARED) if draw(st.booleans()) else None
        feed = Moe(experts, draw(st.integers(1, experts)), Mlp(width, part=Part.EXPERT), shared)
    window = draw(st.sampled_from([None, 128, 4096]))
    whole = Layer(attention, feed)
    layers = draw(st.integers(1, 48))
    built = [replace(whole, window=window if n % 2 else None) for n in range(layers)]
    return Model(
        "any",
        "any",
        128 * draw(st.integers(8, 64)),
        draw(st.integers(1000, 200_000)),
        tuple(built),
        131072,
        tied=draw(st.booleans()),
        split_windows=draw(st.booleans()),
    )


@EXAMPLES
@given(models())
def test_fewer_bits_are_fewer_bytes(model: Model) -> None:
    sizes = [Weights(model, named(name)).total_bytes for name in ("int4", "fp8", "bf16", "fp32")]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4


@EXAMPLES
@given(models(), st.sampled_from(sorted(SCHEMES)))
def test_a_group_holds_all_and_each_gpu_less(model: Model, scheme: str) -> None:
    loaded = Weights(model, named(scheme))
    ranks = [loaded.rank_bytes(tp) for tp in WIDTHS]
    assert abs(ranks[0] - loaded.total_bytes) <= 1e-6 * loaded.total_bytes
    for tp, rank, wider in zip(WIDTHS, ranks, [*ranks[1:], 0.0], strict=True):
        assert rank >= wider
        assert rank * tp >= loaded.total_bytes * (1 - 1e-9)


@EXAMPLES
@given(models())
def test_parts_add_up(model: Model) -> None:
    loaded = Weights(model, named("awq"))
    assert abs(sum(loaded.by_part().values()) - loaded.total_bytes) <= 1e-6 * loaded.total_bytes
    assert 0 < model.active_parameters <= model.parameters


@EXAMPLES
@given(models(), st.integers(1, 4096))
def test_a_step_reads_no_more_than_there_is(model: Model, batch: int) -> None:
    loaded = Weights(model, named("bf16"))
    reads = [loaded.read_bytes(1, size) for size in (1, batch, batch + 1)]
    assert reads == sorted(reads)
    assert reads[-1] <= loaded.total_bytes * (1 + 1e-9)
    assert 0 < touched_share(model, batch) <= 1


@EXAMPLES
@given(models(), st.sampled_from(["bf16", "fp8"]), st.integers(1, 64))
def test_the_cache_of_a_token(model: Model, dtype: str, gib: int) -> None:
    cache = Kv(model, dtype)
    sizes = [cache.token_bytes(tp) for tp in WIDTHS]
    assert sizes == sorted(sizes, reverse=True)
    latent = isinstance(model.layers[0].attention, LatentAttention)
    if latent:  # the latent is the same on every GPU
        assert len(set(sizes)) == 1
    assert Kv(model, "fp8").token_bytes(1) < Kv(model, "bf16").token_bytes(1)
    tokens = cache.capacity(gib * 2**30, 1)
    assert tokens * sizes[0] <= gib * 2**30 < (tokens + 1) * sizes[0] * (1 + 1e-9)
    assert cache.capacity(gib * 2**30, 1, page=64) == tokens // 64 * 64


@EXAMPLES
@given(models(), st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_longer_context_is_never_cheaper(model: Model, context: int, more: int) -> None:
    cache = Kv(model, "bf16")
    assert cache.read_bytes(1, context) <= cache.read_bytes(1, context + more)
    assert cache.sequences(500_000, context) >= cache.sequences(500_000, context + more)


@EXAMPLES
@given(models(), st.sampled_from(GPUS), st.floats(0.1, 0.9), st.floats(0.01, 0.1))
def test_tokens_grow_with_the_fraction(
    model: Model, gpu: gpus.Gpu, low: float, more: float
) -> None:
    loaded = Weights(model, named("fp8"))
    found = [
        answer(question(loaded, tp=1, settings=Settings(fraction)), gpu).tokens
        for fraction in (low, low + more)
    ]
    assert found == sorted(found)


@EXAMPLES
@given(models(), st.sampled_from(GPUS), st.sampled_from(WIDTHS))
def test_no_more_is_planned_than_there_is(model: Model, gpu: gpus.Gpu, tp: int) -> None:
    limits = budget(gpu, tp, model, Settings())
    assert 0 < limits.static < limits.free < gpu.usable_mib * 2**20
    assert limits.kept > 0


@EXAMPLES
@given(
    st.sampled_from([g.memory_mib for g in GPUS]), st.sampled_from(WIDTHS), st.integers(1, 16384)
)
def test_a_larger_chunk_reserves_more(memory: int, tp: int, chunk: int) -> None:
    sizes = [sglang_reserve_mib(memory, tp, size, 256, latent=False) for size in (chunk, 2 * chunk)]
    assert sizes == sorted(sizes)


@EXAMPLES
@given(models(), st.sampled_from(GPUS), st.integers(1, 256), st.integers(1, 8192))
def test_a_larger_batch_is_never_slower_in_all(
    model: Model, gpu: gpus.Gpu, batch: int, context: int
) -> None:
    loaded, cache = Weights(model, named("fp8")), Kv(model, "bf16")
    one = decode(loaded, cache, gpu, 1, batch, context)
    two = decode(loaded, cache, gpu, 1, 2 * batch, context)
    assert two.rate >= one.rate * (1 - 1e-9)
    assert two.seconds >= one.seconds
    half = decode(loaded, cache, gpu, 1, batch, context, efficiency=0.5)
    assert abs(half.seconds - 2 * one.seconds) <= 1e-9 * half.seconds
    assert one.bound == ("memory" if one.memory_s >= one.compute_s else "compute")


@EXAMPLES
@given(models(), st.sampled_from(GPUS), st.integers(1, 65536))
def test_a_longer_prompt_is_not_read_faster(model: Model, gpu: gpus.Gpu, context: int) -> None:
    loaded, cache = Weights(model, named("bf16")), Kv(model, "bf16")
    taken = prefill(loaded, cache, gpu, 1, context, 8192)
    longer = prefill(loaded, cache, gpu, 1, 2 * context, 8192)
    assert taken.tokens == 8192
    # The head works once a prompt, so that a shorter one may cost more there.
    head = 2.0 * model.vocab * model.hidden * 8192 / context
    assert longer.flops >= taken.flops - head - 1


@EXAMPLES
@given(models(), st.sampled_from(GPUS), st.integers(1, 4096))
def test_the_smallest_group_that_fits(model: Model, gpu: gpus.Gpu, context: int) -> None:
    loaded = Weights(model, named("bf16"))
    found = answer(question(loaded, context=context), gpu)
    for tp in WIDTHS:
        alone = answer(question(loaded, context=context, tp=tp), gpu)
        if found.fits and tp < found.tp:
            assert not alone.fits
        if not found.fits:
            assert not alone.fits
            assert alone.why
    if found.fits:
        assert found.full is not None
        assert found.full.batch * context <= found.tokens


@EXAMPLES
@given(
    st.decimals("0.01", "100", places=2),
    st.sampled_from(WIDTHS),
    st.floats(1, 1e6, allow_nan=False),
)
def test_a_price_is_what_the_hours_cost(hourly: Decimal, gpus: int, rate: float) -> None:
    price = per_million(hourly, gpus, rate)
    seconds = Decimal(1_000_000) / Decimal(repr(rate))
    assert abs(price - hourly * gpus * seconds / 3600) <= Decimal("0.00005")

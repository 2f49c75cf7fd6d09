"""A model on GPUs: how many are needed, what they hold, how fast they could be, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

from forebay_engine.size.gpus import Gpu
from forebay_engine.size.kv import Kv
from forebay_engine.size.layers import LatentAttention, Mlp
from forebay_engine.size.model import Model
from forebay_engine.size.quantization import Scheme
from forebay_engine.size.reserve import Budget, Settings, budget
from forebay_engine.size.roofline import Step, decode, prefill
from forebay_engine.size.weights import Weights

WIDTHS = (1, 2, 4, 8)
CENT = Decimal("0.0001")


@dataclass(frozen=True)
class Question:
    """What is asked.

    context: tokens of a sequence, prompt and answer. batch: sequences at once; None: what fits.
    tp: GPUs of a group; None: the fewest that fit. hourly: price of one GPU an hour, by name.
    """

    weights: Weights
    kv: Kv
    context: int
    batch: int | None = None
    tp: int | None = None
    page: int = 1
    settings: Settings = field(default_factory=Settings)
    efficiency: float = 1.0
    hourly: Mapping[str, Decimal] | None = None


@dataclass(frozen=True)
class Speed:
    """At some batch: the step, and the price of a million tokens made, if there is a price."""

    batch: int
    step: Step
    price_out: Decimal | None


@dataclass(frozen=True)
class Answer:
    """One GPU type.

    why: for the reader, where it does not fit. cache_bytes, tokens: of one group.
    """

    gpu: Gpu
    tp: int
    fits: bool
    why: str
    budget: Budget
    rank_bytes: float
    cache_bytes: float
    token_bytes: float
    tokens: int
    sequences: int
    alone: Speed | None = None
    full: Speed | None = None
    prefill: Step | None = None
    price_in: Decimal | None = None


def undivided(model: Model, scheme: Scheme, tp: int) -> str | None:
    """Why a model cannot be split over `tp` GPUs; None where it can."""
    for layer, _ in model.blocks:
        attention, feed = layer.attention, layer.feed
        if attention.heads % tp:
            return f"{attention.heads} heads do not divide by {tp}"
        if not isinstance(attention, LatentAttention):
            kv = attention.kv_heads
            if kv % tp and tp % kv:
                return f"{kv} key-value heads and {tp} GPUs do not divide"
        parts = [feed] if isinstance(feed, Mlp) else [feed.expert, *filter(None, [feed.shared])]
        for part in parts:
            if part.width % tp:
                return f"{part.part} of {part.width} does not divide by {tp}"
            whole = scheme.grain == "block" and part.part in scheme.parts
            if whole and part.width // tp % scheme.group:
                return f"{part.part} of {part.width} over {tp} GPUs cuts blocks of {scheme.group}"
    return None


def per_million(hourly: Decimal, gpus: int, rate: float) -> Decimal:
    """Price of a million tokens at `rate` tokens a second of a group of `gpus`."""
    with localcontext() as context:
        context.prec = 60  # a model that is far too large for a slow device has a price, too
        exact = hourly * gpus * 1_000_000 / (3600 * Decimal(repr(rate)))
        return exact.quantize(CENT, ROUND_HALF_EVEN)


def _hold(q: Question, gpu: Gpu, tp: int) -> Answer:
    """What a group of `tp` holds, without its speed."""
    limits = budget(gpu, tp, q.weights.model, q.settings)
    rank = q.weights.rank_bytes(tp)
    cache = max(0.0, limits.static - rank)
    tokens = q.kv.capacity(cache, tp, q.page)
    sequences = q.kv.sequences(tokens, q.context)
    wanted = q.batch or 1
    why = undivided(q.weights.model, q.weights.scheme, tp) or ""
    if not why and rank > limits.static:
        why = "weights alone are larger than what is free"
    elif not why and sequences < wanted:
        why = f"room for {tokens:,} tokens, {wanted * q.context:,} are needed"
    return Answer(
        gpu,
        tp,
        not why,
        why,
        limits,
        rank,
        cache,
        q.kv.token_bytes(tp),
        tokens,
        sequences,
    )


def _speed(q: Question, held: Answer, batch: int) -> Speed:
    step = decode(q.weights, q.kv, held.gpu, held.tp, batch, q.context, q.efficiency)
    price = (q.hourly or {}).get(held.gpu.name)
    return Speed(batch, step, None if price is None else per_million(price, held.tp, step.rate))


def answer(q: Question, gpu: Gpu) -> Answer:
    """The smallest group of a GPU type that fits, or the largest that does not."""
    tried = [_hold(q, gpu, tp) for tp in ((q.tp,) if q.tp else WIDTHS)]
    held = next((one for one in tried if one.fits), None)
    if held is None:
        # The widest that can be split says most about what is missing.
        model, scheme = q.weights.model, q.weights.scheme
        whole = [one for one in tried if undivided(model, scheme, one.tp) is None]
        return (whole or tried)[-1]
    batch = q.batch or held.sequences
    taken = prefill(q.weights, q.kv, gpu, held.tp, q.context, held.budget.chunk, q.efficiency)
    price = (q.hourly or {}).get(gpu.name)
    return replace(
        held,
        alone=_speed(q, held, 1),
        full=_speed(q, held, batch),
        prefill=taken,
        price_in=None if price is None else per_million(price, held.tp, taken.rate),
    )


def answers(q: Question, gpus: Sequence[Gpu]) -> list[Answer]:
    """One answer a GPU type. Raises ValueError: a context that the model does not have."""
    limit = q.weights.model.context
    if limit is not None and q.context > limit:
        raise ValueError(f"--context {q.context}: the model has {limit} (max_position_embeddings)")
    return [answer(q, gpu) for gpu in gpus]

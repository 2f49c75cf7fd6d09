"""From the fields of a `config.json` to a `Model`, one function a family of architectures.

Field names and their defaults are those of Hugging Face's transformers. An architecture that is
not listed is refused: a near miss in the shape would be a wrong size without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forebay_engine.size.fields import Fields, pattern
from forebay_engine.size.model import (
    Attention,
    LatentAttention,
    Layer,
    Matrix,
    Mlp,
    Model,
    Moe,
    Part,
    Split,
)

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
TORCH_DEFAULT = "fp32"  # what transformers takes where neither dtype nor torch_dtype is given


def _heads(f: Fields, **more: bool) -> Attention:
    heads = f.count("num_attention_heads")
    if f.has("head_dim"):
        dim = f.count("head_dim")
    else:
        hidden = f.count("hidden_size")
        if hidden % heads:
            raise ValueError(f"{f.where}: hidden_size: no multiple of num_attention_heads")
        dim = hidden // heads
    kv = f.count("num_key_value_heads", default=heads)
    if heads % kv:
        raise ValueError(f"{f.where}: num_key_value_heads: does not divide num_attention_heads")
    return Attention(heads, kv, dim, dim, **more)


def _base(f: Fields, architecture: str, layers: list[Layer], *, tied: bool = False) -> Model:
    dtype = f.text("dtype") or f.text("torch_dtype")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"{f.where}: torch_dtype: {dtype}: not one of {', '.join(DTYPES)}")
    return Model(
        name="",
        architecture=architecture,
        hidden=f.count("hidden_size"),
        vocab=f.count("vocab_size"),
        layers=tuple(layers),
        context=f.count("max_position_embeddings", default=8192),
        dtype=DTYPES[dtype] if dtype else TORCH_DEFAULT,
        tied=f.flag("tie_word_embeddings", tied),
    )


def _window(f: Fields) -> int | None:
    return f.count("sliding_window") if f.has("sliding_window") else None


def _llama(f: Fields, name: str) -> Model:
    bias = f.flag("attention_bias", False)
    attention = replace(_heads(f), qkv_bias=bias, out_bias=bias)
    feed = Mlp(f.count("intermediate_size"), bias=f.flag("mlp_bias", False))
    return _base(f, name, [Layer(attention, feed)] * f.count("num_hidden_layers"))


def _mistral(f: Fields, name: str) -> Model:
    # Engines keep whole caches for Mistral's window, so that it saves reading, not room.
    layer = Layer(_heads(f), Mlp(f.count("intermediate_size")), window=_window(f))
    return _base(f, name, [layer] * f.count("num_hidden_layers"))


def _qwen2(f: Fields, name: str) -> Model:
    attention = replace(_heads(f), qkv_bias=True)
    layer = Layer(attention, Mlp(f.count("intermediate_size")))
    return _base(f, name, [layer] * f.count("num_hidden_layers"))


def _qwen3(f: Fields, name: str) -> Model:
    bias = f.flag("attention_bias", False)
    heads = _heads(f)
    attention = replace(heads, qk_norm=2 * heads.head_dim, qkv_bias=bias, out_bias=bias)
    layer = Layer(attention, Mlp(f.count("intermediate_size")))
    return _base(f, name, [layer] * f.count("num_hidden_layers"))


def _sparse(f: Fields, dense: Mlp | None, moe: Moe) -> list[Mlp | Moe]:
    """Which layers have experts, as Qwen's `decoder_sparse_step` and `mlp_only_layers` say."""
    step = f.count("decoder_sparse_step", default=1)
    only = f.get("mlp_only_layers") or []
    if not isinstance(only, list):
        raise ValueError(f"{f.where}: mlp_only_layers: a list is needed")
    found: list[Mlp | Moe] = []
    for number in range(f.count("num_hidden_layers")):
        if number in only or (number + 1) % step:
            if dense is None:
                raise ValueError(f"{f.where}: intermediate_size: missing")
            found.append(dense)
        else:
            found.append(moe)
    return found


def _qwen2_moe(f: Fields, name: str) -> Model:
    attention = replace(_heads(f), qkv_bias=f.flag("qkv_bias", True))
    shared = Mlp(f.count("shared_expert_intermediate_size"), part=Part.SHARED)
    moe = Moe(
        f.count("num_experts"),
        f.count("num_experts_per_tok"),
        Mlp(f.count("moe_intermediate_size"), part=Part.EXPERT),
        shared,
        shared_gate=True,
    )
    feeds = _sparse(f, Mlp(f.count("intermediate_size")), moe)
    return _base(f, name, [Layer(attention, feed) for feed in feeds])


def _qwen3_moe(f: Fields, name: str) -> Model:
    bias = f.flag("attention_bias", False)
    heads = _heads(f)
    attention = replace(heads, qk_norm=2 * heads.head_dim, qkv_bias=bias, out_bias=bias)
    moe = Moe(
        f.count("num_experts"),
        f.count("num_experts_per_tok"),
        Mlp(f.count("moe_intermediate_size"), part=Part.EXPERT),
    )
    dense = Mlp(f.count("intermediate_size")) if f.has("intermediate_size") else None
    return _base(f, name, [Layer(attention, feed) for feed in _sparse(f, dense, moe)])


def _mixtral(f: Fields, name: str) -> Model:
    expert = Mlp(f.count("intermediate_size"), part=Part.EXPERT)
    moe = Moe(f.count("num_local_experts"), f.count("num_experts_per_tok"), expert)
    layer = Layer(_heads(f), moe, window=_window(f))
    return _base(f, name, [layer] * f.count("num_hidden_layers"))


def _gemma(f: Fields, name: str) -> Model:
    f.count("head_dim")
    layer = Layer(_heads(f), Mlp(f.count("intermediate_size")))
    return _base(f, name, [layer] * f.count("num_hidden_layers"), tied=True)


def _gemma2(f: Fields, name: str) -> Model:
    f.count("head_dim")
    layers = f.count("num_hidden_layers")
    window = f.count("sliding_window", default=4096)
    # Even layers look through the window: (number + 1) % 2 != 0.
    local = pattern(f, layers, every=2, window=window)
    feed = Mlp(f.count("intermediate_size"))
    whole = Layer(_heads(f), feed, norms=4)
    built = [replace(whole, window=window) if small else whole for small in local]
    return _base(f, name, built, tied=True)


def _gemma3(f: Fields, name: str) -> Model:
    layers = f.count("num_hidden_layers")
    window = f.count("sliding_window")
    every = f.count("sliding_window_pattern", default=6)
    local = pattern(f, layers, every=every, window=window)
    # Gemma 3's files leave out what equals the library's defaults of the 4B model.
    heads = Attention(
        f.count("num_attention_heads", default=8),
        f.count("num_key_value_heads", default=4),
        f.count("head_dim", default=256),
        f.count("head_dim", default=256),
    )
    heads = replace(heads, qk_norm=2 * heads.head_dim)
    whole = Layer(heads, Mlp(f.count("intermediate_size")), norms=4)
    built = [replace(whole, window=window) if small else whole for small in local]
    filled = Fields({"vocab_size": 262208, **f.values}, f.where)
    return _base(filled, name, built, tied=True)


def _phi3(f: Fields, name: str) -> Model:
    layer = Layer(_heads(f), Mlp(f.count("intermediate_size")), window=_window(f))
    return _base(f, name, [layer] * f.count("num_hidden_layers"))


def _phi(f: Fields, name: str) -> Model:
    attention = replace(_heads(f), qkv_bias=True, out_bias=True)
    feed = Mlp(f.count("intermediate_size"), gated=False, bias=True)
    layer = Layer(attention, feed, norms=1, norm_bias=True)
    model = _base(f, name, [layer] * f.count("num_hidden_layers"))
    return replace(model, head_bias=True, norm_bias=True)


def _gpt_oss(f: Fields, name: str) -> Model:
    layers = f.count("num_hidden_layers")
    window = f.count("sliding_window")
    local = pattern(f, layers, every=2, window=window)
    attention = replace(_heads(f), qkv_bias=True, out_bias=True, sinks=True)
    moe = Moe(
        f.count("num_local_experts", "num_experts"),
        f.count("num_experts_per_tok", "experts_per_token"),
        Mlp(f.count("intermediate_size"), bias=True, part=Part.EXPERT),
        router_bias=True,
    )
    whole = Layer(attention, moe)
    built = [replace(whole, window=window) if small else whole for small in local]
    return replace(_base(f, name, built), split_windows=True)


def _deepseek(f: Fields, name: str) -> Model:
    rank = f.count("q_lora_rank") if f.has("q_lora_rank") else None
    attention = LatentAttention(
        f.count("num_attention_heads"),
        rank,
        f.count("kv_lora_rank"),
        f.count("qk_nope_head_dim"),
        f.count("qk_rope_head_dim"),
        f.count("v_head_dim"),
        f.count("index_n_heads", default=0, least=0),
        f.count("index_head_dim", default=0, least=0),
        f.flag("attention_bias", False),
    )
    dense = Layer(attention, Mlp(f.count("intermediate_size")))
    layers = f.count("num_hidden_layers")
    if not f.has("n_routed_experts"):
        return _base(f, name, [dense] * layers)
    sparse = Layer(attention, _deepseek_moe(f))
    first = f.count("first_k_dense_replace", default=0, least=0)
    step = f.count("moe_layer_freq", default=1)
    built = [sparse if n >= first and n % step == 0 else dense for n in range(layers)]
    model = _base(f, name, built)
    return replace(model, mtp=_mtp(f, model, sparse))


def _deepseek_moe(f: Fields) -> Moe:
    width = f.count("moe_intermediate_size")
    shared = f.count("n_shared_experts", default=0, least=0)
    return Moe(
        f.count("n_routed_experts"),
        f.count("num_experts_per_tok"),
        Mlp(width, part=Part.EXPERT),
        Mlp(width * shared, part=Part.SHARED) if shared else None,
        router_bias=f.text("topk_method") == "noaux_tc",
    )


def _mtp(f: Fields, model: Model, layer: Layer) -> tuple[Matrix, ...]:
    """The checkpoint's layers for prediction of several tokens: with embedding and head again."""
    count = f.count("num_nextn_predict_layers", default=0, least=0)
    hidden = model.hidden
    one = (
        *layer.matrices(hidden),
        Matrix(Part.EMBEDDING, model.vocab, hidden),
        Matrix(Part.HEAD, model.vocab, hidden),
        Matrix(Part.OTHER, hidden, 2 * hidden, split=Split.COPY),
        Matrix(Part.NORM, hidden, 1, 3, split=Split.COPY),
    )
    return tuple(one * count)


def _glm4_moe(f: Fields, name: str) -> Model:
    heads = _heads(f)
    norm = 2 * heads.head_dim if f.flag("use_qk_norm", False) else 0
    attention = replace(heads, qkv_bias=f.flag("attention_bias", False), qk_norm=norm)
    dense = Layer(attention, Mlp(f.count("intermediate_size")))
    moe = replace(_deepseek_moe(f), router_bias=True)
    sparse = Layer(attention, moe)
    first = f.count("first_k_dense_replace", default=1, least=0)
    layers = f.count("num_hidden_layers")
    model = _base(f, name, [dense if n < first else sparse for n in range(layers)])
    return replace(model, mtp=_mtp(f, model, sparse))


def _llama4(f: Fields, name: str) -> Model:
    layers = f.count("num_hidden_layers")
    bias = f.flag("attention_bias", False)
    attention = replace(_heads(f), qkv_bias=bias, out_bias=bias)
    width = f.count("intermediate_size")
    moe = Moe(
        f.count("num_local_experts"),
        f.count("num_experts_per_tok"),
        Mlp(width, part=Part.EXPERT),
        Mlp(width, part=Part.SHARED),
    )
    dense = Mlp(f.count("intermediate_size_mlp")) if f.has("intermediate_size_mlp") else None
    step = f.count("interleave_moe_layer_step", default=1)
    window = f.count("attention_chunk_size", default=8192)
    built = []
    for number in range(layers):
        sparse = (number + 1) % step == 0
        if not sparse and dense is None:
            raise ValueError(f"{f.where}: intermediate_size_mlp: missing")
        feed = moe if sparse or dense is None else dense
        built.append(Layer(attention, feed, window=window if (number + 1) % 4 else None))
    return replace(_base(f, name, built), split_windows=True)


def _olmo2(f: Fields, name: str) -> Model:
    heads = _heads(f)
    norm = (heads.heads + heads.kv_heads) * heads.head_dim
    layer = Layer(replace(heads, qk_norm=norm), Mlp(f.count("intermediate_size")))
    return _base(f, name, [layer] * f.count("num_hidden_layers"))


ARCHITECTURES: dict[str, Callable[[Fields, str], Model]] = {
    "DeepseekV2ForCausalLM": _deepseek,
    "DeepseekV3ForCausalLM": _deepseek,
    "DeepseekV32ForCausalLM": _deepseek,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "GemmaForCausalLM": _gemma,
    "Glm4MoeForCausalLM": _glm4_moe,
    "GptOssForCausalLM": _gpt_oss,
    "Llama4ForConditionalGeneration": _llama4,
    "LlamaForCausalLM": _llama,
    "Mistral3ForConditionalGeneration": _mistral,
    "MistralForCausalLM": _mistral,
    "MixtralForCausalLM": _mixtral,
    "Olmo2ForCausalLM": _olmo2,
    "Phi3ForCausalLM": _phi3,
    "PhiForCausalLM": _phi,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen2MoeForCausalLM": _qwen2_moe,
    "Qwen2VLForConditionalGeneration": _qwen2,
    "Qwen2_5_VLForConditionalGeneration": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "Qwen3VLForConditionalGeneration": _qwen3,
    "Qwen3VLMoeForConditionalGeneration": _qwen3_moe,
}
"""What can be sized, by `architectures` in `config.json`."""


def read(values: Fields, *, other: int = 0) -> Model:
    """The model that a `config.json` describes.

    other: parameters that it does not tell (a vision tower).
    Raises ValueError: unknown architecture, or a field that is missing or wrong.
    """
    names = values.texts("architectures")
    if not names:
        raise ValueError(f"{values.where}: architectures: missing")
    name = names[0]
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{values.where}: architectures: {name} is not known; give its numbers by flags "
            f"(--layers, --hidden, …). Known: {', '.join(ARCHITECTURES)}"
        )
    text = values.inner("text_config")
    fields = values
    notes: tuple[str, ...] = ()
    if text is not None:
        outer = ("torch_dtype", "dtype", "tie_word_embeddings")
        given = {key: values.get(key) for key in outer if values.has(key)}
        fields = Fields({**given, **text.values}, text.where)
    if values.has("vision_config") and not other:
        notes = ("the vision tower is not counted (--other-params)",)
    model = ARCHITECTURES[name](fields, name)
    return replace(model, other=other, notes=(*model.notes, *notes))

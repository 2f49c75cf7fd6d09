"""Families of models with experts."""

from __future__ import annotations

from dataclasses import replace

from forebay_engine.size.common import attention_of, model_of, window_of
from forebay_engine.size.fields import Fields, pattern
from forebay_engine.size.layers import LatentAttention, Layer, Matrix, Mlp, Moe, Part, Split
from forebay_engine.size.model import Model


def _sparse(f: Fields, dense: Mlp | None, moe: Moe) -> list[Mlp | Moe]:
    """Which layers have experts, as Qwen's `decoder_sparse_step` and `mlp_only_layers` say."""
    step = f.count("decoder_sparse_step", default=1)
    listed = f.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(isinstance(number, int) for number in listed):
        raise ValueError(f"{f.where}: mlp_only_layers: a list of whole numbers is needed")
    only = set(listed)
    found: list[Mlp | Moe] = []
    for number in range(f.count("num_hidden_layers")):
        if number in only or (number + 1) % step:
            if dense is None:
                raise ValueError(f"{f.where}: intermediate_size: missing")
            found.append(dense)
        else:
            found.append(moe)
    return found


def qwen2_moe(f: Fields, name: str) -> Model:
    """Qwen 1.5 and 2 with experts, beside one with a gate that all tokens use."""
    attention = replace(attention_of(f), qkv_bias=f.flag("qkv_bias", True))
    shared = Mlp(f.count("shared_expert_intermediate_size"), part=Part.SHARED)
    moe = Moe(
        f.count("num_experts"),
        f.count("num_experts_per_tok"),
        Mlp(f.count("moe_intermediate_size"), part=Part.EXPERT),
        shared,
        shared_gate=True,
    )
    feeds = _sparse(f, Mlp(f.count("intermediate_size")), moe)
    return model_of(f, name, [Layer(attention, feed) for feed in feeds])


def qwen3_moe(f: Fields, name: str) -> Model:
    """Qwen 3 with experts."""
    bias = f.flag("attention_bias", False)
    heads = attention_of(f)
    attention = replace(heads, qk_norm=2 * heads.head_dim, qkv_bias=bias, out_bias=bias)
    moe = Moe(
        f.count("num_experts"),
        f.count("num_experts_per_tok"),
        Mlp(f.count("moe_intermediate_size"), part=Part.EXPERT),
    )
    dense = Mlp(f.count("intermediate_size")) if f.has("intermediate_size") else None
    return model_of(f, name, [Layer(attention, feed) for feed in _sparse(f, dense, moe)])


def mixtral(f: Fields, name: str) -> Model:
    """Mixtral: every layer has experts."""
    expert = Mlp(f.count("intermediate_size"), part=Part.EXPERT)
    moe = Moe(f.count("num_local_experts"), f.count("num_experts_per_tok"), expert)
    layer = Layer(attention_of(f), moe, window=window_of(f))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"))


def gpt_oss(f: Fields, name: str) -> Model:
    """gpt-oss: biases everywhere, sinks, every other layer with a window."""
    layers = f.count("num_hidden_layers")
    window = f.count("sliding_window")
    local = pattern(f, layers, every=2, window=window)
    attention = replace(attention_of(f), qkv_bias=True, out_bias=True, sinks=True)
    moe = Moe(
        f.count("num_local_experts", "num_experts"),
        f.count("num_experts_per_tok", "experts_per_token"),
        Mlp(f.count("intermediate_size"), bias=True, part=Part.EXPERT),
        router_bias=True,
    )
    whole = Layer(attention, moe)
    built = [replace(whole, window=window) if small else whole for small in local]
    return replace(model_of(f, name, built), split_windows=True)


def deepseek(f: Fields, name: str) -> Model:
    """DeepSeek V2 to V3.2, dense where they have no experts."""
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
        return model_of(f, name, [dense] * layers)
    sparse = Layer(attention, _deepseek_moe(f))
    first = f.count("first_k_dense_replace", default=0, least=0)
    step = f.count("moe_layer_freq", default=1)
    built = [sparse if n >= first and n % step == 0 else dense for n in range(layers)]
    model = model_of(f, name, built)
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


def glm4_moe(f: Fields, name: str) -> Model:
    """GLM 4.5: experts as DeepSeek has them, attention with heads."""
    heads = attention_of(f)
    norm = 2 * heads.head_dim if f.flag("use_qk_norm", False) else 0
    attention = replace(heads, qkv_bias=f.flag("attention_bias", False), qk_norm=norm)
    dense = Layer(attention, Mlp(f.count("intermediate_size")))
    moe = replace(_deepseek_moe(f), router_bias=True)
    sparse = Layer(attention, moe)
    first = f.count("first_k_dense_replace", default=1, least=0)
    layers = f.count("num_hidden_layers")
    model = model_of(f, name, [dense if n < first else sparse for n in range(layers)])
    return replace(model, mtp=_mtp(f, model, sparse))


def llama4(f: Fields, name: str) -> Model:
    """Llama 4: one expert of many, three of four layers look at a chunk."""
    layers = f.count("num_hidden_layers")
    bias = f.flag("attention_bias", False)
    attention = replace(attention_of(f), qkv_bias=bias, out_bias=bias)
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
    return replace(model_of(f, name, built), split_windows=True)

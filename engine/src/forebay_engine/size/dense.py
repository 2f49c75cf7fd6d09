"""Families of models whose every layer has one feed-forward part."""

from __future__ import annotations

from dataclasses import replace

from forebay_engine.size.common import attention_of, model_of, window_of
from forebay_engine.size.fields import Fields, pattern
from forebay_engine.size.layers import Attention, Layer, Mlp
from forebay_engine.size.model import Model


def llama(f: Fields, name: str) -> Model:
    """Llama 2 to 3.3, and what has its shape."""
    bias = f.flag("attention_bias", False)
    attention = replace(attention_of(f), qkv_bias=bias, out_bias=bias)
    feed = Mlp(f.count("intermediate_size"), bias=f.flag("mlp_bias", False))
    return model_of(f, name, [Layer(attention, feed)] * f.count("num_hidden_layers"))


def mistral(f: Fields, name: str) -> Model:
    """Mistral 7B to Mistral Small, with or without a window."""
    # Engines keep whole caches for Mistral's window, so that it saves reading, not room.
    layer = Layer(attention_of(f), Mlp(f.count("intermediate_size")), window=window_of(f))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"))


def qwen2(f: Fields, name: str) -> Model:
    """Qwen 2 and 2.5: biases at queries, keys and values."""
    attention = replace(attention_of(f), qkv_bias=True)
    layer = Layer(attention, Mlp(f.count("intermediate_size")))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"))


def qwen3(f: Fields, name: str) -> Model:
    """Qwen 3: norms of queries and keys, one size of head."""
    bias = f.flag("attention_bias", False)
    heads = attention_of(f)
    attention = replace(heads, qk_norm=2 * heads.head_dim, qkv_bias=bias, out_bias=bias)
    layer = Layer(attention, Mlp(f.count("intermediate_size")))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"))


def gemma(f: Fields, name: str) -> Model:
    """Gemma 1: tied, heads wider than the hidden state."""
    f.count("head_dim")
    layer = Layer(attention_of(f), Mlp(f.count("intermediate_size")))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"), tied=True)


def gemma2(f: Fields, name: str) -> Model:
    """Gemma 2: four norms, every other layer with a window."""
    f.count("head_dim")
    layers = f.count("num_hidden_layers")
    window = f.count("sliding_window", default=4096)
    # Even layers look through the window: (number + 1) % 2 != 0.
    local = pattern(f, layers, every=2, window=window)
    feed = Mlp(f.count("intermediate_size"))
    whole = Layer(attention_of(f), feed, norms=4)
    built = [replace(whole, window=window) if small else whole for small in local]
    return model_of(f, name, built, tied=True)


def gemma3(f: Fields, name: str) -> Model:
    """Gemma 3: five layers with a window for one without."""
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
    if heads.heads % heads.kv_heads:
        raise ValueError(f"{f.where}: num_key_value_heads: does not divide num_attention_heads")
    heads = replace(heads, qk_norm=2 * heads.head_dim)
    whole = Layer(heads, Mlp(f.count("intermediate_size")), norms=4)
    built = [replace(whole, window=window) if small else whole for small in local]
    filled = Fields({"vocab_size": 262208, **f.values}, f.where)
    return model_of(filled, name, built, tied=True)


def phi3(f: Fields, name: str) -> Model:
    """Phi 3 and 4: fused matrices of the usual sizes."""
    layer = Layer(attention_of(f), Mlp(f.count("intermediate_size")), window=window_of(f))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"))


def phi(f: Fields, name: str) -> Model:
    """Phi 1.5 and 2: a feed-forward part without gate, biases everywhere."""
    attention = replace(attention_of(f), qkv_bias=True, out_bias=True)
    feed = Mlp(f.count("intermediate_size"), gated=False, bias=True)
    layer = Layer(attention, feed, norms=1, norm_bias=True)
    model = model_of(f, name, [layer] * f.count("num_hidden_layers"))
    return replace(model, head_bias=True, norm_bias=True)


def olmo2(f: Fields, name: str) -> Model:
    """OLMo 2: norms of whole queries and keys."""
    heads = attention_of(f)
    norm = (heads.heads + heads.kv_heads) * heads.head_dim
    layer = Layer(replace(heads, qk_norm=norm), Mlp(f.count("intermediate_size")))
    return model_of(f, name, [layer] * f.count("num_hidden_layers"))

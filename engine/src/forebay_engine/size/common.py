"""What the fields of all families of `config.json` have in common.

Field names and their defaults are those of Hugging Face's transformers.
"""

from __future__ import annotations

from forebay_engine.size.fields import Fields
from forebay_engine.size.layers import Attention, Layer
from forebay_engine.size.model import Model

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
CONTEXTS = {
    "DeepseekV2ForCausalLM": 2048,
    "DeepseekV3ForCausalLM": 4096,
    "DeepseekV32ForCausalLM": 4096,
    "Gemma2ForCausalLM": 8192,
    "Gemma3ForCausalLM": 131072,
    "Gemma3ForConditionalGeneration": 131072,
    "GemmaForCausalLM": 8192,
    "Glm4MoeForCausalLM": 131072,
    "GptOssForCausalLM": 131072,
    "Llama4ForConditionalGeneration": 131072,
    "LlamaForCausalLM": 2048,
    "Mistral3ForConditionalGeneration": 131072,
    "MistralForCausalLM": 131072,
    "MixtralForCausalLM": 131072,
    "Olmo2ForCausalLM": 2048,
    "Phi3ForCausalLM": 4096,
    "PhiForCausalLM": 2048,
    "Qwen2ForCausalLM": 32768,
    "Qwen2MoeForCausalLM": 32768,
    "Qwen2VLForConditionalGeneration": 32768,
    "Qwen2_5_VLForConditionalGeneration": 32768,
    "Qwen3ForCausalLM": 32768,
    "Qwen3MoeForCausalLM": 32768,
    "Qwen3VLForConditionalGeneration": 128000,
    "Qwen3VLMoeForConditionalGeneration": 128000,
}
"""What transformers 5 takes where `max_position_embeddings` is missing."""

TORCH_DEFAULT = "fp32"  # what transformers takes where neither dtype nor torch_dtype is given


def attention_of(f: Fields) -> Attention:
    """Heads and their size; `head_dim` where it is given. Raises ValueError: they do not divide."""
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
    return Attention(heads, kv, dim, dim)


def model_of(f: Fields, architecture: str, layers: list[Layer], *, tied: bool = False) -> Model:
    """A model of these layers with what stands beside them. tied: where the file does not say."""
    dtype = f.text("dtype") or f.text("torch_dtype")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"{f.where}: torch_dtype: {dtype}: not one of {', '.join(DTYPES)}")
    return Model(
        name="",
        architecture=architecture,
        hidden=f.count("hidden_size"),
        vocab=f.count("vocab_size"),
        layers=tuple(layers),
        context=f.count("max_position_embeddings", default=CONTEXTS[architecture]),
        dtype=DTYPES[dtype] if dtype else TORCH_DEFAULT,
        tied=f.flag("tie_word_embeddings", tied),
    )


def window_of(f: Fields) -> int | None:
    """The sliding window of every layer; None where there is none."""
    return f.count("sliding_window") if f.has("sliding_window") else None

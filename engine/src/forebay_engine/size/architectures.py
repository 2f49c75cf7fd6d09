"""From a `config.json` to a `Model`, by its `architectures`.

An architecture that is not listed is refused: a near miss in the shape would be a wrong size
without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forebay_engine.size import dense, sparse
from forebay_engine.size.fields import Fields
from forebay_engine.size.model import Model

ARCHITECTURES: dict[str, Callable[[Fields, str], Model]] = {
    "DeepseekV2ForCausalLM": sparse.deepseek,
    "DeepseekV3ForCausalLM": sparse.deepseek,
    "DeepseekV32ForCausalLM": sparse.deepseek,
    "Gemma2ForCausalLM": dense.gemma2,
    "Gemma3ForCausalLM": dense.gemma3,
    "Gemma3ForConditionalGeneration": dense.gemma3,
    "GemmaForCausalLM": dense.gemma,
    "Glm4MoeForCausalLM": sparse.glm4_moe,
    "GptOssForCausalLM": sparse.gpt_oss,
    "Llama4ForConditionalGeneration": sparse.llama4,
    "LlamaForCausalLM": dense.llama,
    "Mistral3ForConditionalGeneration": dense.mistral,
    "MistralForCausalLM": dense.mistral,
    "MixtralForCausalLM": sparse.mixtral,
    "Olmo2ForCausalLM": dense.olmo2,
    "Phi3ForCausalLM": dense.phi3,
    "PhiForCausalLM": dense.phi,
    "Qwen2ForCausalLM": dense.qwen2,
    "Qwen2MoeForCausalLM": sparse.qwen2_moe,
    "Qwen2VLForConditionalGeneration": dense.qwen2,
    "Qwen2_5_VLForConditionalGeneration": dense.qwen2,
    "Qwen3ForCausalLM": dense.qwen3,
    "Qwen3MoeForCausalLM": sparse.qwen3_moe,
    "Qwen3VLForConditionalGeneration": dense.qwen3,
    "Qwen3VLMoeForConditionalGeneration": sparse.qwen3_moe,
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
    vision = values.inner("vision_config")
    if vision is not None and not other:
        notes = ("the vision tower is not counted (--other-params)",)
    model = ARCHITECTURES[name](fields, name)
    for moe in model.expert_layers[:1]:
        if moe.per_token > moe.experts:
            raise ValueError(
                f"{fields.where}: num_experts_per_tok: at most the {moe.experts} experts"
            )
    # Where fields are missing, SGLang takes those of a ViT-L/14.
    tower = None
    if vision is not None:
        layers = vision.count("num_hidden_layers", default=24)
        tower = layers, vision.count("hidden_size", default=1024)
    return replace(model, other=other, vision=tower, notes=(*model.notes, *notes))

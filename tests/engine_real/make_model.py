"""Write a tiny Llama with known answers, and its tokenizer.

    python make_model.py FOLDER

Runs in the engine's environment. A real model for a real engine, made of a table: the layers add
nothing to the residual stream, a token's embedding is its own unit vector, and the head maps it to
the token that follows it in `scripts.py`. The chat template ends a prompt with the start
token of the script that the last message asks for. Temperature 0 is exact; at 1 the other tokens
are e^40 times less likely.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import launch_cpu  # noqa: F401  # declares what torchvision lacks beside a torch for CPUs
import torch
from scripts import HELLO, SCRIPTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEAD = 64
"""Dimension of an attention head, the least that engines' kernels on GPUs all have."""
VOCABULARY = 1024
CONTEXT = 1024
PAD, BEGIN, TURN, END = "<|pad|>", "<|begin|>", "<|im_start|>", "<|im_end|>"
OTHERS = [script.name for script in SCRIPTS if script is not HELLO]

TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% set asked = messages[-1]['content'] | string -%}
{%- set ns = namespace(script='NAME') -%}
{%- for name in NAMES -%}
{%- if '/' ~ name in asked -%}{%- set ns.script = name -%}{%- endif -%}
{%- endfor -%}
{{ '<|go:' ~ ns.script ~ '|>' }}
{%- endif -%}
""".replace("NAMES", repr(OTHERS)).replace("NAME", HELLO.name)


def start_token(name: str) -> str:
    """The token after which the script begins."""
    return f"<|go:{name}|>"


def tokenizer() -> Tokenizer:
    """Bytes, and every text of a script as a token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [PAD, BEGIN, TURN, END, *(start_token(script.name) for script in SCRIPTS)]
    made.add_special_tokens([AddedToken(text, special=True) for text in special])
    texts = [text for script in SCRIPTS for text in script.texts]
    assert len(set(texts)) == len(texts), "a text is the model's whole state"
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    return made


def successors(made: Tokenizer) -> dict[int, int]:
    """The token that follows each; what is in no script is followed by the greeting."""
    number = made.token_to_id
    follows = dict.fromkeys(range(made.get_vocab_size()), number(HELLO.texts[0]))
    for script in SCRIPTS:
        chain = [start_token(script.name), *script.texts]
        chain.append(END if script.ends else script.texts[0])
        for now, then in pairwise(chain):
            follows[number(now)] = number(then)
    return follows


def model(made: Tokenizer) -> LlamaForCausalLM:
    """The table as a Llama."""
    used = made.get_vocab_size()
    assert used <= VOCABULARY
    hidden = -(-used // HEAD) * HEAD
    marks = {
        "bos_token_id": made.token_to_id(BEGIN),
        "eos_token_id": made.token_to_id(END),
        "pad_token_id": made.token_to_id(PAD),
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **marks,
    )
    llama = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        llama.model.embed_tokens.weight.zero_()
        llama.lm_head.weight.zero_()
        for now, then in successors(made).items():
            llama.model.embed_tokens.weight[now, now] = 1.0
            llama.lm_head.weight[then, now] = 2.0
    llama.generation_config = GenerationConfig(**marks)
    return llama


def main(folder: Path) -> None:
    """Write both."""
    made = tokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    model(made).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

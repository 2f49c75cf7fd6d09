"""Anything that speaks OpenAI's chat, completions and embeddings and lists its models."""

from forebay.upstreams.kind import Kind, Probe

KIND = Kind(
    name="openai_compatible",
    probe=Probe(ready="/v1/models", models="/v1/models"),
)

"""Anything that speaks OpenAI's chat, completions and embeddings and lists its models."""

from forebay.upstreams.kind import Kind

KIND = Kind(
    name="openai_compatible",
    include_usage=True,
    continuous_usage=False,
    rid=False,
    abort_path=None,
    models_path="/v1/models",
    ready_path="/v1/models",
)

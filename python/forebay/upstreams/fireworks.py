"""Fireworks AI: https://docs.fireworks.ai. ``https://api.fireworks.ai/inference/v1``, bearer key.

Chat, completions, embeddings. Models are ``accounts/ACCOUNT/models/MODEL``. A request that does not
fit has its ``max_tokens`` lowered in silence unless ``context_length_exceeded_behavior: "error"``
is in the body. 412: the account is suspended, or an adapter failed to load. Dedicated deployments
that were scaled to zero answer 503.

Usage is in the last chunk, asked for or not. Closing the connection stops a stream.

Sources: docs.fireworks.ai: OpenAI compatibility, inference error codes, serverless rate limits;
openrouter.ai/docs "Stream cancellation".
"""

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe

KIND = Kind(
    name="fireworks",
    default_url="https://api.fireworks.ai/inference",
    errors=(
        ErrorRule(405, "upstream_error", retry=True),
        ErrorRule(412, "upstream_error", contains="suspended", retry=True, reason="quota"),
        ErrorRule(412, "upstream_error", retry=True),
    ),
    default_paths=Paths(responses="/v1/responses").having("rerank"),
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=30.0, timeout_s=10.0),
)

"""Fireworks AI: https://docs.fireworks.ai. ``https://api.fireworks.ai/inference/v1``, bearer key.

Chat, completions, embeddings. Models are ``accounts/ACCOUNT/models/MODEL``. A request that does not
fit has its ``max_tokens`` lowered in silence unless ``context_length_exceeded_behavior: "error"``
is in the body. 412: the account is suspended, or an adapter failed to load. Dedicated deployments
that were scaled to zero answer 503.

Usage is in the last chunk, asked for or not. Closing the connection stops a stream.

Sources: docs.fireworks.ai: OpenAI compatibility, inference error codes, serverless rate limits;
openrouter.ai/docs "Stream cancellation".
"""

from forebay.upstreams.kind import ErrorRule, Kind, Probe
from forebay.upstreams.rules import BAD_KEY, NO_MODEL, NO_MONEY, OPENAI_OVERFLOW, refusals

KIND = Kind(
    name="fireworks",
    default_url="https://api.fireworks.ai/inference",
    errors=(
        *OPENAI_OVERFLOW,
        *refusals(400, "context_overflow", texts=("prompt is too long",)),
        ErrorRule(412, "upstream_error", contains="suspended", retry=True, reason="quota"),
        ErrorRule(412, "upstream_error", retry=True),
        ErrorRule(405, "upstream_error", retry=True),
        ErrorRule(429, "rate_limited", retry=True),
        NO_MODEL,
        NO_MONEY,
        *BAD_KEY,
    ),
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=30.0, timeout_s=10.0),
)

"""Together AI: https://docs.together.ai. ``https://api.together.ai/v1``, bearer key.

Chat, completions, embeddings; ``/v1/models`` answers with a bare list. Errors have OpenAI's
envelope: 402 no credit, **403 the context is too long**, 429 above the dynamic rate (``error_type``
``dynamic_request_limited``, ``dynamic_token_limited``) and 503 at or below it: both are worth
another target at once. Rate headers ``x-ratelimit-*``, ``x-tokenlimit-*``.

Closing the connection stops a stream. Whether usage needs ``include_usage`` is not documented: it
is asked for.

Sources: docs.together.ai: OpenAI compatibility, rate limits, error codes; openrouter.ai/docs
"Stream cancellation".
"""

from forebay.upstreams.kind import ErrorRule, Kind, Probe
from forebay.upstreams.rules import BAD_KEY, NO_MODEL, NO_MONEY, OPENAI_OVERFLOW, refusals

KIND = Kind(
    name="together",
    default_url="https://api.together.ai",
    errors=(
        *OPENAI_OVERFLOW,
        *refusals(403, "context_overflow", texts=("context length", "too long", "maximum context")),
        *refusals(422, "context_overflow", texts=("`inputs` tokens + `max_new_tokens` must be",)),
        ErrorRule(429, "rate_limited", retry=True),
        ErrorRule(503, "unavailable", retry=True),
        NO_MODEL,
        NO_MONEY,
        *BAD_KEY,
    ),
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=30.0, timeout_s=10.0),
)

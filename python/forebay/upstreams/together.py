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

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe

KIND = Kind(
    name="together",
    default_url="https://api.together.ai",
    errors=tuple(
        ErrorRule(403, "invalid_request", contains=text, retry=False, reason="context_overflow")
        for text in ("context length", "too long", "maximum context")
    ),
    default_paths=Paths().having("rerank", "images", "speech", "transcriptions", "translations"),
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=30.0, timeout_s=10.0),
)

"""OpenRouter: https://openrouter.ai/docs. ``https://openrouter.ai/api/v1``, bearer key.

``HTTP-Referer`` and ``X-Title`` name your application, as ``headers``. ``/v1/models`` is open to
all, so ``/v1/key`` is what tells a wrong key. Errors are ``{"error": {code: int, message,
metadata}}``: 402 no credit, 403 a moderated model refused the input, 408 time is up, 502 the
provider failed, 503 no provider fits. In a stream an error is a chunk with a top-level ``error``
and ``finish_reason: "error"``. While a provider is waited for, comments come.

Usage is always in the last message, with what it cost. Closing the connection stops a stream at
providers that can, which are most; other answers are billed whole (``on_disconnect: drain`` for
them).

Sources: openrouter.ai/docs: API reference, streaming, usage accounting, errors.
"""

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe

KIND = Kind(
    name="openrouter",
    default_url="https://openrouter.ai/api",
    default_paths=Paths(responses="/v1/responses"),
    responses=True,
    errors=tuple(
        ErrorRule(403, "invalid_request", contains=text, retry=False, reason="content_filter")
        for text in ("moderation", "flagged")
    ),
    probe=Probe(
        ready="/v1/models", models="/v1/models", auth="/v1/key", interval_s=30.0, timeout_s=10.0
    ),
)

"""OpenAI: https://developers.openai.com. ``https://api.openai.com/v1``, bearer key.

Organisation and project, where a key has several, go into ``headers`` (``OpenAI-Organization``,
``OpenAI-Project``). Reasoning models take ``max_completion_tokens``, not ``max_tokens``.

429 is two things: a rate (``rate_limit_exceeded``, ``slow_down``), worth waiting or another target,
and a quota (``insufficient_quota``, ``credit_balance_exhausted``), which no wait cures. 403: a
country that is not served. Waits are in ``retry-after-ms``, ``retry-after`` and
``x-ratelimit-reset-*`` (``6m0s``).

Usage with ``include_usage``, in a last chunk without choices; it may be missing after a cut.
Closing the connection stops a stream.

Realtime sessions are WebSockets at ``/v1/realtime?model=…``, with the same key.

Sources: developers.openai.com: api/reference/overview, guides/error-codes, guides/rate-limits;
openai/openai-python.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="openai",
    default_url="https://api.openai.com",
    default_paths=Paths(responses="/v1/responses", realtime="/v1/realtime?model={model}").having(
        "moderations",
        "images",
        "image_edits",
        "image_variations",
        "speech",
        "transcriptions",
        "translations",
        "files",
        "batches",
    ),
    responses=True,
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=30.0, timeout_s=10.0),
)

"""LiteLLM proxy: https://docs.litellm.ai. ``http://HOST:4000``, bearer key (virtual or master).

Chat, completions, embeddings. ``/health/readiness`` needs no key and calls no model; ``/health``
calls them all. Errors are OpenAI's with ``code`` as text; its own have types such as
``budget_exceeded`` and ``key_model_access_denied``, a provider's name an exception in the message
(``ContextWindowExceededError``, ``ContentPolicyViolationError``).

Usage with ``include_usage``. Closing the connection stops chat streams since mid-2026; other
requests only where the proxy is told to.

Sources: docs.litellm.ai: proxy/health, exception_mapping, error_reference; BerriAI/litellm pull
requests 30223, 30245 and 31499.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="litellm",
    default_paths=Paths(responses="/v1/responses").having(
        "rerank",
        "moderations",
        "images",
        "image_edits",
        "speech",
        "transcriptions",
        "translations",
        "files",
        "batches",
    ),
    probe=Probe(ready="/health/readiness", models="/v1/models", interval_s=5.0, timeout_s=5.0),
)

"""Text Generation Inference: https://github.com/huggingface/text-generation-inference.

In maintenance, but served in many places. Address ``http://HOST:3000``, optional bearer key; health
and models need none. Chat and completions only: no embeddings. ``model`` is not looked at.

Errors are ``{"error": "text", "error_type": …}``: 422 validation, 424 a generation that failed, 429
overloaded, 503 not healthy (starting, too); a refused key is a 401 without a body. In a stream an
error event, then ``[DONE]``; an empty comment every 15 s.

Usage with ``include_usage``: prompt, completion and total. A hang-up stops the request. It cannot
go on from an assistant's message.

Sources: router/src/server.rs, router/src/validation.rs, launcher/src/main.rs; README.
"""

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe

KIND = Kind(
    name="tgi",
    any_model=True,
    cold=True,
    default_paths=Paths(embeddings=None),
    errors=(
        ErrorRule(424, "upstream_error", retry=True),
        ErrorRule(429, "unavailable", retry=True),
    ),
    probe=Probe(
        ready="/health",
        loading=frozenset({503}),
        models="/v1/models",
    ),
)

"""Anything that speaks OpenAI's chat, completions and embeddings and lists its models.

``url`` as that of OpenAI's SDKs; ``api_key`` is a bearer token, others go into ``headers``. Nothing
is taken for granted that OpenAI's own API does not have: no abort by id, no going on from an
assistant's message (``continues: true`` where it can), no cold start (``cold: {}`` where it has
one).

Source: openai/openai-python, types/chat.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="openai_compatible",
    default_paths=Paths(responses="/v1/responses").having(
        "rerank",
        "score",
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
    probe=Probe(ready="/v1/models", models="/v1/models"),
)

"""Anyscale services, and Ray Serve LLM anywhere: https://docs.ray.io/en/latest/serve/llm.

Address of the service (``https://NAME.cld-….s.anyscaleuserdata.com``), the service's token as
bearer key. The shared endpoints (``api.endpoints.anyscale.com``) closed on 1 August 2024. Behind a
FastAPI ingress stands vLLM or SGLang: chat, completions, embeddings, models; errors and usage are
the engine's. Replicas may scale to zero: requests then wait in Serve's queue, and ``/v1/models``,
which the ingress answers itself, says nothing of it. A hang-up stops the request, per OpenRouter's
list of the old service.

Sources: docs.anyscale.com services; docs.ray.io "Serving LLMs"; openrouter.ai/docs.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="anyscale",
    default_paths=Paths().having("rerank", "score", "transcriptions", "translations"),
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=10.0, timeout_s=5.0),
)

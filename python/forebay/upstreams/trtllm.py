"""TensorRT-LLM (``trtllm-serve``): https://github.com/NVIDIA/TensorRT-LLM.

Address ``http://HOST:8000``. The server asks for no key; one is sent if it is set, for a proxy in
front. Chat and completions; embeddings are a server of their own. ``/health`` is 503 with a text
while it cannot serve; when the executor fails, the process ends.

Errors are flat: ``{object, message, type, code}``; 400, 404, 501. A stream that fails after its 200
is cut: no event, no ``[DONE]``. So the end marker is good for something here, and its absence is
the only sign.

Usage with ``include_usage``. A hang-up is seen at a poll of one second, then the request is
stopped.

Source: tensorrt_llm/serve/openai_server.py.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="trtllm",
    cold=True,
    default_paths=Paths(embeddings=None, responses="/v1/responses"),
    probe=Probe(
        ready="/health",
        loading=frozenset({503}),
        models="/v1/models",
    ),
)

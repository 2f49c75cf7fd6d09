"""vLLM (0.32): https://github.com/vllm-project/vllm.

Address ``http://HOST:8000``; a bearer key is asked for below ``/v1`` only, so ``/health`` is open.
``/health`` is 200 without touching the model and 503 once the engine has died; the port is closed
while weights load.

Errors are ``{"error": {message, type, param, code: int}}``, a refused key is ``{"error":
"Unauthorized"}``. A stream that fails after its 200 has an event ``{"error": …}`` and then
``[DONE]`` all the same; ``finish_reason: "abort"`` may end one as if nothing were wrong.

Usage as SGLang. A hang-up stops the request. There is no abort by id, and the client's id goes into
``request_id``, not ``rid``.

Sources: docs.vllm.ai "OpenAI-Compatible Server"; vllm/entrypoints:
openai/chat_completion/serving.py, serve/middleware/authenticate.py, serve/instrumentator/health.py.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="vllm",
    continuous_usage=True,
    continues=True,
    cold=True,
    default_paths=Paths(count_tokens="/v1/messages/count_tokens", responses="/v1/responses").having(
        "rerank", "score", "transcriptions", "translations"
    ),
    probe=Probe(
        ready="/health",
        models="/v1/models",
    ),
)

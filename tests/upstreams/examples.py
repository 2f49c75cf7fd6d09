"""One sound section of each kind, with a secret wherever it takes one."""

from typing import Any

SECRET = "s3cret-of-the-test"

SECTIONS: dict[str, dict[str, Any]] = {
    "sglang": {"url": "http://10.0.0.5:30000", "api_key": SECRET},
    "vllm": {"url": "http://10.0.0.5:8000/v1", "api_key": SECRET},
    "tgi": {"url": "http://10.0.0.5:3000", "api_key": SECRET},
    "trtllm": {"url": "http://10.0.0.5:8000"},
    "modal": {
        "url": "https://acme--llama.modal.run",
        "api_key": SECRET,
        "credentials": {"key": f"wk-{SECRET}", "secret": f"ws-{SECRET}"},
    },
    "baseten": {
        "url": "https://model-abc.api.baseten.co/environments/production/sync",
        "api_key": SECRET,
    },
    "runpod": {"url": "https://api.runpod.ai/v2/abc/openai/v1", "api_key": SECRET},
    "together": {"api_key": SECRET},
    "fireworks": {"api_key": SECRET},
    "anyscale": {"url": "https://svc.example.com", "api_key": SECRET},
    "openai": {"api_key": SECRET, "headers": {"OpenAI-Organization": f"org-{SECRET}"}},
    "anthropic": {"api_key": SECRET},
    "gemini": {"api_key": SECRET},
    "bedrock": {
        "region": "us-east-1",
        "credentials": {
            "access_key_id": f"AKIA{SECRET}",
            "secret_access_key": SECRET,
            "session_token": f"t-{SECRET}",
        },
    },
    "vertex": {"project": "acme-1", "location": "us-central1"},
    "azure": {
        "url": "https://acme.openai.azure.com",
        "credentials": {"tenant_id": "t", "client_id": "c", "client_secret": SECRET},
    },
    "openrouter": {"api_key": SECRET},
    "litellm": {"url": "http://127.0.0.1:4000", "api_key": SECRET},
    "openai_compatible": {"url": "https://llm.example.com/v1", "api_key": SECRET},
}

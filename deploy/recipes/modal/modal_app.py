"""SGLang under forebay-engine on Modal: modal deploy deploy/recipes/modal/modal_app.py."""

import subprocess
from pathlib import Path

import modal

MODEL = "Qwen/Qwen3-8B"
GPU = "L40S"
PORT = 30000
CACHE = "/cache"

REPOSITORY = Path(__file__).parents[3] if modal.is_local() else Path("/")

image = (
    modal.Image.from_registry("lmsysorg/sglang:v0.5.23")
    .entrypoint([])
    .add_local_dir(REPOSITORY / "engine", "/opt/forebay-engine", copy=True)
    .run_commands("python3 -m pip install --no-cache-dir '/opt/forebay-engine[serve]'")
    .env({"HF_HOME": f"{CACHE}/huggingface"})
)
cache = modal.Volume.from_name("forebay-engine-cache", create_if_missing=True)
app = modal.App("forebay-engine", image=image)

PROFILE = f"""\
kind: sglang
model: {MODEL}
host: 0.0.0.0
port: {PORT}
cache_dir: {CACHE}/engine
"""


@app.function(
    gpu=GPU,
    volumes={CACHE: cache},
    secrets=[modal.Secret.from_name("huggingface")],
    max_containers=4,
    scaledown_window=300,
    timeout=3600,
)
@modal.concurrent(max_inputs=256, target_inputs=128)
@modal.web_server(PORT, startup_timeout=1800, requires_proxy_auth=True)
def engine() -> None:
    """Start the engine; Modal sends requests once its port is open."""
    profile = Path("/tmp/profile.yaml")
    profile.write_text(PROFILE)
    subprocess.Popen(["forebay-engine", "serve", "--profile", str(profile), "--agent", "off"])

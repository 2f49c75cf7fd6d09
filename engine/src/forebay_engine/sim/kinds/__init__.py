"""Simulated kinds of upstream beside SGLang, a file each or a family.

Their answers are the simulator's: the same text for the same prompt, whatever the wire. Which facts
they are built from, and which of them no source confirms, says `docs/upstreams.md`.
"""

from __future__ import annotations

from forebay_engine.sim.app import App
from forebay_engine.sim.kinds.anthropic import Anthropic
from forebay_engine.sim.kinds.azure import Azure
from forebay_engine.sim.kinds.base import KindApp
from forebay_engine.sim.kinds.baseten import Baseten
from forebay_engine.sim.kinds.bedrock import Bedrock
from forebay_engine.sim.kinds.fireworks import Fireworks
from forebay_engine.sim.kinds.gemini import Gemini, Vertex
from forebay_engine.sim.kinds.litellm import LiteLLM
from forebay_engine.sim.kinds.modal import Modal
from forebay_engine.sim.kinds.openai import OpenAI, OpenAICompatible
from forebay_engine.sim.kinds.openrouter import OpenRouter
from forebay_engine.sim.kinds.runpod import RunPod
from forebay_engine.sim.kinds.tgi import TGI
from forebay_engine.sim.kinds.together import Together
from forebay_engine.sim.kinds.trtllm import TRTLLM
from forebay_engine.sim.kinds.vllm import VLLM, Anyscale
from forebay_engine.sim.options import SimOptions

KINDS: dict[str, type[App]] = {
    "sglang": App,
    "vllm": VLLM,
    "tgi": TGI,
    "trtllm": TRTLLM,
    "modal": Modal,
    "baseten": Baseten,
    "runpod": RunPod,
    "together": Together,
    "fireworks": Fireworks,
    "anyscale": Anyscale,
    "openai": OpenAI,
    "anthropic": Anthropic,
    "gemini": Gemini,
    "bedrock": Bedrock,
    "vertex": Vertex,
    "azure": Azure,
    "openrouter": OpenRouter,
    "litellm": LiteLLM,
    "openai_compatible": OpenAICompatible,
}
"""Every kind's routes."""


def make_app(options: SimOptions) -> App:
    """The routes of the kind that the options name."""
    return KINDS[options.kind](options)


def refuses_while_cold(kind: str) -> bool:
    """Whether the port refuses connections while such a server loads."""
    app = KINDS[kind]
    return not issubclass(app, KindApp) or app.cold_way == "refuse"


def starts_cold(kind: str) -> bool:
    """Whether there is a cold start at all."""
    app = KINDS[kind]
    return not issubclass(app, KindApp) or app.cold_way != "never"

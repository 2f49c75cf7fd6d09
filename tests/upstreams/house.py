"""A gateway in front of a simulator of every kind, and what its clients see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.processes import Gateway, Key
from tests.support.simulated import (
    KEY,
    TARGETS,
    SimThread,
    Simulated,
    Target,
    section,
    service_account,
    sim_options,
)
from tests.support.wire import CHAT, Answer, chat
from tests.upstreams.token_server import TokenServer

HELLO = " Hello there, this is a scripted answer."
COLD = ("tgi", "vllm", "sglang", "trtllm", "modal", "baseten", "runpod")
POOR = (
    *("openai", "azure", "azure-classic", "anthropic", "gemini", "gemini-openai", "vertex"),
    *("vertex-native", "litellm", "together", "fireworks", "openrouter"),
)
"""Targets whose provider has quotas."""
CONTINUES = ("sglang", "vllm")
QUICK = {"first_byte": 8, "idle": 3, "total": 20}


class House(NamedTuple):
    """A gateway, its key, and the simulators behind it by target."""

    gateway: Gateway
    key: Key
    sims: dict[str, Simulated]

    def ask(self, target: str, content: str = "hi", **fields: Any) -> Answer:
        """A chat request; nothing of the upstream's may show in its answer."""
        answer = self.gateway.call(CHAT, chat(target, content, **fields), key=self.key.secret)
        shown = answer.body.decode(errors="replace") + repr(answer.headers)
        assert KEY not in shown
        assert "127.0.0.1" not in shown
        return answer

    def text(self, content: str) -> str:
        """The simulator's text for a prompt: every kind has SGLang's."""
        value = self.ask("sglang", content).json()
        text: str = value["choices"][0]["message"]["content"]
        return text

    def stream(self, target: str, content: str = "hi", **fields: Any) -> Seen:
        """A streamed one that asks for its usage, and what came of it."""
        fields = {"stream_options": {"include_usage": True}, **fields}
        return seen(self.ask(target, content, stream=True, **fields))


class Seen(NamedTuple):
    """What a client sees of a stream. calls: by index, id, name and arguments."""

    answer: Answer
    text: str
    reason: str | None
    calls: dict[int, list[str]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    done: bool


def seen(answer: Answer) -> Seen:
    """Read a stream as a client does."""
    text, reason, usage, error, done = "", None, None, None, False
    calls: dict[int, list[str]] = {}
    for data in answer.data():
        assert not done, "something follows [DONE]"
        if data.startswith(":"):
            continue
        if data == "[DONE]":
            done = True
            continue
        value = json.loads(data)
        error = value.get("error", error)
        usage = value.get("usage") or usage
        for choice in value.get("choices", []):
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            reason = choice.get("finish_reason") or reason
            for call in delta.get("tool_calls") or []:
                function = call.get("function", {})
                entry = calls.setdefault(call["index"], ["", "", ""])
                entry[0] = call.get("id") or entry[0]
                entry[1] += function.get("name") or ""
                entry[2] += function.get("arguments") or ""
    return Seen(answer, text, reason, calls, usage, error, done)


@contextmanager
def build(folder: Path, database_url: str) -> Iterator[House]:
    """Every target behind one gateway; the cold ones refuse until a test starts them."""
    with SimThread() as thread, TokenServer() as tokens:
        tokens.answer = (200, {"access_token": KEY, "expires_in": 3600, "token_type": "Bearer"})
        google = str(service_account(folder, f"{tokens.url}/token"))
        sims: dict[str, Simulated] = {}
        upstreams: dict[str, Any] = {}
        models: dict[str, Any] = {}

        def add(name: str, target: Target, model: dict[str, Any] | None = None, **sim: Any) -> None:
            sims[name] = thread.bind(**{**sim_options(target), **sim})
            more: dict[str, Any] = {}
            if target.kind == "vertex":
                more["credentials"] = {"file": google}
            if "cold_s" in sim:
                more["cold"] = {"hold": 20, "keep_alive": 0.2}
            upstreams[name] = section(target, sims[name].url, outlier=None, **more)
            targets = [{"upstream": name, "model": target.model}]
            models[name] = {"targets": targets, "timeouts": QUICK, "retry": {"attempts": 1}}
            if target.embeddings:
                embed = [{"upstream": name, "model": "tiny-embed"}]
                models[f"{name}-embed"] = {"targets": embed, "timeouts": QUICK}
            models[name] |= model or {}

        for name, target in TARGETS.items():
            add(name, target)
            sims[name].start()
        # An SGLang serves chat or embeddings.
        sims["vectors"] = thread.bind(
            api_key=KEY, models=(), embedding_models=("tiny-embed",)
        ).start()
        upstreams["vectors"] = section(TARGETS["sglang"], sims["vectors"].url)
        vectors = [{"upstream": "vectors", "model": "tiny-embed"}]
        models["sglang-embed"] = {"targets": vectors, "timeouts": QUICK}
        for name in POOR:
            # An upstream of its own: it is left alone for long.
            upstreams[f"{name}-poor"] = upstreams[name]
            models[f"{name}-poor"] = {
                **models[name],
                "targets": [{"upstream": f"{name}-poor", "model": TARGETS[name].model}],
            }
        for name in COLD:
            add(f"cold-{name}", TARGETS[name], cold_s=0.8)
        add("hops-modal", TARGETS["modal"], cold_s=0.8, redirect_after_s=0.2)
        for name in CONTINUES:
            add(f"breaks-{name}", TARGETS[name])
            sims[f"breaks-{name}"].start()
            targets = [
                {"upstream": f"breaks-{name}", "model": "tiny"},
                {"upstream": name, "model": "tiny", "tier": 1},
            ]
            models[f"breaks-{name}"] |= {"targets": targets, "resume": True}
        config = {"upstreams": upstreams, "models": models}
        gateway = Gateway(folder / "gateway", config, database_url)
        gateway.start()
        key = gateway.key()
        yield House(gateway, key, sims)
        status = gateway.stop()
        assert status == 0, gateway.log()
        assert "Traceback (most recent" not in gateway.log(), gateway.log()

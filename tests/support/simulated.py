"""Simulated upstreams of every kind, in one thread, and the configuration that leads to them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.scheduler import Limits
from forebay_engine.sim.server import Server

from tests.support.wire import call, request

T = TypeVar("T")
KEY = "k-provider-1"
"""The gateway's key at every upstream."""
LIMITS = Limits(prefill_rate=0, decode_rate=400)
CONTEXT = 3000


@dataclass(frozen=True)
class Target:
    """One way of reaching a kind.

    base: path of the upstream's address. section: its settings besides kind and address.
    sim: options of the simulator. model: the model's name there; served: as the simulator has it.
    """

    kind: str
    base: str = ""
    section: dict[str, Any] = field(default_factory=dict)
    sim: dict[str, Any] = field(default_factory=dict)
    model: str = "tiny"
    served: str = "tiny"
    embeddings: bool = False


def _key(**more: Any) -> dict[str, Any]:
    return {"api_key": KEY, **more}


_AWS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": KEY, "session_token": "token-1"}
_PROFILE = "us.anthropic.tiny-v1:0"
_BEDROCK: dict[str, Any] = {"region": "us-east-1"}
_VERTEX: dict[str, Any] = {"project": "acme-1", "location": "us-central1"}
TARGETS: dict[str, Target] = {
    "sglang": Target("sglang", section=_key(), embeddings=True),
    "vllm": Target("vllm", section=_key(), embeddings=True),
    "tgi": Target("tgi", section=_key()),
    "trtllm": Target("trtllm"),
    "modal": Target(
        "modal",
        section={"credentials": {"key": "wk-1", "secret": KEY}},
        sim={"api_key": f"wk-1:{KEY}"},
        embeddings=True,
    ),
    "baseten": Target("baseten", "/environments/production/sync", _key(), embeddings=True),
    "baseten-shared": Target("baseten", section=_key()),
    "runpod": Target("runpod", "/v2/abc/openai/v1", _key()),
    "runpod-balanced": Target("runpod", section=_key(), embeddings=True),
    "together": Target("together", section=_key(), embeddings=True),
    "fireworks": Target("fireworks", "/inference", _key(), embeddings=True),
    "anyscale": Target("anyscale", section=_key(), embeddings=True),
    "openai": Target("openai", section=_key(), embeddings=True),
    "anthropic": Target("anthropic", section=_key(max_output_tokens=2048, drop_params=True)),
    "gemini": Target("gemini", section=_key()),
    "gemini-openai": Target("gemini", section=_key(api="openai"), embeddings=True),
    "bedrock": Target(
        "bedrock",
        section={**_BEDROCK, "credentials": _AWS},
        sim={"api_key": ":".join(_AWS.values())},
        model=_PROFILE,
        served=_PROFILE,
    ),
    "bedrock-key": Target("bedrock", section=_key(**_BEDROCK), model=_PROFILE, served=_PROFILE),
    "bedrock-openai": Target("bedrock", section=_key(**_BEDROCK, api="openai")),
    "vertex": Target("vertex", section=_VERTEX, model="google/tiny"),
    "vertex-native": Target("vertex", section={**_VERTEX, "api": "native"}),
    "azure": Target("azure", section=_key(), embeddings=True),
    "azure-classic": Target(
        "azure", section=_key(deployments=True, api_version="2024-10-21"), embeddings=True
    ),
    "openrouter": Target("openrouter", "/api", _key(), embeddings=True),
    "litellm": Target("litellm", section=_key(), embeddings=True),
    "openai_compatible": Target("openai_compatible", "/v1", _key(), embeddings=True),
}
"""Every kind by its own name, and the other ways that some of them have."""


class SimThread:
    """Runs simulators on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[Server] = []

    def __enter__(self) -> SimThread:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            self.run(server.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(20)

    def bind(self, **options: Any) -> Simulated:
        """A server with an address that refuses connections until `start`."""
        base: dict[str, Any] = {"port": 0, "limits": LIMITS, "health_delay_s": 0.0}
        base |= {"disconnect_poll_s": 0.1, "cache_report": True, "context_length": CONTEXT}
        server = Server(SimOptions(**{**base, **options}))
        self._servers.append(server)
        return Simulated(self, server)


class Simulated:
    """One simulator."""

    def __init__(self, thread: SimThread, server: Server) -> None:
        self._thread = thread
        self._server = server

    @property
    def url(self) -> str:
        """Its address."""
        return self._server.url

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return self._server.options.port

    def start(self) -> Simulated:
        """Listen, or begin to load where the kind refuses meanwhile."""
        options = self._server.options
        if options.cold_s is None:
            self._thread.run(self._server.start)
        else:
            self._thread.run(self._begin)
        return self

    async def _begin(self) -> None:
        self._starting = asyncio.ensure_future(self._server.start())

    def requests(self) -> list[dict[str, Any]]:
        """What it remembers of the requests for inference."""
        found: list[dict[str, Any]] = call(self.port, request("/sim/requests")).json()["requests"]
        return found

    def last(self) -> dict[str, Any]:
        """The last of them."""
        return self.requests()[-1]

    def set_faults(self, *given: str) -> None:
        """Replace its faults."""
        answer = call(self.port, request("/sim/faults", {"faults": list(given)}))
        assert answer.status == 200, answer.body

    @contextmanager
    def faults(self, *given: str) -> Iterator[None]:
        """These faults, for a while."""
        self.set_faults(*given)
        try:
            yield
        finally:
            self.set_faults()


def section(target: Target, url: str, **more: Any) -> dict[str, Any]:
    """An upstream's configuration."""
    return {"kind": target.kind, "url": url + target.base, **target.section, **more}


def sim_options(target: Target) -> dict[str, Any]:
    """The options of the simulator behind a target."""
    keyed = {} if target.kind == "trtllm" else {"api_key": KEY}
    embedding = ("tiny-embed",) if target.embeddings else ()
    base = {"kind": target.kind, "models": (target.served,), "embedding_models": embedding}
    return {**base, **keyed, **target.sim}


def service_account(folder: Path, token_url: str) -> Path:
    """A file with a service account of Google's whose tokens come from `token_url`."""
    from tests.upstreams.token_server import pem, rsa_key

    file = folder / "service-account.json"
    account = {
        "type": "service_account",
        "project_id": "acme-1",
        "private_key_id": "k1",
        "private_key": pem(rsa_key()).decode(),
        "client_email": "gateway@acme-1.iam.gserviceaccount.com",
        "token_uri": token_url,
    }
    file.write_text(json.dumps(account))
    return file

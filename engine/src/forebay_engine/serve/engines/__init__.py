"""What the kinds of engines differ in: one file a kind, one protocol."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, cast

from forebay_engine.serve.gpu import Gpu

if TYPE_CHECKING:
    from forebay_engine.serve.profile import Profile

Stage = Literal["imported", "weights", "weights_end", "graphs", "graphs_end", "gated"]
"""What a line of the log can say: that a stage begins, or has ended."""


@dataclass(frozen=True)
class Load:
    """What an engine does. kv_used: share of its cache, 0 to 1, None where it does not say."""

    running: int
    queued: int
    kv_used: float | None = None


@dataclass(frozen=True)
class Mark:
    """A line that matches `pattern` says `stage`."""

    stage: Stage
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Call:
    """One POST to the engine. port: another than the engine's own."""

    path: str
    body: Mapping[str, object] = field(default_factory=dict)
    port: int | None = None

    def data(self) -> bytes:
        """The JSON body."""
        return json.dumps(self.body).encode()


@dataclass(frozen=True)
class ParkCalls:
    """How memory is released and taken again, the process staying."""

    release: Call
    resume: Call


class EngineKind(Protocol):
    """One kind of engine: what it is started with, and where it is asked."""

    name: str
    version: str
    """In which the flags were read."""
    ready_path: str
    """200 once it serves, without touching the model."""
    load_path: str | None
    chat: bool
    """It has `/v1/chat/completions`, for warm-up."""
    drains_on_sigterm: bool
    """SIGTERM lets running requests finish, and stops new ones by the engine's own means."""
    marks: Sequence[Mark]

    def check(self, profile: Profile, file: str) -> None:
        """Refuse what this kind has not. Raises ValueError, which names file and field."""

    def argv(self, profile: Profile, gpus: Sequence[Gpu]) -> list[str]:
        """The command. Raises ValueError: these GPUs cannot do what the profile asks."""

    def env(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        """What is added to the environment."""

    def files(self, profile: Profile, gpus: Sequence[Gpu]) -> dict[str, str]:
        """Files that the command reads: paths and their text."""

    def load(self, body: bytes) -> Load | None:
        """Read the answer of `load_path`; None: it does not say."""

    def park(self, profile: Profile) -> ParkCalls | None:
        """None: this engine cannot, as the profile starts it."""

    def gate(self, profile: Profile) -> Call | None:
        """What lets an engine go on that waits before its weights; None: it does not wait."""


def make(kind: str) -> EngineKind:
    """A kind by its name. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"no kind of engine is called {kind}; there are {', '.join(KINDS)}")
    module = importlib.import_module(f"forebay_engine.serve.engines.{kind}")
    return cast(EngineKind, module.KIND)


KINDS = ("sglang", "vllm", "tgi", "trtllm")

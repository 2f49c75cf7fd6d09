"""What every door has in common: a call that is asked, read, broken off, and what it told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, ClassVar

PROMPT = "Say something."
"""What every request asks, so that estimates agree."""
CAP = 20
"""The most tokens of an answer, in every request that can say so."""


class Api(StrEnum):
    """What is asked for, by its name in the usage table."""

    CHAT = "chat"
    COMPLETION = "completions"
    EMBEDDING = "embeddings"


@dataclass(frozen=True)
class Trouble:
    """An error, as the door's own shape tells it.

    kind: its name in the gateway's taxonomy, found by what the door says (status, type, reason).
    param: the field at fault, in the door's own names. retry_s: how long to wait.
    retry: what the door says about trying again; None: nothing.
    """

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_s: float | None = None
    retry: bool | None = None


@dataclass
class Told:
    """What came.

    text: of the answer, as far as it came. vector: of an embedding. usage: prompt and completion
    tokens that the client was told. headers: with trailers, by lower-case names.
    ended: the answer was whole, as the door's protocol has it.
    """

    text: str = ""
    vector: list[float] = field(default_factory=list)
    usage: tuple[int, int] | None = None
    finish: str | None = None
    trouble: Trouble | None = None
    headers: dict[str, str] = field(default_factory=dict)
    ended: bool = False


@dataclass(frozen=True)
class Ask:
    """One request. wrong: it has the door's own form of a value that nobody could take."""

    api: Api
    model: str
    key: str | None
    wrong: bool = False
    content: str = PROMPT
    extra: Mapping[str, Any] = field(default_factory=dict)


class Call(ABC):
    """A request under way; as a context manager it is closed at the end."""

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hang_up()

    @abstractmethod
    def text(self, pieces: int) -> str:
        """Read until so many pieces of text have come; all of it. Only where answers stream."""

    @abstractmethod
    def told(self) -> Told:
        """Read to the end."""

    @abstractmethod
    def hang_up(self) -> None:
        """Leave at once, as the protocol does that. More than once is nothing."""


class Door(ABC):
    """One way in.

    name: as the matrix shows it. apis: what it serves. streams: answers come in pieces.
    front: in the usage table. wrong_param: the field that `Ask.wrong` is about, for each API.
    param_in_message: its errors have no field for that, and their text names it.
    limit_headers: answers tell what is left of the limits, under these names.
    """

    name: ClassVar[str]
    apis: ClassVar[Sequence[Api]]
    streams: ClassVar[bool]
    front: ClassVar[str] = "http"
    wrong_param: ClassVar[Mapping[Api, str]]
    param_in_message: ClassVar[bool] = False
    limit_headers: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def start(self, ask: Ask) -> Call:
        """Send a request."""

    def ask(self, ask: Ask) -> Told:
        """Send a request and read the answer to its end."""
        with self.start(ask) as call:
            return call.told()

    def __str__(self) -> str:
        return self.name


REQUEST_HEADERS = tuple(
    f"x-ratelimit-{what}-{of}"
    for what in ("limit", "remaining", "reset")
    for of in ("requests", "tokens")
)
"""OpenAI's names, which are ours."""

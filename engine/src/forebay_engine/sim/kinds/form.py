"""How an answer is written: the interface of a kind's forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forebay_engine.sim.text import Delta

if TYPE_CHECKING:
    from forebay_engine.sim.kinds.jobs import Answer


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of an answer. `cached` are of the prompt, `reasoning` of the completion."""

    prompt: int
    completion: int
    reasoning: int
    cached: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.prompt + self.completion


class Form(ABC):
    """Writes one answer. A stream's parts are whole events, each one byte string.

    stream_type: the content type of a stream. begins: `begin` is an event of its own.
    """

    begins = False

    stream_type = b"text/event-stream; charset=utf-8"

    def begin(self, answer: Answer, index: int) -> list[bytes]:
        """What precedes the first token of choice `index`."""
        return []

    @abstractmethod
    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        """What a token adds."""

    @abstractmethod
    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        """The end of a choice: stop, length, tool_calls, abort or content_filter."""

    def usage(self, answer: Answer) -> list[bytes]:
        """What tells the usage, where that is an event of its own."""
        return []

    def done(self, answer: Answer) -> list[bytes]:
        """What ends the stream."""
        return []

    @abstractmethod
    def error(self, answer: Answer) -> list[bytes]:
        """What a failure within the stream looks like, to its end."""

    def broken(self) -> bytes:
        """An event whose JSON is broken."""
        return b'data: {"choices": [{"delta": {"content": "br\n\n'

    @abstractmethod
    def whole(self, answer: Answer) -> bytes:
        """The answer that is not a stream."""

    @abstractmethod
    def whole_error(self, answer: Answer) -> bytes:
        """A failure told in a 200."""

"""The recorded exchanges with a real SGLang 0.5.23."""

import re
from dataclasses import dataclass
from pathlib import Path

TRACES = Path(__file__).parents[1] / "data" / "sglang-0.5.23"
_INFERENCE = re.compile(rb"POST (/v1/(?:chat/completions|completions|embeddings)) ")


@dataclass(frozen=True)
class Trace:
    """One exchange. answer: the engine's bytes, interim responses left out; may be empty.

    head: the recorded request's lines, without host, authorization and expect.
    """

    name: str
    path: str
    head: list[str]
    body: bytes
    answer: bytes

    @property
    def status(self) -> int:
        """The engine's status; 0 when it sent none."""
        return int(self.answer.split(b" ", 2)[1]) if self.answer else 0

    @property
    def chunked(self) -> bool:
        """The answer is an event stream."""
        return b"transfer-encoding: chunked" in self.answer.partition(b"\r\n\r\n")[0].lower()

    @property
    def content(self) -> bytes:
        """The answer's body without framing."""
        return b"".join(self.chunks) if self.chunked else self.answer.partition(b"\r\n\r\n")[2]

    @property
    def chunks(self) -> list[bytes]:
        """The HTTP chunks' contents, as far as they are whole."""
        rest = self.answer.partition(b"\r\n\r\n")[2]
        found = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            count = int(size, 16)
            if count == 0 or len(rest) < count:
                break
            found.append(rest[:count])
            rest = rest[count + 2 :]
        return found


def load(name: str) -> Trace | None:
    """Read a trace; None unless it is a POST to an inference path that the gateway has."""
    sent = (TRACES / f"{name}.req").read_bytes()
    matched = _INFERENCE.match(sent)
    if matched is None:
        return None
    head, _, body = sent.partition(b"\r\n\r\n")
    dropped = ("host:", "authorization:", "connection:")
    lines = [
        line
        for line in head.decode("latin-1").split("\r\n")[1:]
        if not line.lower().startswith(dropped)
    ]
    answer = (TRACES / f"{name}.resp").read_bytes()
    while answer.startswith(b"HTTP/1.1 1"):
        answer = answer.partition(b"\r\n\r\n")[2]
    return Trace(name, matched.group(1).decode(), lines, body, answer)


def all_names() -> list[str]:
    """Every trace that is a POST to an inference path."""
    names = sorted(path.stem for path in TRACES.glob("*.req"))
    return [name for name in names if load(name) is not None]

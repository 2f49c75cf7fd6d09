"""An HTTP/1.1 client that sends exactly the bytes it is given and shows exactly what came."""

import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
TIMEOUT_S = 20.0

Headers = Sequence[tuple[str, str]]


def chat(model: str = "tiny", content: str = "hi", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def request(
    path: str,
    body: Any = None,
    *,
    key: str | None = None,
    headers: Headers = (),
    method: str | None = None,
    version: str = "1.1",
    content_type: str | None = "application/json",
    close: bool = False,
) -> bytes:
    """The bytes of a request. body: bytes as they are, anything else as JSON."""
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/{version}"]
    lines.append("host: gateway.test")
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    if body is not None:
        if content_type is not None:
            lines.append(f"content-type: {content_type}")
        lines.append(f"content-length: {len(data)}")
    lines += [f"{name}: {value}" for name, value in headers]
    if close:
        lines.append("connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


@dataclass
class Answer:
    """A response. complete: its body ended as its framing says."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = False
    chunks: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The only value of a header, None where it is absent."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} is there {len(found)} times: {found}"
        return found[0] if found else None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """OpenAI's error object; the body must be that and nothing else."""
        value = self.json()
        assert list(value) == ["error"], value
        assert list(value["error"]) == ["message", "type", "param", "code"], value
        error: dict[str, Any] = value["error"]
        return error

    def brief(self) -> tuple[int, str, str | None, str | None]:
        """(status, type, code, param) of an error."""
        error = self.error()
        return self.status, error["type"], error["code"], error["param"]

    def data(self) -> list[str]:
        """The data of each SSE event."""
        return events(self.body)


def events(body: bytes) -> list[str]:
    """The data of each SSE event of a body of `data:` lines."""
    parts = body.decode().split("\n\n")
    assert parts[-1] == "", f"the stream ends inside an event: {parts[-1]!r}"
    return [part.removeprefix("data: ") for part in parts[:-1]]


class Client:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> "Client":
        """Send all of `data`."""
        self.socket.sendall(data)
        return self

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65_536)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def _line(self) -> bytes | None:
        while b"\r\n" not in self._buffer:
            if not self._more():
                return None
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def take(self, size: int) -> bytes:
        """The next bytes; fewer where the server closes before. Raises: TimeoutError."""
        while len(self._buffer) < size and self._more():
            pass
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def head(self) -> Answer:
        """The next response's head; interim ones are passed over. Raises: ConnectionError."""
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if not self._more():
                    raise ConnectionError(f"closed before an answer: {self._buffer!r}")
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ", 2)[1])
            if status >= 200 or status == 101:  # after which the connection is no longer HTTP
                pairs = [line.split(":", 1) for line in lines[1:]]
                return Answer(status, [(k.lower(), v.strip()) for k, v in pairs])

    def body(self, answer: Answer) -> Iterator[tuple[float, bytes]]:
        """The pieces of the body with the monotonic time of each; sets `complete` at the end."""
        if answer.status == 204:
            answer.complete = True
            return
        if answer.header("transfer-encoding") == "chunked":
            while (line := self._line()) is not None:
                size = int(line, 16)
                if size == 0:
                    answer.complete = self._line() == b""
                    return
                data = self.take(size)
                yield time.monotonic(), data
                if len(data) < size or self._line() != b"":
                    return
            return
        length = answer.header("content-length")
        if length is not None:
            data = self.take(int(length))
            answer.complete = len(data) == int(length)
            yield time.monotonic(), data
            return
        while self._more():
            pass
        data, self._buffer = self._buffer, b""
        answer.complete = True
        yield time.monotonic(), data

    def answer(self) -> Answer:
        """The next response, whole. Raises: ConnectionError when none comes."""
        answer = self.head()
        answer.chunks = [data for _, data in self.body(answer)]
        answer.body = b"".join(answer.chunks)
        return answer

    def closed(self) -> bool:
        """Read to the end: True if nothing more comes before the server closes."""
        return not self._buffer and not self._more()

    def reset(self) -> None:
        """Close with an RST, as a killed client's machine does."""
        self.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.socket.close()


def call(port: int, data: bytes) -> Answer:
    """Send `data` on a connection of its own and read one response."""
    with Client(port) as client:
        return client.send(data).answer()

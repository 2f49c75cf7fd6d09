"""An engine that does what a test's script says, byte by byte, and remembers what it got."""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.wait import until

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
INFERENCE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/responses",
    "/v1/rerank",
)


@dataclass
class Received:
    """One request as it came. at: monotonic seconds."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    at: float

    def header(self, name: str) -> str | None:
        """The only value of a header."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, found
        return found[0] if found else None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """The engine's end of a connection, as a script uses it."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.open = True
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)

    def pieces(self, parts: Sequence[bytes]) -> None:
        """Send each part by itself."""
        for part in parts:
            self.socket.sendall(part)

    def json(self, value: Any, status: int = 200, headers: Sequence[str] = ()) -> None:
        """Answer with JSON."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", *headers]
        lines.append(f"content-length: {len(body)}")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def begin(self, headers: Sequence[str] = ()) -> None:
        """Send the head of an event stream."""
        extra = "".join(f"{line}\r\n" for line in headers).encode()
        self.send(STREAM_HEAD[:-2] + extra + b"\r\n")

    def chunk(self, data: bytes) -> None:
        """Send one HTTP chunk."""
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, value: Any) -> None:
        """Send one SSE event in a chunk of its own, as SGLang does."""
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        self.chunk(f"data: {text}\n\n".encode())

    def end(self) -> None:
        """Send the last chunk."""
        self.send(b"0\r\n\r\n")

    def last(self, data: bytes, *, whole: bool = True) -> None:
        """Send one more chunk, then the end of the body, or else close instead."""
        self.chunk(data)
        if whole:
            self.end()
        else:
            self.close()

    def close(self) -> None:
        """Close at once."""
        self.open = False
        self.socket.close()

    def reset(self) -> None:
        """Close with an RST."""
        self.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.close()

    def hung_up(self, within_s: float = 10.0) -> float:
        """Wait until the gateway closes its end; the monotonic time of that."""
        readable, _, _ = select.select([self.socket], [], [], within_s)
        assert readable, f"the gateway did not hang up within {within_s:g} s"
        try:
            rest = self.socket.recv(1)
        except ConnectionError:
            rest = b""
        assert rest == b"", "the gateway sent more instead of hanging up"
        return time.monotonic()


Script = Callable[[Connection, Received], None]


def delta(content: str, **fields: Any) -> dict[str, Any]:
    """A chat chunk with some content."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return {**base, "choices": [choice], **fields}


def finish(reason: str = "stop", **fields: Any) -> dict[str, Any]:
    """A chat chunk that ends the choice."""
    chunk = delta("")
    chunk["choices"][0].update(delta={}, finish_reason=reason)
    return {**chunk, **fields}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """A usage object."""
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
    }


def answer(prompt: int = 3, completion: int = 2) -> dict[str, Any]:
    """A whole chat answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "ok"},
        "finish_reason": "stop",
    }
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
        "usage": usage(prompt, completion),
    }


def plain(connection: Connection, _: Received) -> None:
    """The script of an engine that simply answers."""
    connection.json(answer())


class ScriptedUpstream:
    """A listener whose inference requests go to `script`; probes are answered by itself.

    requests: inference requests so far. aborts: bodies of `/abort_request` with their times.
    """

    def __init__(self, models: Sequence[str] = ("tiny",)) -> None:
        self.models = models
        self.script: Script = plain
        self.requests: list[Received] = []
        self.aborts: list[tuple[float, Any]] = []
        self.failures: list[BaseException] = []
        self.port = 0
        self.active = 0
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; after `stop`, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and end those that are open."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Forget everything; answer plainly."""
        self.script = plain
        self.requests, self.aborts, self.failures = [], [], []

    def wait_idle(self) -> None:
        """Wait until no script runs."""
        until(lambda: self.active == 0, "scripts end")

    def only(self) -> Received:
        """The one request that came."""
        assert len(self.requests) == 1, f"{len(self.requests)} requests came"
        return self.requests[0]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        connection = Connection(accepted)
        with self._lock:
            self._connections.add(connection)
        buffer = bytearray()
        try:
            while connection.open and (received := _read(accepted, buffer)) is not None:
                self._answer(connection, received)
        except OSError:
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            accepted.close()

    def _answer(self, connection: Connection, received: Received) -> None:
        if received.path == "/ready":
            connection.json(b"")
        elif received.path.partition("?")[0] == "/v1/models":
            connection.json({"object": "list", "data": [{"id": name} for name in self.models]})
        elif received.path == "/abort_request":
            self.aborts.append((received.at, received.json()))
            connection.json(b"")
        elif received.path in INFERENCE:
            with self._lock:
                self.active += 1
            self.requests.append(received)
            try:
                self.script(connection, received)
            except OSError:
                raise
            except BaseException as error:
                self.failures.append(error)
                connection.close()
            finally:
                with self._lock:
                    self.active -= 1
        else:
            connection.json({"detail": "Not Found"}, 404)


def _read(accepted: socket.socket, buffer: bytearray) -> Received | None:
    """The next request; None at the end. The gateway always declares a length."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        data = accepted.recv(262_144)
        if not data:
            return None
        buffer += data
    head = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in head[1:]]
    headers = [(name.lower(), value) for name, value in pairs]
    length = int(dict(headers).get("content-length", "0"))
    while len(buffer) < end + 4 + length:
        data = accepted.recv(262_144)
        if not data:
            return None
        buffer += data
    body = bytes(buffer[end + 4 : end + 4 + length])
    del buffer[: end + 4 + length]
    method, path, _ = head[0].split(" ")
    return Received(method, path, headers, body, time.monotonic())

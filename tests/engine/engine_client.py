"""A raw HTTP client for the simulator's tests: what arrives is seen as bytes."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.scheduler import Limits
from forebay_engine.sim.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAST = Limits(prefill_rate=0, decode_rate=0)
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def serve(**options: Any) -> AsyncIterator[Server]:
    """A server on a free port; without `limits` generation takes no time."""
    base = SimOptions(port=0, limits=FAST, health_delay_s=0.0)
    async with Server(replace(base, **options)) as server:
        yield server


@dataclass
class Answer:
    """A whole answer. complete: the body ended as its framing says."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    def json(self) -> Any:
        return json.loads(self.body)

    def data(self) -> list[str]:
        """The data of each SSE event."""
        parts = self.body.decode().split("\n\n")
        return [part.removeprefix("data: ") for part in parts if part]

    def chunks(self) -> list[Any]:
        """The JSON of each event but `[DONE]`."""
        return [json.loads(item) for item in self.data() if item != "[DONE]"]

    def text(self) -> str:
        """The content of a streamed chat answer."""
        deltas = [c["choices"][0]["delta"] for c in self.chunks() if c.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)


def parse(raw: bytes) -> Answer:
    """Read an answer that ran until the connection closed."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    status = int(lines[0].split()[1])
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", len(rest)))
        return Answer(status, headers, rest, len(rest) == length)
    body = b""
    while rest:
        size, _, after = rest.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            return Answer(status, headers, body, after == b"\r\n")
        body += after[:count]
        if after[count : count + 2] != b"\r\n":
            break
        rest = after[count + 2 :]
    return Answer(status, headers, body, False)


def request(
    path: str, body: Any = None, headers: dict[str, str] | None = None, *, close: bool = True
) -> bytes:
    """The bytes of a request; POST when there is a body."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: sim"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
    if close:
        lines.append("connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection."""
    return await asyncio.open_connection("127.0.0.1", server.options.port)


async def send_raw(server: Server, data: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    reader, writer = await connect(server)
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def call(
    server: Server, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    """Send one request on a connection of its own."""
    return parse(await send_raw(server, request(path, body, headers)))


def chat(content: str, **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


async def records(server: Server) -> list[dict[str, Any]]:
    """What the server remembers."""
    answer = await call(server, "/sim/requests")
    found: list[dict[str, Any]] = answer.json()["requests"]
    return found


async def wait_for(server: Server, outcome: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """Wait until the last request has this outcome; its record."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await records(server)
            if found and found[-1]["outcome"] == outcome:
                return found[-1]
            await asyncio.sleep(0.01)

"""A small upstream in a process of its own, and a core in front of it, for the bridge's bench.

`python loopback.py` listens on a free port of 127.0.0.1, prints it, answers every request with the
same small JSON, and ends when its standard input is closed.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import uvloop
from forebay._core import Core
from forebay.config import Config, Model, Target, Upstream
from forebay.gateway import snapshot
from forebay.store import KeyRecord, encode_records, generate

ANSWER = orjson.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 300},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
    }
)
BODY = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "hi " * 100}]})
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._buffer, 0, end)
            stop = end + 4 + (int(found.group(1)) if found else 0)
            if len(self._buffer) < stop:
                return
            self._buffer = self._buffer[stop:]
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(ANSWER), ANSWER)
            )


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Protocol, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent's end, by a closed pipe, is ours.
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def upstream() -> Iterator[int]:
    """The port of a running upstream."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def core(port: int) -> tuple[Core, list[tuple[bytes, bytes]]]:
    """A core with one model and one limited key, and the headers of a request with that key."""
    made = Core()
    config = Config(
        upstreams={"bench": Upstream(kind="openai_compatible", url=f"http://127.0.0.1:{port}")},
        models={"bench": Model(targets=(Target(upstream="bench"),))},
    )
    made.configure(snapshot.build(config, {}))
    key = generate("inference")
    record = KeyRecord(
        id=key.id,
        kind="inference",
        account="bench",
        name="bench",
        digest=key.digest.hex(),
        last4=key.last4,
        version=1,
        created_at=0,
        rpm=1_000_000_000,
        rpm_burst=1_000_000_000,
        tpm=1_000_000_000_000,
        tpm_burst=1_000_000_000_000,
        concurrency=1_000_000,
    )
    made.load_keys(encode_records([record]), True)
    headers = [
        (b"authorization", b"Bearer " + key.key.encode()),
        (b"content-type", b"application/json"),
    ]
    return made, headers


if __name__ == "__main__":
    uvloop.run(_serve())

"""What the gRPC door is measured against: ``python -m loadbench.grpc_peers WHAT``.

Each is a process. ``upstream``: an engine that answers from memory. ``bare``: grpc.aio that answers
from memory with the gateway's own bytes. ``python``: a gateway as one writes it in Python, with
messages made in Python and aiohttp to the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

CHAT = "/forebay.v1.InferenceService/ChatCompletion"
STREAM = "/forebay.v1.InferenceService/StreamChatCompletion"
TEXT = "Once upon a time there was a gateway that did not want to be noticed. " * 4


def answer(model: str = "bench") -> dict[str, Any]:
    """The engine's whole answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def events(count: int, model: str = "bench") -> Iterator[bytes]:
    """The engine's stream: `count` pieces, the end, the usage, and [DONE]."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    for index in range(count):
        delta = {"content": " word"} if index else {"role": "assistant", "content": "A"}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield _event({**base, "choices": [choice]})
    yield _event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield _event({**base, "choices": [], "usage": answer()["usage"]})
    yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class Engine(asyncio.Protocol):
    """One connection of the engine. Streams come in bursts of `burst` events, `pause_s` apart."""

    def __init__(self, count: int, burst: int, pause_s: float) -> None:
        self._buffer = b""
        body = json.dumps(answer()).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._whole = head % len(body) + body
        parts = list(events(count))
        bursts = [b"".join(parts[i : i + burst]) for i in range(0, len(parts), burst)]
        self._chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in bursts] + [b"0\r\n\r\n"]
        self._pause_s = pause_s
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            found = head.find(b"content-length: ")
            length = int(head[found + 16 :].partition(b"\r\n")[0]) if found >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            listed = b'{"object":"list","data":[{"id":"bench"}]}'
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(listed), listed)
            )
        elif b'"stream":true' in body.replace(b" ", b""):
            task = asyncio.ensure_future(self._stream())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._transport.write(self._whole)

    async def _stream(self) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for chunk in self._chunks:
            self._transport.write(chunk)
            await asyncio.sleep(self._pause_s)


async def serve_upstream(options: argparse.Namespace) -> None:
    """The engine."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Engine(options.events, options.burst, options.pause_ms / 1e3), "127.0.0.1", 0
    )
    _tell(options, server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def serve_bare(options: argparse.Namespace) -> None:
    """grpc.aio alone: it reads a message and writes what the gateway would have."""
    whole = (options.folder / "whole.bin").read_bytes()
    pieces = [bytes.fromhex(line) for line in (options.folder / "pieces.hex").read_text().split()]

    async def chat(request: bytes, context: Any) -> bytes:
        return whole

    async def stream(request: bytes, context: Any) -> None:
        for piece in pieces:
            await context.write(piece)

    await _serve(options, chat, stream)


async def serve_python(options: argparse.Namespace) -> None:
    """Messages made in Python, and aiohttp."""
    import aiohttp
    from forebay.grpc.v1 import inference_pb2 as pb
    from google.protobuf.json_format import MessageToDict

    url = f"{options.upstream}/v1/chat/completions"
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def body(request: bytes, streamed: bool) -> dict[str, Any]:
        message = pb.ChatCompletionRequest.FromString(request)
        found = MessageToDict(message, preserving_proto_field_name=True)
        for item in found["messages"]:
            item["role"] = item["role"].removeprefix("ROLE_").lower()
        return {**found, "stream": streamed}

    def usage(found: Any) -> Any:
        return pb.Usage(
            prompt_tokens=found["prompt_tokens"],
            completion_tokens=found["completion_tokens"],
            total_tokens=found["total_tokens"],
        )

    async def chat(request: bytes, context: Any) -> bytes:
        async with session.post(url, json=body(request, False)) as answered:
            found = await answered.json()
        reply = pb.ChatCompletionResponse(
            id=found["id"], created=found["created"], model=found["model"]
        )
        for choice in found["choices"]:
            reply.choices.add(
                index=choice["index"],
                message=pb.ChatMessage(
                    role=pb.ROLE_ASSISTANT, content=choice["message"]["content"]
                ),
                finish_reason=pb.FINISH_REASON_STOP,
            )
        reply.usage.CopyFrom(usage(found["usage"]))
        return reply.SerializeToString()

    async def stream(request: bytes, context: Any) -> None:
        async with session.post(url, json=body(request, True)) as answered:
            async for line in answered.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                found = json.loads(line[6:])
                piece = pb.ChatCompletionChunk(
                    id=found["id"], created=found["created"], model=found["model"]
                )
                for choice in found["choices"]:
                    added = piece.choices.add(index=choice["index"])
                    if (content := choice["delta"].get("content")) is not None:
                        added.delta.content = content
                    if choice["finish_reason"]:
                        added.finish_reason = pb.FINISH_REASON_STOP
                if found.get("usage"):
                    piece.usage.CopyFrom(usage(found["usage"]))
                await context.write(piece.SerializeToString())

    await _serve(options, chat, stream)


async def _serve(options: argparse.Namespace, chat: Any, stream: Any) -> None:
    server = grpc.aio.server()
    handlers = {
        "ChatCompletion": grpc.unary_unary_rpc_method_handler(chat),
        "StreamChatCompletion": grpc.unary_stream_rpc_method_handler(stream),
    }
    generic = grpc.method_handlers_generic_handler("forebay.v1.InferenceService", handlers)
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _tell(options, port)
    await server.wait_for_termination()


def _tell(options: argparse.Namespace, port: int) -> None:
    part = options.ready_file.with_suffix(".part")
    part.write_text(str(port))
    part.replace(options.ready_file)


def main() -> None:
    """One of them, until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["upstream", "bare", "python"])
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--upstream")
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--pause-ms", type=float, default=1.0)
    options = parser.parse_args()
    serve = {"upstream": serve_upstream, "bare": serve_bare, "python": serve_python}
    if options.what == "upstream":
        import uvloop

        uvloop.run(serve_upstream(options))
    else:
        asyncio.run(serve[options.what](options))


if __name__ == "__main__":
    sys.exit(main())

"""Requests at a steady rate through a proxy, and what each client saw."""

import asyncio
import json
import random
from dataclasses import dataclass, field

import grpc
from forebay.grpc.v1 import inference_pb2 as pb

from tests.support.grpc_calls import INFERENCE
from tests.support.grpc_calls import chat as grpc_chat
from tests.support.wire import CHAT, chat, request

ANSWER_S = 60.0
LONG_SHARE = 0.04
"""Of all requests: streams so long that they are running whenever a gateway goes."""


@dataclass
class Sent:
    """A request as its client knows it. took_s: until its last byte. fault: why it failed."""

    name: str
    stream: bool
    took_s: float = 0.0
    fault: str | None = None


@dataclass
class Steady:
    """`rate` requests a second to the port, half of them streams, until `stop`.

    Arrivals do not wait for answers.
    """

    port: int
    secret: str
    rate: float
    seed: int = 7
    sent: list[Sent] = field(default_factory=list)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send until `stop`, and wait for the answers."""
        loop = asyncio.get_running_loop()
        choices = random.Random(self.seed)
        began = loop.time()
        running: set[asyncio.Task[None]] = set()
        while not self._over.is_set():
            for _ in range(int((loop.time() - began) * self.rate) - len(self.sent)):
                one = Sent(f"rolling-{len(self.sent)}", stream=len(self.sent) % 2 == 0)
                words = 60 if choices.random() < LONG_SHARE else choices.randint(2, 12)
                self.sent.append(one)
                task = asyncio.create_task(self._ask(one, words))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(0.005)
        while running:
            await asyncio.wait(running)

    def stop(self) -> None:
        """Send no more."""
        self._over.set()

    @property
    def faults(self) -> list[str]:
        """What went wrong."""
        return [f"{one.name}: {one.fault}" for one in self.sent if one.fault is not None]

    def slowest(self, stream: bool) -> float:
        """The longest that one took, seconds."""
        return max(one.took_s for one in self.sent if one.stream == stream)

    async def _ask(self, one: Sent, words: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(ANSWER_S):
                one.fault = await self._one(one, words)
        except (OSError, TimeoutError, ValueError, grpc.RpcError) as error:
            one.fault = repr(error)
        one.took_s = loop.time() - began

    async def _one(self, one: Sent, words: int) -> str | None:
        """Send one and wait for its answer: what is wrong with it."""
        raise NotImplementedError


class Load(Steady):
    """By HTTP, each on a connection of its own to the proxy."""

    async def _one(self, one: Sent, words: int) -> str | None:
        body = chat("sim", f"/words {words}", stream=one.stream)
        named = [("x-request-id", one.name)]
        data = request(CHAT, body, key=self.secret, headers=named, close=True)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            raw = await reader.read(-1)
        finally:
            writer.close()
        head, _, body = raw.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return f"{head.splitlines()[:1]} {body[:300]!r}"
        if f"x-request-id: {one.name}".encode() not in head.lower():
            return "another's answer"
        if not one.stream:
            finish = json.loads(body)["choices"][0]["finish_reason"]
            return None if finish == "stop" else f"finish_reason is {finish}"
        if not body.endswith(b"\r\n0\r\n\r\n"):
            return f"cut off: …{body[-100:]!r}"
        if b"data: [DONE]" not in body or b'"error"' in body:
            return f"no whole stream: …{body[-300:]!r}"
        return None


class GrpcLoad(Steady):
    """By gRPC, all on one channel."""

    async def run(self) -> None:
        """As the others."""
        # A retry of the client's would hide what the gateway did.
        options = (("grpc.enable_retries", 0),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            self._unary = channel.unary_unary(
                f"/{INFERENCE}/ChatCompletion",
                request_serializer=pb.ChatCompletionRequest.SerializeToString,
                response_deserializer=pb.ChatCompletionResponse.FromString,
            )
            self._stream = channel.unary_stream(
                f"/{INFERENCE}/StreamChatCompletion",
                request_serializer=pb.ChatCompletionRequest.SerializeToString,
                response_deserializer=pb.ChatCompletionChunk.FromString,
            )
            await super().run()

    async def _one(self, one: Sent, words: int) -> str | None:
        asked = grpc_chat("sim", f"/words {words}")
        metadata = (("authorization", f"Bearer {self.secret}"), ("x-request-id", one.name))
        if not one.stream:
            await self._unary(asked, metadata=metadata)
            return None
        pieces = [piece async for piece in self._stream(asked, metadata=metadata)]
        return None if len(pieces) >= words else f"{len(pieces)} pieces instead of {words}"

"""Chat requests at a constant rate, each checked against what the simulator says for its prompt."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from forebay_engine.sim import requests as sim_requests
from forebay_engine.sim.options import SimOptions

CHAT = "/v1/chat/completions"
PATIENCE_S = 60.0
"""A client that has no end by then counts as cut off."""


@dataclass
class Outcome:
    """One request as its client saw it.

    request_id: as it was sent. ttft_s: from the intended start to the first token, or to the whole
    answer. text: what was delivered. wanted: what the simulator says. tokens: of the whole answer.
    error: of the answer or within the stream. done: a stream's end marker came, or a whole answer.
    complete: the body ended as its framing says. usage: as told.
    """

    request_id: str
    stream: bool
    wanted: str
    tokens: int
    began_s: float
    status: int = 0
    ttft_s: float | None = None
    text: str = ""
    error: dict[str, Any] | None = None
    done: bool = False
    complete: bool = False
    usage: dict[str, Any] | None = None

    @property
    def good(self) -> bool:
        """The whole text came, and was said to be whole."""
        return self.status == 200 and self.done and self.text == self.wanted

    @property
    def failed_before_token(self) -> bool:
        """It failed, and the client has seen nothing of an answer."""
        return not self.good and not self.text

    @property
    def failed_after_token(self) -> bool:
        """It failed with a part delivered."""
        return not self.good and bool(self.text)

    @property
    def honest(self) -> bool:
        """What failed says so, and what was delivered is a part of the right text."""
        told = self.error is not None and not self.done
        return self.good or (told and self.wanted.startswith(self.text))


@dataclass
class Storm:
    """Load on one gateway.

    words: least and most of an answer. stream_share: of all requests.
    """

    url: str
    key: str
    model: str
    words: tuple[int, int] = (5, 60)
    stream_share: float = 0.5
    seed: int = 1
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._options = SimOptions()

    async def run(self, rate: float, seconds: float) -> list[Outcome]:
        """So many requests a second for so long; those outcomes, once all have ended."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        tasks: list[asyncio.Task[Outcome]] = []
        for number in range(int(rate * seconds)):
            at = begun + number / rate
            wait = at - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._one(at)))
        made = list(await asyncio.gather(*tasks))
        self.outcomes += made
        return made

    def _body(self) -> tuple[dict[str, Any], Outcome]:
        chance = self._chance
        content = f"{chance.getrandbits(64):x} /words {chance.randint(*self.words)}"
        stream = chance.random() < self.stream_share
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
        }
        (plan,) = sim_requests.chat(CHAT, body, self._options).plans
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        name = str(uuid.UUID(int=chance.getrandbits(128)))
        wanted = plan.text(plan.total)
        return body, Outcome(name, stream, wanted, plan.total, time.time())

    async def _one(self, at: float) -> Outcome:
        body, outcome = self._body()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._exchange(body, outcome, at)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            outcome.complete = False
        return outcome

    async def _exchange(self, body: dict[str, Any], outcome: Outcome, at: float) -> None:
        loop = asyncio.get_running_loop()
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            data = json.dumps(body).encode()
            head = (
                f"POST {CHAT} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
                f"authorization: Bearer {self.key}\r\nx-request-id: {outcome.request_id}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
                "connection: close\r\n\r\n"
            )
            writer.write(head.encode() + data)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            outcome.status = int(lines[0].split(" ", 2)[1])
            if "transfer-encoding: chunked" in lines:
                waiting = b""
                while size := int(await reader.readline(), 16):
                    waiting += (await reader.readexactly(size + 2))[:-2]
                    *events, waiting = waiting.split(b"\n\n")
                    for event in events:
                        _event(outcome, event, loop.time() - at)
                outcome.complete = not waiting
            else:
                whole = await reader.read()
                length = [int(line[16:]) for line in lines if line.startswith("content-length: ")]
                outcome.complete = length == [len(whole)]
                _whole(outcome, whole, loop.time() - at)
        finally:
            writer.close()


def _event(outcome: Outcome, event: bytes, after_s: float) -> None:
    data = event.removeprefix(b"data: ")
    if event.startswith(b":"):
        return
    if data == b"[DONE]":
        outcome.done = True
        return
    value = json.loads(data)
    outcome.error = value.get("error", outcome.error)
    outcome.usage = value.get("usage") or outcome.usage
    for choice in value.get("choices", []):
        text = (choice.get("delta") or {}).get("content")
        if text:
            outcome.text += text
            if outcome.ttft_s is None:
                outcome.ttft_s = after_s


def _whole(outcome: Outcome, body: bytes, after_s: float) -> None:
    value = json.loads(body)
    outcome.error, outcome.usage = value.get("error"), value.get("usage")
    if outcome.status == 200 and outcome.complete:
        outcome.text = value["choices"][0]["message"]["content"]
        outcome.done = True
        outcome.ttft_s = after_s


def p99_ttft_s(outcomes: list[Outcome]) -> float:
    """The 99th percentile of streams' time to first token; 0 where there is none."""
    times = [o.ttft_s for o in outcomes if o.stream and o.ttft_s is not None]
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else 0.0

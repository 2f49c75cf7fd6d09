"""Random traffic, and a log of what was asked and what came of it."""

import asyncio
import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.support.many import Connection
from tests.support.processes import Key
from tests.support.wire import CHAT, COMPLETIONS, chat, request

PAUSE_S = 0.02
"""Between two attempts to reach a gateway that is not there."""
ANSWER_S = 30.0
FAULTS = (
    *("status:500", "status:400", "empty", "cut:3", "cut-mid-event:2", "error-event:2"),
    *("no-usage", "no-done"),
)


@dataclass
class Sent:
    """A request as its client knows it.

    name: its `x-request-id`. kind: what the client meant to do. admissible: a gateway may take it.
    sent: its bytes went out. status: 0 where no answer came. whole: the answer came to its end.
    left: its client hung up. tokens: pieces of content that came. usage: what the answer said.
    """

    name: str
    kind: str
    stream: bool
    admissible: bool
    sent: bool = False
    status: int = 0
    whole: bool = False
    left: bool = False
    tokens: int = 0
    usage: dict[str, Any] | None = None
    error: str | None = None


@dataclass
class _Reading:
    """An answer that is being read."""

    raw: bytearray = field(default_factory=bytearray)

    def look(self, sent: Sent) -> None:
        """Note what has come so far."""
        head, found, rest = bytes(self.raw).partition(b"\r\n\r\n")
        if not found:
            return
        sent.status = int(head.split(b" ", 2)[1])
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body, ended = _unchunked(rest)
        else:
            size = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
            body, ended = rest, len(rest) == size
        sent.whole = ended
        if b"text/event-stream" in lower:
            _note_events(sent, body)
        elif ended and sent.status == 200:
            sent.usage = json.loads(body).get("usage")
        elif ended:
            sent.error = json.loads(body)["error"]["code"]


def _unchunked(data: bytes) -> tuple[bytes, bool]:
    """The body of chunks, as far as it came; whether it ended."""
    body = b""
    while True:
        line, found, data = data.partition(b"\r\n")
        if not found:
            return body, False
        size = int(line, 16)
        if size == 0:
            return body, True
        body += data[:size]
        data = data[size + 2 :]


def _note_events(sent: Sent, body: bytes) -> None:
    sent.tokens, sent.usage = 0, None
    done = False
    for part in body.split(b"\n\n")[:-1]:
        data = part.removeprefix(b"data: ")
        if data == b"[DONE]":
            done = True
            continue
        event = json.loads(data)
        if "error" in event:
            sent.error = str(event["error"].get("type"))
            continue
        for choice in event["choices"]:
            sent.tokens += bool(choice.get("text") or choice.get("delta", {}).get("content"))
        if event.get("usage") and not event["choices"]:
            sent.usage = event["usage"]
    sent.whole = sent.whole and done


class Driver:
    """`clients` at once ask the gateway at `port` for this and that until `stop`.

    Nothing is asked twice: a request that was on its way when the gateway died is left at that.
    """

    def __init__(self, port: int, key: Key, model: str, seed: int, clients: int = 12) -> None:
        self.port = port
        self.log: list[Sent] = []
        self._key = key
        self._model = model
        self._random = random.Random(seed)
        self._clients = clients
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> list[Sent]:
        """Ask for nothing more; what became of all that was asked."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure
        return self.log

    def count(self) -> Counter[tuple[str, int]]:
        """How many requests of a kind had which status."""
        return Counter((sent.kind, sent.status) for sent in self.log)

    async def _run(self) -> None:
        try:
            await asyncio.gather(*(self._client() for _ in range(self._clients)))
        except BaseException as error:
            self._failure = error

    async def _client(self) -> None:
        while not self._stop.is_set():
            sent, data, leave_at = self._next()
            self.log.append(sent)
            while not sent.sent and not self._stop.is_set():
                try:
                    connection = await Connection.open(self.port)
                except OSError:
                    await asyncio.sleep(PAUSE_S)
                    continue
                await self._one(connection, sent, data, leave_at)
            await asyncio.sleep(self._random.uniform(0, 2 * PAUSE_S))

    def _next(self) -> tuple[Sent, bytes, float | None]:
        """A request, its bytes, and after how many seconds its client leaves, if it does."""
        pick = self._random
        name = f"r-{len(self.log):06d}-{pick.getrandbits(32):08x}"
        kind = pick.choices(
            ("plain", "leaves", "fails", "unknown key", "bad body", "unknown model"),
            (60, 18, 14, 2, 3, 3),
        )[0]
        stream, is_chat = pick.random() < 0.6, pick.random() < 0.8
        model = "no-such-model" if kind == "unknown model" else self._model
        text = "word " * pick.randrange(1, 120)
        options: dict[str, Any] = {"max_tokens": pick.randrange(1, 80), "user": name}
        if stream:
            options["stream"] = True
            if pick.random() < 0.5:
                options["stream_options"] = {"include_usage": True}
        if kind == "fails":
            options["sim_fault"] = pick.choice(FAULTS)
        body: Any = chat(model, text, **options)
        if not is_chat:
            del body["messages"]
            body["prompt"] = text
        if kind == "bad body":
            body = json.dumps(body).encode()[:-1]
        secret = self._key.secret
        if kind == "unknown key":
            secret = secret[:-1] + ("0" if secret[-1] != "0" else "1")
        data = request(
            CHAT if is_chat else COMPLETIONS,
            body,
            key=secret,
            headers=[("x-request-id", name)],
            close=True,
        )
        admissible = kind in ("plain", "leaves", "fails")
        leave_at = pick.uniform(0, 0.25) if kind == "leaves" else None
        return Sent(name, kind, stream, admissible), data, leave_at

    async def _one(
        self, connection: Connection, sent: Sent, data: bytes, leave_at: float | None
    ) -> None:
        reading = _Reading()
        sent.sent = True
        try:
            async with asyncio.timeout(ANSWER_S if leave_at is None else leave_at):
                connection.writer.write(data)
                while more := await connection.reader.read(65_536):
                    reading.raw += more
        except ConnectionError:
            pass
        except TimeoutError:
            assert leave_at is not None, f"{sent} has no end"
            sent.left = True
        finally:
            connection.leave(reset=sent.left and self._random.random() < 0.5)
        reading.look(sent)

"""What the engine behind every door does in each case: the same bytes, whoever asks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tests.support.upstream import Connection, Received

WORDS = ("Once ", "upon ", "a ", "time.")
PROMPT_TOKENS, COMPLETION_TOKENS = 11, 4
"""What the engine says it has used for a whole answer."""
VECTOR = [0.5, -0.25, 1.0]

Script = Callable[[Connection, Received], None]


def usage(completion: int = COMPLETION_TOKENS) -> dict[str, int]:
    """A usage object."""
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion,
        "total_tokens": PROMPT_TOKENS + completion,
    }


def whole(received: Received) -> dict[str, Any]:
    """The answer in one piece, for the path that was asked."""
    base = {"id": "c-1", "created": 1_700_000_000, "model": "tiny", "usage": usage()}
    text = "".join(WORDS)
    if received.path == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": VECTOR}]
        return {**base, "object": "list", "data": data, "usage": usage(0)}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    if received.path == "/v1/completions":
        return {**base, "object": "text_completion", "choices": [{**choice, "text": text}]}
    message = {"role": "assistant", "content": text}
    return {**base, "object": "chat.completion", "choices": [{**choice, "message": message}]}


def part(received: Received, number: int) -> dict[str, Any]:
    """One event of a stream, with what was used until then, as SGLang counts it."""
    base = {"id": "c-1", "created": 1_700_000_000, "model": "tiny", "usage": usage(number + 1)}
    last = number == len(WORDS) - 1
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if last else None}
    if received.path == "/v1/completions":
        choice["text"] = WORDS[number]
        return {**base, "object": "text_completion", "choices": [choice]}
    role = {"role": "assistant"} if number == 0 else {}
    choice["delta"] = {**role, "content": WORDS[number]}
    return {**base, "object": "chat.completion.chunk", "choices": [choice]}


def is_stream(received: Received) -> bool:
    """Whether a stream was asked for."""
    # A number may have more digits than Python takes.
    return bool(json.loads(received.body, parse_int=lambda _: 0).get("stream"))


def good(connection: Connection, received: Received) -> None:
    """All that was asked for."""
    if not is_stream(received):
        connection.json(whole(received))
        return
    connection.begin()
    for number in range(len(WORDS)):
        connection.event(part(received, number))
    final = {**part(received, 0), "choices": [], "usage": usage()}
    connection.event(final)
    connection.event("[DONE]")
    connection.end()


def dead(connection: Connection, _: Received) -> None:
    """A process that is gone as soon as it is asked."""
    connection.reset()


def dies(connection: Connection, received: Received) -> None:
    """Two pieces of a stream, or half an answer; then the process is gone."""
    if is_stream(received):
        connection.begin()
        for number in range(2):
            connection.event(part(received, number))
    else:
        body = json.dumps(whole(received)).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        connection.send(head.encode() + b"\r\n\r\n" + body[: len(body) // 2])
        time.sleep(0.05)  # so that the half is read before the connection ends
    connection.close()


def silent(connection: Connection, _: Received) -> None:
    """Nothing, until the gateway has enough."""
    connection.hung_up()
    connection.close()


def two_pieces(connection: Connection, received: Received) -> None:
    """Two pieces of a stream and no more, or nothing; until the gateway has enough."""
    if is_stream(received):
        connection.begin()
        for number in range(2):
            connection.event(part(received, number))
    connection.hung_up()
    connection.close()

"""An ASGI app that answers every request from memory, to see what the server alone costs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

BODY = (
    b'{"id":"0","object":"chat.completion","created":1,"model":"load-model","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + b"x" * 300 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":22,"total_tokens":122,"completion_tokens":100}}'
)
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
    ],
}
END = {"type": "http.response.body", "body": BODY, "more_body": False}

Message = dict[str, Any]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Read the body, answer about 500 bytes."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    await send(START)
    await send(END)

"""What the supervisor asks an engine over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

from forebay_engine.serve.decoding import decoded

if TYPE_CHECKING:
    import httpx

MAX_BODY = 4 << 20
"""Of an answer that is read whole; metrics of many ranks are some 100 KB."""
MAX_ERROR = 16 << 10
"""Of an error in a stream's place; the rest is not read."""


class Unanswered(Exception):
    """No whole answer has come: refused, cut, too late, too large."""


class Http(Protocol):
    """A client. Both raise Unanswered."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> tuple[int, bytes]:
        """The status and body of an answer."""

    async def stream(
        self,
        url: str,
        body: bytes,
        *,
        on_token: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, bytes]:
        """POST and read a stream of chat chunks to its end; `on_token` once, at the first text.

        Returns the status, and where it is an error its body, the first 16 KiB at most.
        """

    async def close(self) -> None:
        """Close connections."""


class HttpxHttp:
    """The client for real. The environment's proxies are not used: the engine is on this host."""

    def __init__(self) -> None:
        """Raises ValueError: the extra is not installed."""
        try:
            import httpx
        except ImportError:
            raise ValueError("httpx is missing: pip install 'forebay-engine[serve]'") from None
        self._httpx = httpx
        # No connection is kept: SGLang closes idle ones at 5 s, which would race with a probe.
        self._client: httpx.AsyncClient = httpx.AsyncClient(
            trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> tuple[int, bytes]:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    method, url, content=body, headers=dict(headers or {}), timeout=timeout_s
                ) as answer,
            ):
                found = bytearray()
                async for chunk in answer.aiter_bytes():
                    found += chunk
                    if len(found) > MAX_BODY:
                        raise Unanswered(f"{url}: more than {MAX_BODY} bytes")
                return answer.status_code, bytes(found)
        except (self._httpx.HTTPError, TimeoutError) as error:
            raise Unanswered(_say(url, error)) from None

    async def stream(
        self,
        url: str,
        body: bytes,
        *,
        on_token: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, bytes]:
        sent = {"content-type": "application/json", **(headers or {})}
        told = False
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    "POST", url, content=body, headers=sent, timeout=timeout_s
                ) as answer,
            ):
                if answer.status_code != 200:
                    found = bytearray()
                    async for chunk in answer.aiter_bytes():
                        found += chunk
                        if len(found) >= MAX_ERROR:
                            break
                    return answer.status_code, bytes(found[:MAX_ERROR])
                async for line in answer.aiter_lines():
                    if not told and has_text(line):
                        told = True
                        on_token()
                return 200, b""
        except (self._httpx.HTTPError, TimeoutError) as error:
            raise Unanswered(_say(url, error)) from None

    async def close(self) -> None:
        await self._client.aclose()


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


def has_text(line: str) -> bool:
    """Whether an SSE line of a chat chunk has text or thought in it."""
    if not line.startswith("data:"):
        return False
    chunk = decoded(line[5:], _Chunk)
    deltas = [choice.delta for choice in chunk.choices or ()] if chunk else []
    return any(d and (d.content or d.reasoning_content or d.reasoning) for d in deltas)


def _say(url: str, error: Exception) -> str:
    return f"{url}: {str(error) or type(error).__name__}"

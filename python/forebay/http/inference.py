"""The hot endpoints: ASGI callables that hand a request to the core and its bytes to the client."""

import asyncio
from typing import TYPE_CHECKING

import structlog
from starlette.types import Receive, Scope, Send

from forebay._core import WAYS, Exchange
from forebay.gateway.answer import Answer
from forebay.http.body import (
    Incomplete,
    TooLarge,
    TooSlow,
    content_length,
    drain,
    read_rest,
)
from forebay.http.disconnect import DisconnectWatch

if TYPE_CHECKING:
    from forebay.gateway import Gateway

log = structlog.get_logger("forebay.http")

SMALL = 64 * 1024
"""Bytes; a body above this is read only for those who may ask at all."""


class Inference:
    """One way in."""

    def __init__(self, gateway: "Gateway", way: int, watch: DisconnectWatch) -> None:
        self._gateway = gateway
        self._core = gateway.core
        self._way = way
        self._watch = watch
        self._limit = gateway.config.limits.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Every outcome is an answer in the shape of what is spoken there."""
        try:
            if scope["method"] != "POST":
                await self._answer(send, self._wrong_method(scope), [(b"allow", b"POST")])
                return
            body = await self._body(scope, receive, send)
            if body is None:
                return
            exchange = self._core.admit(self._way, scope["headers"], body)
            await self._relay(exchange, receive, send)
        except Exception:
            log.exception("request failed")
            await self._answer(
                send,
                self._core.error(
                    "internal",
                    "The gateway failed. Please try again.",
                    headers=scope["headers"],
                    way=self._way,
                ),
            )

    def _wrong_method(self, scope: Scope) -> Answer:
        message = f"Use POST for {WAYS[self._way]}."
        if any(name == b"upgrade" for name, _ in scope["headers"]):
            message += " WebSockets are served with 'listen.server: core' only."
        return self._core.error(
            "method_not_allowed",
            message,
            headers=scope["headers"],
            way=self._way,
        )

    async def _body(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """The body, or None when the request was answered because of it."""
        message = await receive()
        if message["type"] != "http.request":
            # Broken framing reaches an application as a disconnect.
            await self._refuse(send, self._broken(scope))
            return None
        first: bytes = message["body"]
        length = content_length(scope["headers"])
        # Asking for the end of a body of known length would cost two more thread hops.
        if not message["more_body"] or length == len(first):
            return first
        refused = None
        if length is None or length > SMALL:
            # Whoever may not ask at all does not get to fill memory either.
            refused = self._core.authenticate(scope["headers"], way=self._way)
        try:
            if refused is None:
                return await read_rest(receive, first, length, self._limit)
            await drain(receive)
            answer = refused
        except TooLarge:
            answer = self._core.error(
                "payload_too_large",
                f"The request body is over the limit of {self._limit} bytes.",
                headers=scope["headers"],
                way=self._way,
            )
        except TooSlow:
            answer = self._core.error(
                "invalid_request",
                "The request body did not arrive in time.",
                headers=scope["headers"],
                code="slow_body",
                way=self._way,
            )
        except Incomplete:
            answer = self._broken(scope)
        await self._refuse(send, answer)
        return None

    def _broken(self, scope: Scope) -> Answer:
        return self._core.error(
            "invalid_request",
            "The request body is incomplete or malformed.",
            headers=scope["headers"],
            code="bad_body",
            way=self._way,
        )

    async def _refuse(self, send: Send, answer: Answer) -> None:
        """Answer, and read nothing more of this connection."""
        await self._answer(send, answer, [(b"connection", b"close")])

    async def _relay(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        answer = exchange.start()
        if isinstance(answer, tuple) and not answer[3]:
            await self._answer(send, answer)
            return
        watched = self._watch.add(receive, exchange)
        try:
            if isinstance(answer, asyncio.Future):
                answer = await answer
            if answer is None:
                return
            status, headers, _, more = answer
            if not more:
                await self._answer(send, answer)
                return
            headers = self._closing(headers)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            while True:
                batch = exchange.next()
                if isinstance(batch, asyncio.Future):
                    batch = await batch
                if batch is None:
                    break
                await send({"type": "http.response.body", "body": batch, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except BaseException:
            exchange.cancel()
            raise
        finally:
            watched.done()

    async def _answer(
        self, send: Send, answer: Answer, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        status, headers, body, _ = answer
        if extra is not None:
            headers += extra
        await send(
            {"type": "http.response.start", "status": status, "headers": self._closing(headers)}
        )
        await send({"type": "http.response.body", "body": body})

    def _closing(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """While draining, keep-alive would hold the drain open."""
        if self._gateway.draining:
            headers.append((b"connection", b"close"))
        return headers

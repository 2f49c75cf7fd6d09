"""Nothing of a request's body is left unread on a connection that is used again.

An application may answer without reading: a path that is not there, a key that is not good. The
server then closes the connection under the next request, which may be somebody else's: the core's
listener keeps its connections to the application for all clients.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forebay.http.body import drain


class ReadFirst:
    """An application whose answers begin once the request was read, or else end its connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        unread = True

        async def noting() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                unread = False
            return message

        async def reading(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                await drain(noting)
                if unread:
                    close = (b"connection", b"close")
                    message = {**message, "headers": [*message.get("headers", ()), close]}
            await send(message)

        await self._app(scope, noting, reading)


def _has_body(scope: Scope) -> bool:
    """Whether a body may follow the head."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )

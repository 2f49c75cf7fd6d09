"""Paths that only the core's own listener serves: their bodies are passed on as they come."""

from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from forebay.http.body import drain

if TYPE_CHECKING:
    from forebay.gateway import Gateway

CORE_ONLY = (
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/images/edits",
    "/v1/images/variations",
    "/v1/files",
    "/v1/files/{rest:path}",
    "/v1/batches",
    "/v1/batches/{rest:path}",
)

_FORM = "multipart/form-data"
PASSED = (
    ("/v1/audio/transcriptions", "POST", _FORM),
    ("/v1/audio/translations", "POST", _FORM),
    ("/v1/images/edits", "POST", _FORM),
    ("/v1/images/variations", "POST", _FORM),
    ("/v1/files", "POST", _FORM),
    ("/v1/files", "GET", None),
    ("/v1/files/{id}", "GET", None),
    ("/v1/files/{id}", "DELETE", None),
    ("/v1/files/{id}/content", "GET", None),
    ("/v1/batches", "POST", "application/json"),
    ("/v1/batches", "GET", None),
    ("/v1/batches/{id}", "GET", None),
    ("/v1/batches/{id}/cancel", "POST", None),
)
"""What the core's listener serves there besides its ways: path, method, and the body's type."""


class CoreOnly:
    """Refuses what is asked for at one of `CORE_ONLY`, and says what would serve it."""

    def __init__(self, gateway: "Gateway") -> None:
        self._core = gateway.core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        answer = self._core.authenticate(scope["headers"])
        if answer is None:
            answer = self._core.error(
                "not_found",
                f"{scope['path']} is served with listen.server: core only.",
                headers=scope["headers"],
                code="unsupported_endpoint",
            )
        await drain(receive)
        status, headers, body, _ = answer
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

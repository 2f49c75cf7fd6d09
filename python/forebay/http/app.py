"""One Starlette application for every HTTP endpoint."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from forebay._core import WAYS
from forebay.gateway.answer import Answer
from forebay.http.admin import DatabaseSource, admin_routes
from forebay.http.core_only import CORE_ONLY, CoreOnly
from forebay.http.disconnect import DisconnectWatch
from forebay.http.inference import Inference
from forebay.http.models import get_model, list_models
from forebay.http.openapi import PATH as OPENAPI
from forebay.http.openapi import openapi
from forebay.http.probes import healthz, metrics, readyz
from forebay.http.responses import ROUTES as RESPONSES
from forebay.http.unread import ReadFirst

if TYPE_CHECKING:
    from forebay.gateway import Gateway


class _App(Starlette):
    """Starlette, with the hot paths found by one lookup instead of the middleware and the router.

    They stand among the routes all the same; the lookup only comes first.
    """

    hot: dict[str, ASGIApp]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        hot = self.hot.get(scope["path"]) if scope["type"] == "http" else None
        if hot is not None:
            return hot(scope, receive, send)
        return super().__call__(scope, receive, send)


def render(answer: Answer, headers: dict[str, str] | None = None) -> Response:
    """A core's answer as Starlette's response."""
    status, pairs, body, _ = answer
    response = Response(body, status)
    response.raw_headers = [
        *(pair for pair in response.raw_headers if pair[0] == b"content-length"),
        *pairs,
    ]
    for name, value in (headers or {}).items():
        response.headers[name] = value
    return response


def create_app(
    gateway: "Gateway",
    database: DatabaseSource,
    figures: Callable[[], Awaitable[str]] | None = None,
) -> Starlette:
    """The application that serves `gateway` and administers `database`.

    figures: what `/metrics` answers; None takes the process's own. Raises: TimeoutError.
    """
    watch = DisconnectWatch()
    hot: dict[str, ASGIApp] = {
        path: Inference(gateway, index, watch)
        for index, path in enumerate(WAYS)
        # Methods of gRPC are served on its own port.
        if path not in CORE_ONLY and not path.startswith("/forebay.v1.")
    }
    refused = CoreOnly(gateway)

    async def not_found(request: Request, error: Exception) -> Response:
        return render(
            gateway.core.error(
                "not_found",
                f"Unknown request URL: {request.method} {request.url.path}.",
                headers=request.scope["headers"],
            )
        )

    async def wrong_method(request: Request, error: Exception) -> Response:
        allowed = error.headers if isinstance(error, HTTPException) else None
        answer = gateway.core.error(
            "method_not_allowed",
            f"{request.method} is not supported for {request.url.path}.",
            headers=request.scope["headers"],
        )
        return render(answer, dict(allowed or {}))

    async def failed(request: Request, error: Exception) -> Response:
        return render(
            gateway.core.error(
                "internal",
                "The gateway failed. Please try again.",
                headers=request.scope["headers"],
            )
        )

    app = _App(
        routes=[
            *(Route(path, endpoint) for path, endpoint in hot.items()),
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/models/{model:path}", get_model, methods=["GET"]),
            *RESPONSES,
            Route(OPENAPI, openapi, methods=["GET"]),
            *(Route(path, refused) for path in CORE_ONLY),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            *admin_routes(gateway, database),
        ],
        middleware=[Middleware(ReadFirst)],
        exception_handlers={404: not_found, 405: wrong_method, 500: failed},
    )
    app.hot = hot
    app.state.gateway = gateway
    app.state.figures = figures
    return app

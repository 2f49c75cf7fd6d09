"""`/healthz`, `/readyz` and `/metrics`: for orchestrators and Prometheus; no key needed."""

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response


async def healthz(_: Request) -> Response:
    """The process is alive and its event loop turns."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 while traffic may come, else 503; the body says how each part is."""
    health = request.app.state.gateway.health()
    status = "ready" if health.ready else "not ready"
    if health.ready and health.degraded:
        status = "degraded"
    return Response(
        orjson.dumps({"status": status, "checks": health.checks}),
        status_code=200 if health.ready else 503,
        media_type="application/json",
    )


async def metrics(request: Request) -> Response:
    """Every metric in the Prometheus text format 0.0.4, of all workers where there are several."""
    state = request.app.state
    try:
        text = state.gateway.core.metrics() if state.figures is None else await state.figures()
    except TimeoutError:
        # Part of the sum would look like counters that went backwards.
        return PlainTextResponse("the supervisor does not answer\n", status_code=503)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

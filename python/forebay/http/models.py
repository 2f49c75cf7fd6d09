"""`/v1/models`: what the request's key may use, in OpenAI's shape."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

_CREATED = 1_767_225_600  # Models carry no date of their own here; OpenAI's clients need one.


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "forebay"}


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


async def list_models(request: Request) -> Response:
    """Every model, aliases included."""
    from forebay.http.app import render

    models = request.app.state.gateway.core.models(request.scope["headers"])
    if isinstance(models, tuple):
        return render(models)
    return _json({"object": "list", "data": [_entry(name) for name in models]})


async def get_model(request: Request) -> Response:
    """One model by name or alias."""
    from forebay.http.app import render

    core = request.app.state.gateway.core
    models = core.models(request.scope["headers"])
    if isinstance(models, tuple):
        return render(models)
    name = request.path_params["model"]
    if name not in models:
        shown = name[:200]
        return render(
            core.error(
                "model_not_found",
                f"The model '{shown}' does not exist or you do not have access to it.",
                headers=request.scope["headers"],
                param="model",
            )
        )
    return _json(_entry(name))

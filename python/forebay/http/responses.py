"""`/v1/responses/{id}`: what an account's stored responses are, in OpenAI's shape."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forebay.gateway.answer import Answer
from forebay.gateway.asks import Unanswerable
from forebay.gateway.stored_responses import Order, StoredResponses, UnknownItem

if TYPE_CHECKING:
    from forebay.gateway import Gateway

MAX_PAGE = 100
PAGE = 20
_ID_BYTES = 200

log = structlog.get_logger("forebay.http")


class _Refused(Exception):
    """The request is answered already."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class _Call:
    """One request about one response, of a key that is good."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._gateway: Gateway = request.app.state.gateway
        account = self._gateway.core.account(request.scope["headers"])
        if not isinstance(account, str):
            raise _Refused(account)
        self.account = account
        self.id: str = request.path_params["response_id"]

    @property
    def shelf(self) -> StoredResponses:
        """Where responses are."""
        shelf = self._gateway.responses
        if shelf is None:
            raise Unanswerable("there is no database")
        return shelf

    def refuse(
        self, kind: str, message: str, *, param: str | None = None, code: str | None = None
    ) -> NoReturn:
        """Answer with an error.

        Raises: _Refused, always.
        """
        headers = self.request.scope["headers"]
        raise _Refused(
            self._gateway.core.error(kind, message, headers=headers, param=param, code=code)
        )

    def not_found(self) -> NoReturn:
        """The account has no such response; whether another one has is nothing it may know."""
        self.refuse(
            "not_found",
            f"Response with id '{self.id[:_ID_BYTES]}' not found.",
            param="response_id",
            code="response_not_found",
        )


def _served(work: Callable[[_Call], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with what `work` gives: JSON as bytes, or data to make it of."""

    @wraps(work)
    async def endpoint(request: Request) -> Response:
        from forebay.http.app import render

        try:
            call = _Call(request)
            try:
                given = await work(call)
            except Unanswerable as error:
                log.warning("stored responses cannot be reached", cause=str(error))
                call.refuse(
                    "unavailable", "Stored responses cannot be reached now. Please try again."
                )
        except _Refused as refused:
            return render(refused.answer)
        content = given if isinstance(given, bytes) else msgspec.json.encode(given)
        return Response(content, media_type="application/json")

    return endpoint


@_served
async def get_response(call: _Call) -> bytes:
    """A response as its client got it. Its events are not kept."""
    if call.request.query_params.get("stream", "false") != "false":
        call.refuse(
            "invalid_request",
            "The events of a stored response are not kept: ask for it without 'stream'.",
            param="stream",
            code="unsupported_value",
        )
    found = await call.shelf.response(call.account, call.id)
    return call.not_found() if found is None else found


@_served
async def delete_response(call: _Call) -> dict[str, Any]:
    """From now on it is as if it had never been stored."""
    if not await call.shelf.delete(call.account, call.id):
        call.not_found()
    return {"id": call.id, "object": "response", "deleted": True}


@_served
async def cancel_response(call: _Call) -> bytes:
    """What is stored has ended, as there are no background responses."""
    if await call.shelf.response(call.account, call.id) is None:
        call.not_found()
    call.refuse(
        "invalid_request",
        "Only a response that was created with 'background' can be cancelled, and this gateway has"
        " none of these.",
        param="response_id",
        code="response_not_cancellable",
    )


@_served
async def list_input_items(call: _Call) -> dict[str, Any]:
    """What the model was given, the last first unless asked for otherwise."""
    query = call.request.query_params
    limit, order = _limit(call), _order(call)
    if "before" in query:
        call.refuse(
            "invalid_request",
            "'before' is not supported: ask for the other order and 'after'.",
            param="before",
            code="unsupported_parameter",
        )
    try:
        found = await call.shelf.items(
            call.account, call.id, after=query.get("after"), limit=limit, order=order
        )
    except UnknownItem:
        call.refuse(
            "invalid_request",
            "'after' is the id of no item of this response.",
            param="after",
            code="invalid_value",
        )
    if found is None:
        call.not_found()
    items = found.items
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": found.has_more,
    }


def _limit(call: _Call) -> int:
    text = call.request.query_params.get("limit", str(PAGE))
    if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= MAX_PAGE:
        return int(text)
    call.refuse(
        "invalid_request",
        f"'limit' must be 1 to {MAX_PAGE}.",
        param="limit",
        code="invalid_value",
    )


def _order(call: _Call) -> Order:
    order = call.request.query_params.get("order", "desc")
    if order == "asc":
        return "asc"
    if order == "desc":
        return "desc"
    call.refuse(
        "invalid_request", "'order' must be asc or desc.", param="order", code="invalid_value"
    )


ROUTES = [
    Route("/v1/responses/{response_id}", get_response, methods=["GET"]),
    Route("/v1/responses/{response_id}", delete_response, methods=["DELETE"]),
    Route("/v1/responses/{response_id}/cancel", cancel_response, methods=["POST"]),
    Route("/v1/responses/{response_id}/input_items", list_input_items, methods=["GET"]),
]

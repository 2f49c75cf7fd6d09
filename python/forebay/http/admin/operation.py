"""One operation of the admin API, and the way of a request through it.

An operation says which types it takes and gives. Requests are read by them, and the OpenAPI
document is made of them, so the two cannot disagree.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from forebay.gateway.answer import Answer
from forebay.gateway.request_id import own_request_id
from forebay.http.admin.caller import actor
from forebay.http.body import Incomplete, TooLarge, TooSlow, content_length, drain, read_rest
from forebay.store.actor import Actor, acting
from forebay.store.database import UNREACHABLE, Database
from forebay.store.errors import (
    AccountExists,
    AccountNotFound,
    BadValue,
    InvoiceNotFound,
    KeyNotFound,
    KeyRevoked,
    LogKeyMissing,
    LogNotFound,
    LogUnreadable,
    NotBillable,
    PriceNotFound,
    StoreUnavailable,
    TermNotFound,
)

if TYPE_CHECKING:
    from forebay._core import Core
    from forebay.config import Config
    from forebay.gateway import Gateway

log = structlog.get_logger("forebay.http.admin")

PREFIX = "/admin/v1"
WORK_S = 10.0
"""Seconds that the database has for one operation that does not say otherwise."""

T = TypeVar("T")
Run = Callable[["Call"], Awaitable[Any]]
DatabaseSource = Callable[[], Database | None]
"""Gives the database to administer, None while it has never been reached."""


class Refused(Exception):
    """The request cannot be served; what the client is told."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    path: below `PREFIX`, with ``{names}``. summary: one line, for the document. run: does the
    work; what it returns is the answer's body. query, body: the types read; None takes none.
    answer: the type of the body given; None gives none. bare: an absent body counts as ``{}``.
    work_s: seconds that the database has for it; None: `WORK_S`.
    """

    method: str
    path: str
    summary: str
    run: Run
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    answer: Any = None
    status: int = 200
    bare: bool = False
    work_s: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was read.

    query, body: of the operation's types. aliased, drain_upstream: as of `Gateway`.
    """

    core: "Core"
    config: "Config"
    aliased: Callable[[str], str | None]
    drain_upstream: Callable[[str, bool], bool]
    path: dict[str, str]
    query: Any
    body: Any
    _database: Database | None

    @property
    def database(self) -> Database:
        """Raises: StoreUnavailable while it has never been reached."""
        if self._database is None:
            raise StoreUnavailable("the database has not been reached yet")
        return self._database


class Desk:
    """Where operations are done, whichever way their requests come in."""

    def __init__(self, gateway: "Gateway", database: DatabaseSource) -> None:
        self.core = gateway.core
        self.gateway = gateway
        self._database = database

    async def perform(
        self, operation: Operation, who: Actor, *, path: dict[str, str], query: Any, body: Any
    ) -> Any:
        """Do an operation for the holder of an admin key; its answer.

        Raises: Refused, for all that stands in its way but faults of ours.
        """
        call = Call(
            self.core,
            self.gateway.config,
            self.gateway.aliased,
            self.gateway.drain_upstream,
            path,
            query,
            body,
            self._database(),
        )
        work_s = WORK_S if operation.work_s is None else operation.work_s
        limit = asyncio.timeout(work_s)
        try:
            async with limit:
                with acting(who):
                    answer = await operation.run(call)
        except (StoreUnavailable, *UNREACHABLE) as error:
            raise Refused(
                "unavailable",
                f"This took longer than {work_s:g} s and was given up. Please try again."
                if limit.expired()
                else "The database cannot be reached now. Please try again.",
                cause=str(error) or type(error).__name__,
            ) from error
        except Exception as error:
            refused = _refused(error)
            if refused is None:
                raise
            raise refused from None
        if operation.method != "GET":
            log.info("administered", operation=f"{operation.method} {operation.path}", by=who.name)
        return answer


class Endpoint:
    """All operations of one path, over HTTP."""

    def __init__(self, operations: list[Operation], desk: Desk) -> None:
        self._operations = {operation.method: operation for operation in operations}
        self._core = desk.core
        self._desk = desk
        self._body_bytes = desk.gateway.config.limits.body_bytes

    @property
    def methods(self) -> list[str]:
        """The methods that the path takes."""
        return list(self._operations)

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        from forebay.http.app import render

        headers = own_request_id(request.scope["headers"])
        refusal = self._core.authenticate_admin(headers)
        if refusal is not None:
            await drain(request.receive, content_length(headers) or 0)
            return render(refusal, {"connection": "close"})
        operation = self._operations["GET" if request.method == "HEAD" else request.method]
        who = actor(request, headers, self._desk.gateway.config.listen)
        try:
            body = await self._read(request, operation)
            answer = await self._desk.perform(
                operation,
                who,
                path=request.path_params,
                query=_query(request, operation),
                body=body,
            )
        except Refused as refused:
            return render(self._error(headers, refused))
        told = {"x-request-id": who.request_id or ""}
        if answer is None and operation.answer is None:
            return Response(status_code=operation.status, headers=told)
        if isinstance(answer, Response):
            answer.headers.update(told)
            return answer
        content = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        return Response(
            content,
            operation.status,
            # Some answers hold secrets.
            headers={"cache-control": "no-store", **told},
            media_type="application/json",
        )

    def _error(self, headers: list[tuple[bytes, bytes]], refused: Refused) -> Answer:
        return self._core.error(
            refused.kind,
            refused.message,
            headers=headers,
            param=refused.param,
            code=refused.code,
            cause=refused.cause,
        )

    async def _read(self, request: Request, operation: Operation) -> Any:
        if operation.body is None:
            return None
        media = request.headers.get("content-type", "application/json").partition(";")[0].strip()
        if media.lower() != "application/json":
            raise Refused(
                "invalid_request",
                "The content type must be application/json.",
                param="content-type",
                code="unsupported_content_type",
            )
        length = content_length(request.scope["headers"])
        try:
            data = await read_rest(request.receive, b"", length, self._body_bytes)
        except TooLarge:
            raise Refused(
                "payload_too_large",
                f"The request body is over the limit of {self._body_bytes} bytes.",
            ) from None
        except TooSlow:
            raise Refused(
                "invalid_request", "The request body did not arrive in time.", code="slow_body"
            ) from None
        except Incomplete:
            raise Refused(
                "invalid_request",
                "The request body is incomplete or malformed.",
                code="bad_body",
            ) from None
        return _read_as(operation.body, b"{}" if operation.bare and not data else data)


def _query(request: Request, operation: Operation) -> Any:
    pairs = request.query_params.multi_items()
    values = dict(pairs)
    if len(values) < len(pairs):
        raise Refused("invalid_request", "A query parameter was given twice.", code="invalid_value")
    return converted(values, operation.query or _NoQuery, strict=False)


def converted(values: dict[str, Any], kind: type[T], *, strict: bool = True) -> T:
    """Plain values as an operation's type. Raises: Refused, that names the value at fault."""
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _explained(error) from None


class _NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Takes no parameter."""


def _read_as(kind: type[T], data: bytes) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(
            "invalid_request", f"We could not read the request: {error}.", code="invalid_json"
        ) from None


_AT = re.compile(r"(?P<reason>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)


def _explained(error: msgspec.ValidationError) -> Refused:
    match = _AT.fullmatch(str(error))
    reason = match["reason"] if match else str(error)
    # An error in a list's item is the list's: that is the parameter's name.
    path = re.sub(r"\[[^]]*\]", "", (match["path"] if match else None) or "")
    for pattern, told, code in (
        (_UNKNOWN, "Unknown parameter", "unknown_parameter"),
        (_MISSING, "Missing required parameter", "missing_required_parameter"),
    ):
        if found := pattern.fullmatch(reason):
            param = f"{path}.{found['name']}" if path else found["name"]
            return Refused("invalid_request", f"{told}: '{param}'.", param=param, code=code)
    wrong_type = re.search(r", got `", reason) is not None
    return Refused(
        "invalid_request",
        f"Invalid value for '{path}': {reason}." if path else f"Invalid request: {reason}.",
        param=path or None,
        code="invalid_type" if wrong_type else "invalid_value",
    )


def _refused(error: Exception) -> Refused | None:
    """What the client is told of an error; None for a fault of ours."""
    if isinstance(error, Refused):
        return error
    text = f"{str(error)[:1].upper()}{str(error)[1:]}."
    if isinstance(error, BadValue):
        return Refused(
            "invalid_request",
            f"Invalid value for '{error.field}': {error.field} {error.reason}.",
            param=error.field,
            code="invalid_value",
        )
    if isinstance(error, KeyNotFound):
        return Refused("not_found", text, code="key_not_found")
    if isinstance(error, PriceNotFound):
        return Refused("not_found", text, code="price_not_found")
    if isinstance(error, AccountNotFound):
        return Refused("not_found", text, code="account_not_found")
    if isinstance(error, InvoiceNotFound):
        return Refused("not_found", text, code="invoice_not_found")
    if isinstance(error, TermNotFound):
        return Refused("not_found", text, code="term_not_found")
    if isinstance(error, NotBillable):
        return Refused("invalid_request", text, code="not_billable")
    if isinstance(error, AccountExists):
        return Refused("invalid_request", text, param="id", code="account_exists")
    if isinstance(error, LogNotFound):
        return Refused("not_found", text, code="log_not_found")
    if isinstance(error, LogKeyMissing):
        return Refused("invalid_request", text, code="log_key_missing")
    if isinstance(error, LogUnreadable):
        return Refused("invalid_request", text, code="log_unreadable")
    if isinstance(error, KeyRevoked):
        return Refused("invalid_request", text, code="key_revoked")
    return None

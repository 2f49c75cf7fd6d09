"""`forebay.v1.AdminService`: the operations of the HTTP admin API, called over gRPC."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from google.protobuf.message import Message

from forebay.gateway.request_id import own_request_id, request_id
from forebay.grpc.accept import Whole
from forebay.grpc.admin_messages import (
    NAMES,
    Values,
    changes,
    creation,
    enum_text,
    given,
    seconds_of,
    set_key,
    set_upstream,
    usage_row,
)
from forebay.grpc.call import Context, Reply, fail, named, read_headers, refuse, unary
from forebay.grpc.models import read_as
from forebay.grpc.v1 import admin_pb2 as pb
from forebay.http.admin import DatabaseSource
from forebay.http.admin.caller import holder
from forebay.http.admin.operation import Desk, Operation, Refused, converted
from forebay.http.admin.table import OPERATIONS
from forebay.store.actor import Actor

if TYPE_CHECKING:
    from forebay.gateway import Gateway

MOST_UPSTREAMS = 1000

Read = Callable[[Any], tuple[Values, Values]]
"""Reads a message: what HTTP has in the path, and what it has in the query or the body."""
Write = Callable[[Any, Any], Message]
"""Makes the answer of the operation's answer and of the request."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the service, and the operation that it is."""

    name: str
    http: str
    path: str
    request: type[Message]
    read: Read
    write: Write


def _nothing(_: Any) -> tuple[Values, Values]:
    return {}, {}


def _key(request: Any) -> tuple[Values, Values]:
    return {"key_id": request.id}, {}


def _upstream(request: Any) -> tuple[Values, Values]:
    return {"upstream": request.name}, {}


def _page(request: pb.ListKeysRequest) -> tuple[Values, Values]:
    asked = given(request, ("account", "page_size", "page_token"))
    names = {"page_size": "limit", "page_token": "after"}
    # An empty token is that of the first page.
    return {}, {names.get(name, name): value for name, value in asked.items() if value != ""}


def _rotation(request: pb.RotateKeyRequest) -> tuple[Values, Values]:
    known = request.HasField("overlap")
    return {"key_id": request.id}, {"overlap_s": seconds_of(request.overlap)} if known else {}


def _usage(request: pb.QueryUsageRequest) -> tuple[Values, Values]:
    values = given(request, ("account",))
    if (group := enum_text(request, "group")) is not None:
        values["by"] = group
    if request.HasField("since"):
        values["since_s"] = seconds_of(request.since)
    return {}, values


def _write_key(key: Any, _: Any) -> pb.Key:
    message = pb.Key()
    set_key(message, key)
    return message


def _write_secret(key: Any, _: Any) -> pb.KeySecret:
    message = pb.KeySecret(secret=key.key)
    set_key(message.key, key)
    return message


def _write_keys(page: Any, _: Any) -> pb.ListKeysResponse:
    message = pb.ListKeysResponse(next_page_token=page.next)
    for key in page.data:
        set_key(message.keys.add(), key)
    return message


def _write_usage(report: Any, _: Any) -> pb.QueryUsageResponse:
    return pb.QueryUsageResponse(rows=[usage_row(row) for row in report.data])


def _write_upstream(upstream: Any, _: Any) -> pb.Upstream:
    message = pb.Upstream()
    set_upstream(message, upstream)
    return message


def _write_upstreams(found: Any, request: pb.ListUpstreamsRequest) -> pb.ListUpstreamsResponse:
    size = min(request.page_size if request.HasField("page_size") else MOST_UPSTREAMS, 1000)
    if size < 1:
        raise Refused(
            "invalid_request",
            "Invalid value for 'page_size': page_size is at least 1.",
            param="page_size",
            code="invalid_value",
        )
    after = request.page_token
    left = [u for u in sorted(found.data, key=lambda u: str(u.name)) if u.name > after]
    message = pb.ListUpstreamsResponse()
    for upstream in left[:size]:
        set_upstream(message.upstreams.add(), upstream)
    if len(left) > size:
        message.next_page_token = left[size - 1].name
    return message


METHODS = (
    Method(
        "CreateKey",
        "POST",
        "/keys",
        pb.CreateKeyRequest,
        lambda r: ({}, creation(r)),
        _write_secret,
    ),
    Method("ListKeys", "GET", "/keys", pb.ListKeysRequest, _page, _write_keys),
    Method("GetKey", "GET", "/keys/{key_id}", pb.GetKeyRequest, _key, _write_key),
    Method(
        "UpdateKey",
        "PATCH",
        "/keys/{key_id}",
        pb.UpdateKeyRequest,
        lambda r: ({"key_id": r.key.id}, changes(r)),
        _write_key,
    ),
    Method("RevokeKey", "POST", "/keys/{key_id}/revoke", pb.RevokeKeyRequest, _key, _write_key),
    Method(
        "RotateKey", "POST", "/keys/{key_id}/rotate", pb.RotateKeyRequest, _rotation, _write_secret
    ),
    Method("QueryUsage", "GET", "/usage", pb.QueryUsageRequest, _usage, _write_usage),
    Method(
        "ListUpstreams", "GET", "/upstreams", pb.ListUpstreamsRequest, _nothing, _write_upstreams
    ),
    Method(
        "GetUpstream",
        "GET",
        "/upstreams/{upstream}",
        pb.GetUpstreamRequest,
        _upstream,
        _write_upstream,
    ),
    Method(
        "DrainUpstream",
        "POST",
        "/upstreams/{upstream}/drain",
        pb.DrainUpstreamRequest,
        _upstream,
        _write_upstream,
    ),
    Method(
        "UndrainUpstream",
        "POST",
        "/upstreams/{upstream}/undrain",
        pb.UndrainUpstreamRequest,
        _upstream,
        _write_upstream,
    ),
)


class Admin:
    """The methods of operators."""

    def __init__(self, gateway: "Gateway", database: DatabaseSource) -> None:
        self._core = gateway.core
        self._desk = Desk(gateway, database)

    def handlers(self) -> dict[str, Whole]:
        """Each method's handler by its full name."""
        operations = {(found.method, found.path): found for found in OPERATIONS}
        return {
            f"/forebay.v1.AdminService/{method.name}": self._handler(
                method, operations[method.http, method.path]
            )
            for method in METHODS
        }

    def _handler(self, method: Method, operation: Operation) -> Whole:
        async def serve(context: Context) -> Reply:
            headers = own_request_id(read_headers(context))
            refusal = self._core.grpc_refusal(headers, admin=True)
            if refusal is not None:
                await fail(context, refusal, named(headers))
            request = await read_as(method.request, context, self._core, headers)
            who = Actor(holder(headers), request_id(headers), peer_host(context.peer()))
            try:
                answer = await self._perform(method, operation, request, who)
            except Refused as refused:
                message, param = _renamed(refused)
                await refuse(
                    context,
                    self._core,
                    refused.kind,
                    message,
                    headers=headers,
                    param=param,
                    code=refused.code,
                    cause=refused.cause,
                )
            return named(headers), answer.SerializeToString(), ()

        return unary(self._core, serve)

    async def _perform(
        self, method: Method, operation: Operation, request: Message, who: Actor
    ) -> Message:
        path, values = method.read(request)
        query = body = None
        if operation.query is not None:
            query = converted(values, operation.query)
        elif operation.body is not None:
            body = converted(values, operation.body)
        answer = await self._desk.perform(operation, who, path=path, query=query, body=body)
        return method.write(answer, request)


def _renamed(refused: Refused) -> tuple[str, str | None]:
    """The message and the field at fault, as messages call it."""
    param = refused.param
    if param is None or param not in NAMES:
        return refused.message, param
    return refused.message.replace(f"'{param}'", f"'{NAMES[param]}'"), NAMES[param]


def peer_host(peer: str) -> str | None:
    """The host in gRPC's name of a peer, such as ``ipv6:%5B::1%5D:5555``."""
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return None
    host = unquote(rest).rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]") or None

"""What can go wrong, as exceptions."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"


class Error(Exception):
    """A call that failed.

    message: for people. code: gRPC's status. kind: what went wrong in the gateway's terms, such as
    ``rate_limited`` (docs/grpc.md); None where the gateway was not reached. reason: the exact
    one of `google.rpc.ErrorInfo`. param: the request's field at fault. retry_after: seconds after
    which it may go better; None where waiting does not help, or nobody knows. request_id: names
    the request in the gateway's log. metadata: all of `ErrorInfo`'s.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        *,
        kind: str | None = None,
        reason: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.kind = kind
        self.reason = reason
        self.param = param
        self.retry_after = retry_after
        self.request_id = request_id
        self.metadata = metadata or {}

    def __str__(self) -> str:
        named = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.kind or self.code.name}: {self.message}{named}"


class InvalidRequest(Error):
    """The request cannot be served by anyone; `param` names the field."""


class Unauthenticated(Error):
    """No key, or none that is known."""


class Forbidden(Error):
    """The key may not do this."""


class NotFound(Error):
    """No such model, or it is not the key's."""


class RateLimited(Error):
    """Over a limit; `retry_after` says when to come back."""


class BudgetExhausted(Error):
    """The money is used up; waiting does not help."""


class Unavailable(Error):
    """Nobody can answer now, or the gateway cannot be reached."""


class DeadlineExceeded(Error):
    """It took too long."""


class Cancelled(Error):
    """The call was cancelled here."""


_BY_CODE: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}
_BY_KIND: dict[str, type[Error]] = {
    "rate_limited": RateLimited,
    "budget_exhausted": BudgetExhausted,
    "payload_too_large": InvalidRequest,
}


def to_error(code: grpc.StatusCode, message: str | None, trailing: Iterable[Any] | None) -> Error:
    """The exception of a status. trailing: pairs of trailing metadata."""
    metadata: dict[str, str | bytes] = {str(key): value for key, value in trailing or ()}
    facts = _facts(metadata.get(DETAILS))
    kind = facts.get("kind")
    found = _BY_KIND.get(kind or "") or _BY_CODE.get(code, Error)
    request_id = metadata.get(_REQUEST_ID)
    return found(
        message or code.name,
        code,
        request_id=request_id if isinstance(request_id, str) else None,
        **facts,
    )


def _facts(details: str | bytes | None) -> dict[str, Any]:
    """What a `google.rpc.Status` tells beside code and message."""
    facts: dict[str, Any] = {}
    if not isinstance(details, bytes):
        return facts
    status = status_pb2.Status()
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    try:
        status.ParseFromString(details)
        for detail in status.details:
            if detail.Unpack(info):
                facts |= {
                    "reason": info.reason,
                    "kind": info.reason.lower(),
                    "metadata": dict(info.metadata),
                }
            elif detail.Unpack(retry):
                facts["retry_after"] = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(bad) and bad.field_violations:
                facts["param"] = bad.field_violations[0].field
        if "param" not in facts and (param := facts.get("metadata", {}).get("param")):
            facts["param"] = param
    except DecodeError:
        # Not from a gateway of ours; code and message stand.
        return facts
    return facts

"""Messages of `forebay.v1.AdminService` to and from the types of the HTTP admin API."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from forebay.grpc.v1 import admin_pb2 as pb
from forebay.http.admin.operation import Refused

Values = dict[str, Any]

LIMITS = tuple(field.name for field in pb.Limits.DESCRIPTOR.fields)
NAMES = {
    **{name: f"limits.{name}" for name in LIMITS},
    "expires_at": "expire_time",
    "after": "page_token",
    "limit": "page_size",
    "by": "group",
    "since_s": "since",
    "overlap_s": "overlap",
}
"""Fields of the HTTP API that have another name in messages."""


def enum_text(message: Any, field: str) -> str | None:
    """An enum's value as HTTP has it, None where it is not given. Raises: Refused."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    number = getattr(message, field)
    if number == 0:
        return None
    value = kind.values_by_number.get(number)
    if value is None:
        raise Refused(
            "invalid_request",
            f"Invalid value for '{field}': {number} is no {kind.name}.",
            param=field,
            code="invalid_value",
        )
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name.removeprefix(prefix).lower())


def set_enum(message: Any, field: str, text: str | None) -> None:
    """Set an enum to the value that HTTP calls `text`; None leaves it as it is."""
    if text is None:
        return
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    setattr(message, field, kind.values_by_name[prefix + text.upper()].number)


def seconds_of(value: Timestamp | Duration) -> float:
    """A time or a length of time in seconds."""
    return value.seconds + value.nanos / 1e9


def set_time(time: Timestamp, unix_s: float) -> None:
    """Set a time, to the microsecond."""
    time.FromMicroseconds(round(unix_s * 1e6))


def set_length(length: Duration, seconds: float) -> None:
    """Set a length of time, to the millisecond."""
    length.FromMilliseconds(round(seconds * 1e3))


def set_plain(message: Any, values: Values, names: Iterable[str]) -> None:
    """Set fields of the same name and type where there is a value."""
    for name in names:
        if (value := values[name]) is not None:
            setattr(message, name, value)


def given(message: Any, names: Iterable[str]) -> Values:
    """The fields that have a value."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def limits_values(limits: pb.Limits) -> Values:
    """What is given of limits."""
    values: Values = {}
    for name in LIMITS:
        if limits.DESCRIPTOR.fields_by_name[name].enum_type is not None:
            if (text := enum_text(limits, name)) is not None:
                values[name] = text
        elif limits.HasField(name):
            values[name] = getattr(limits, name)
    return values


def set_limits(limits: pb.Limits, values: Values) -> None:
    """Set limits as HTTP has them."""
    for name in LIMITS:
        if limits.DESCRIPTOR.fields_by_name[name].enum_type is not None:
            set_enum(limits, name, values[name])
        elif values[name] is not None:
            setattr(limits, name, values[name])


def set_key(message: pb.Key, key: msgspec.Struct) -> None:
    """Set a key as listings show it."""
    values: Values = msgspec.to_builtins(key)
    set_plain(message, values, ("id", "account", "name", "last4", "revoked", "log_sample"))
    for field in ("kind", "priority", "log_level"):
        set_enum(message, field, values[field])
    set_time(message.create_time, values["created_at"])
    if values["expires_at"] is not None:
        set_time(message.expire_time, values["expires_at"])
    if values["previous_expires_at"] is not None:
        set_time(message.previous_expire_time, values["previous_expires_at"])
    if values["models"] is not None:
        message.models.SetInParent()
        message.models.names.extend(values["models"])
    message.limits.SetInParent()
    set_limits(message.limits, values)
    for model, limits in values["per_model"].items():
        set_limits(message.per_model[model], limits)


def creation(request: pb.CreateKeyRequest) -> Values:
    """The body of a request that makes a key."""
    values: Values = {"name": request.name, **limits_values(request.limits)}
    values |= given(request, ("account", "log_sample"))
    for field in ("kind", "priority", "log_level"):
        if (text := enum_text(request, field)) is not None:
            values[field] = text
    if request.HasField("models"):
        values["models"] = list(request.models.names)
    if request.HasField("expire_time"):
        values["expires_at"] = seconds_of(request.expire_time)
    return values


def changes(request: pb.UpdateKeyRequest) -> Values:
    """The body of a request that changes what a mask names of a key. Raises: Refused."""
    key, values = request.key, {}
    readers: dict[str, Callable[[], Any]] = {
        "name": lambda: key.name,
        "models": lambda: list(key.models.names) if key.HasField("models") else None,
        "priority": lambda: enum_text(key, "priority") or "interactive",
        "log_level": lambda: enum_text(key, "log_level"),
        "log_sample": lambda: key.log_sample if key.HasField("log_sample") else None,
    }
    limits: Values = {
        **dict.fromkeys(LIMITS),
        "on_store_loss": "share",
        **limits_values(key.limits),
    }
    for path in request.update_mask.paths:
        section, _, name = path.partition(".")
        if path in readers:
            values[path] = readers[path]()
        elif path == "expire_time":
            known = key.HasField("expire_time")
            values["expires_at"] = seconds_of(key.expire_time) if known else None
        elif path == "limits":
            values |= limits
        elif section == "limits" and name in LIMITS:
            values[name] = limits[name]
        else:
            raise Refused(
                "invalid_request",
                f"Invalid value for 'update_mask': '{path[:100]}' cannot be changed.",
                param="update_mask",
                code="invalid_value",
            )
    if not values:
        raise Refused(
            "invalid_request",
            "Missing required parameter: 'update_mask'.",
            param="update_mask",
            code="missing_required_parameter",
        )
    return values


def set_upstream(message: pb.Upstream, upstream: msgspec.Struct) -> None:
    """Set how an upstream stands."""
    values: Values = msgspec.to_builtins(upstream)
    nested = {"load", "backs_off", "ejection"}
    set_plain(message, values, (f.name for f in message.DESCRIPTOR.fields if f.name not in nested))
    if (rest := values["backs_off_s"]) is not None:
        set_length(message.backs_off, rest)
    if (load := values["load"]) is not None:
        set_plain(message.load, load, ("running", "waiting", "tokens"))
        set_length(message.load.age, load["age_s"])
    if (ejection := values["ejection"]) is not None:
        set_plain(message.ejection, ejection, ("reason", "streak"))
        set_time(message.ejection.end_time, ejection["until"])


def usage_row(row: msgspec.Struct) -> pb.UsageRow:
    """Sums over one group."""
    message = pb.UsageRow()
    set_plain(message, msgspec.to_builtins(row), (f.name for f in message.DESCRIPTOR.fields))
    return message

"""Where the gateway is, how it is reached, and what every call carries."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import grpc

SERVICE = "forebay.v1.InferenceService"
ATTEMPTS = 4
KEEPALIVE_S = 30
TIMEOUT_S = 600.0
"""Seconds that an answer may take unless a call says otherwise."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. ca: who signs the gateway's certificate, the system's roots unless given.
    cert, key: the client's own, where the gateway asks for one.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises: OSError on a file that cannot be read."""
        ca, cert, key = (
            None if path is None else Path(path).read_bytes()
            for path in (self.ca, self.cert, self.key)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)


class CallOptions(TypedDict, total=False):
    """What every call takes beside its request.

    timeout: seconds for the whole answer. request_id: names the request in the gateway's log.
    idempotency_key: a repeat with the same key gets the same answer. tags: for the usage report.
    session: requests of one session stay on one engine where the model says so. metadata: more.
    """

    timeout: float | None
    request_id: str
    idempotency_key: str
    tags: dict[str, str]
    session: str
    metadata: dict[str, str]


CALL_OPTIONS = frozenset(CallOptions.__annotations__)


def service_config() -> str:
    """When calls are tried again, by the channel itself.

    The gateway says in each refusal whether and when that makes sense (`grpc-retry-pushback-ms`).
    A call whose answer has begun is never tried again.
    Source: https://github.com/grpc/grpc-proto/blob/master/grpc/service_config/service_config.proto
    """
    policy = {
        "maxAttempts": ATTEMPTS,
        "initialBackoff": "0.2s",
        "maxBackoff": "5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    return json.dumps({"methodConfig": [{"name": [{"service": SERVICE}], "retryPolicy": policy}]})


def channel_options(retries: bool) -> list[tuple[str, Any]]:
    """gRPC's arguments for a channel."""
    return [
        ("grpc.enable_retries", int(retries)),
        ("grpc.service_config", service_config() if retries else "{}"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.primary_user_agent", "forebay-python"),
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway's address and the credentials for it.

    address: HOST:PORT, or ``grpc://HOST:PORT`` and with TLS ``grpcs://HOST:PORT``.
    api_key: None takes FOREBAY_API_KEY. tls: True for the system's roots.
    Raises: ValueError without a key.
    """

    address: str
    api_key: str | None
    tls: Tls | grpc.ChannelCredentials | bool | None
    timeout: float | None

    def target(self) -> tuple[str, grpc.ChannelCredentials | None]:
        """The channel's target, and its credentials where it has TLS."""
        scheme, found, rest = self.address.partition("://")
        if not found:
            scheme, rest = "grpc", self.address
        if scheme not in ("grpc", "grpcs"):
            raise ValueError(f"{self.address!r} is no address such as grpcs://gateway:50051")
        tls = (scheme == "grpcs") if self.tls is None else self.tls
        if tls is False:
            return rest, None
        if tls is True:
            tls = Tls()
        return rest, tls.credentials() if isinstance(tls, Tls) else tls

    def metadata(self, options: CallOptions) -> Metadata:
        """What a call carries."""
        found = {"authorization": f"Bearer {self.key()}"}
        for option, name in (
            ("request_id", "x-request-id"),
            ("idempotency_key", "idempotency-key"),
            ("session", "x-session-id"),
        ):
            if (value := options.get(option)) is not None:
                found[name] = str(value)
        if tags := options.get("tags"):
            found["x-forebay-tags"] = ",".join(f"{name}={value}" for name, value in tags.items())
        return tuple((found | (options.get("metadata") or {})).items())

    def key(self) -> str:
        """The API key."""
        key = self.api_key or os.environ.get("FOREBAY_API_KEY")
        if not key:
            raise ValueError("no API key: give api_key, or set FOREBAY_API_KEY")
        return key

    def limit_s(self, options: CallOptions) -> float | None:
        """Seconds for a call's whole answer."""
        return options.get("timeout", self.timeout)

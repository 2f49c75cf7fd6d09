"""The process itself: where it listens, its bounds, what it keeps."""

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from forebay.config.schema.base import MIB, Name, Section
from forebay.config.schema.model import Timeouts

Server = Literal["core", "granian"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]


class Address(NamedTuple):
    """A TCP address to listen on; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class GrpcTls(Section, frozen=True, kw_only=True):
    """TLS of the gRPC listener: paths of files in PEM, read again when one of them changes.

    cert: the chain, the server's own certificate first. key: its private key. client_ca: who signs
    the certificates that clients must then have (mTLS); None asks clients for none.
    """

    cert: Annotated[str, Meta(min_length=1)]
    key: Annotated[str, Meta(min_length=1)]
    client_ca: Annotated[str, Meta(min_length=1)] | None = None


class Listen(Section, frozen=True, kw_only=True):
    """Where the gateway listens, as HOST:PORT (an IPv6 host in brackets).

    grpc: None serves no gRPC. grpc_tls: None serves it in the clear.
    server: who accepts HTTP connections. ``core``: the Rust listener, which answers inference
        itself and passes all else to the application. ``granian``: Granian, with everything in
        the application.
    keep_alive_s: seconds that a connection may be idle between two requests (HTTP/1, ``core``);
        more than a proxy keeps its connections, so that it never sends on one that closes.
    """

    http: str = "0.0.0.0:8080"
    server: Server = "core"
    keep_alive_s: Annotated[float, Meta(gt=0, le=86_400)] = 75.0
    grpc: str | None = None
    grpc_tls: GrpcTls | None = None


class Limits(Section, frozen=True, kw_only=True):
    """Bounds on what a client or an upstream may send, in bytes, and on WebSockets.

    body_bytes: a request's body, or a WebSocket's message. upload_bytes: one that is a form with
        files in it, of which no more than `body_bytes` are held. event_bytes: one server-sent event
        of an answer. header_bytes: a request's header block.
    websockets: how many one process has open. websocket_idle_s: how long one may have no request,
        seconds.
    """

    body_bytes: Annotated[int, Meta(ge=1024, le=1024 * MIB)] = 10 * MIB
    upload_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024 * MIB)] = 100 * MIB
    event_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB)] = MIB
    header_bytes: Annotated[int, Meta(ge=4096, le=MIB)] = 64 * 1024
    websockets: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000
    websocket_idle_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0


class Files(Section, frozen=True, kw_only=True):
    """Where clients' files and batches are kept: at one upstream, each its account's.

    timeouts: of a request; `total` bounds how long a file may take to be sent.
    """

    upstream: Name
    timeouts: Timeouts = Timeouts()


class PromptLogs(Section, frozen=True, kw_only=True):
    """How logged prompts and answers are kept. Who is logged is a setting of accounts and keys.

    keys: for encryption, by name: base64 of 32 bytes each. Old ones stay as long as logs need them.
    active: the name of the key for what is written from now on; None logs no contents.
    max_bytes: of a request and of an answer, each; what is over is cut off.
    patterns: regular expressions, in the syntax of Rust's regex; what fits one is blotted out, as
        keys, e-mail addresses and card numbers are without them.
    retention_days: days (UTC) after which logs are deleted.
    """

    keys: dict[Name, str] = msgspec.field(default_factory=dict)
    active: Name | None = None
    max_bytes: Annotated[int, Meta(ge=1, le=MIB)] = 64 * 1024
    patterns: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=1000)], ...], Meta(max_length=100)
    ] = ()
    retention_days: Annotated[int, Meta(ge=1, le=36_500)] = 30


class Idempotency(Section, frozen=True, kw_only=True):
    """How answers of requests with an ``Idempotency-Key`` are kept.

    ttl_s: seconds from its end that an answer is given again. max_answer_bytes: of one answer; a
    longer one is given once. lease_s: seconds after which what a process that died was working on
    is worked on by another.
    """

    ttl_s: Annotated[float, Meta(ge=1, le=30 * 86_400)] = 86_400.0
    max_answer_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB)] = 4 * MIB
    lease_s: Annotated[float, Meta(ge=1, le=600)] = 10.0


class Responses(Section, frozen=True, kw_only=True):
    """How long responses (``/v1/responses``) are kept from when they were made.

    ttl_s: seconds.
    """

    ttl_s: Annotated[float, Meta(ge=1, le=36_500 * 86_400)] = 30 * 86_400.0


class Log(Section, frozen=True, kw_only=True):
    """What is logged, and whether as JSON lines or for people."""

    level: LogLevel = "info"
    format: LogFormat = "json"


class Telemetry(Section, frozen=True, kw_only=True):
    """Where traces go.

    otlp_endpoint: ``http://…/v1/traces``; None takes OpenTelemetry's own variables, and without
        those nothing is traced.
    sample: the share of requests that are traced where the client does not say.
    service_name: None takes ``OTEL_SERVICE_NAME``, or ``forebay``.
    """

    otlp_endpoint: str | None = None
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    service_name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class Spool(Section, frozen=True, kw_only=True):
    """Where usage is recorded until the database has it.

    dir: a folder on a disk of this machine; None takes ``forebay/spool`` under ``$XDG_STATE_HOME``
        or ``~/.local/state``.
    max_bytes: of each process; prompt logs may take a quarter as much more.
    durability: ``process`` survives the end of the process, and loses the last 0.1 s or so with
        the machine. ``machine`` ends no answer before its record is on the disk.
    on_full: ``refuse`` answers 503 to what could not be recorded. ``serve_unmetered`` serves it,
        and counts how often.
    """

    dir: Annotated[str, Meta(min_length=1)] | None = None
    max_bytes: Annotated[int, Meta(ge=2 * MIB, le=1024 * 1024 * MIB)] = 1024 * MIB
    durability: Literal["process", "machine"] = "process"
    on_full: Literal["refuse", "serve_unmetered"] = "refuse"


Days = Annotated[int, Meta(ge=1, le=36_500)]


class Retention(Section, frozen=True, kw_only=True):
    """How many days tables are kept; None keeps for good.

    usage_days: events, dropped by whole months (UTC) once all of the month is older; their sums
        stay. hourly_days: sums by hour; those by day stay. rejected_days: rows that were set
        aside.
    """

    usage_days: Days | None = None
    hourly_days: Days | None = None
    rejected_days: Days | None = None

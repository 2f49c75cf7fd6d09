"""The schema: every field, its type, unit, range and default, and nothing else."""

import base64
import binascii
import re
from decimal import Context, Decimal, InvalidOperation
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

MIB = 1024 * 1024

UpstreamKind = Literal["sglang", "openai_compatible"]
Policy = Literal["round_robin"]
OnDisconnect = Literal["abort", "drain"]
Server = Literal["core", "granian"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]

Name = Annotated[
    str,
    Meta(min_length=1, max_length=200, description="A name without spaces."),
]
UsdPerMillion = Annotated[
    Decimal,
    Meta(description="US dollars for a million tokens, at most 1000000 and 6 decimal places."),
]
Concurrency = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400, description="Seconds.")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: immutable, and a field it does not know is an error."""


class Address(NamedTuple):
    """A TCP address to listen on; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listen(Section, frozen=True, kw_only=True):
    """Where the gateway listens, as HOST:PORT (an IPv6 host in brackets).

    grpc: None serves no gRPC.
    server: who accepts HTTP connections. ``core``: the Rust listener, which answers inference
        itself and passes all else to the application. ``granian``: Granian, with everything in
        the application.
    """

    http: str = "0.0.0.0:8080"
    server: Server = "core"
    grpc: str | None = None


class Queue(Section, frozen=True, kw_only=True):
    """Where requests wait while an upstream has as many as it may, fairly among accounts.

    max_waiting: requests that wait at most; 0 refuses at once what cannot start at once.
    timeout: longest wait, in seconds.
    """

    max_waiting: Annotated[int, Meta(ge=0, le=100_000)] = 1000
    timeout: Seconds = 30.0


class Adaptive(Section, frozen=True, kw_only=True):
    """Bounds of a limit on requests in flight that follows the time to first token of streams.

    min: requests that the upstream can always take at once: the time without a queue is measured
        there. max: more are never tried.
    """

    min: Concurrency = 4
    max: Concurrency


class Upstream(Section, frozen=True, kw_only=True):
    """One place that answers requests.

    url: base address without ``/v1``; a trailing ``/v1`` is taken off when read.
    api_key: sent as a bearer token; None sends none.
    max_concurrency: requests in flight at most; None does not bound them.
    adaptive: find out how many requests in flight the upstream can take, instead of
        ``max_concurrency``.
    queue: where requests wait once there are as many in flight.
    http2: speak HTTP/2 from the first byte (prior knowledge on ``http://``, ALPN on ``https://``).
    discover: serve every model this upstream lists, besides those under ``models``.
    on_disconnect: what becomes of a request whose client leaves. ``abort``: it is stopped, and what
        was delivered is billed. ``drain``: its answer is read to the end, and billed whole; for
        providers that bill the whole anyway. None: as its kind does.
    drain_s, drain_bytes: how far it is read at most, in seconds and bytes after the client left.
    """

    kind: UpstreamKind
    url: str
    api_key: str | None = None
    max_concurrency: Concurrency | None = None
    adaptive: Adaptive | None = None
    queue: Queue = Queue()
    http2: bool = False
    discover: bool = False
    on_disconnect: OnDisconnect | None = None
    drain_s: Seconds = 120.0
    drain_bytes: Annotated[int, Meta(ge=1024, le=1024 * MIB)] = MIB


class Target(Section, frozen=True, kw_only=True):
    """One upstream that serves a model.

    model: the model's name there; None uses the name under ``models``.
    """

    upstream: Name
    model: Name | None = None


class Timeouts(Section, frozen=True, kw_only=True):
    """Bounds on one attempt, in seconds.

    connect: until the connection stands. first_byte: from sending until the first body byte.
    idle: between two chunks. total: the whole answer.
    """

    connect: Seconds = 2.0
    first_byte: Seconds = 120.0
    idle: Seconds = 60.0
    total: Seconds = 600.0


class Price(Section, frozen=True, kw_only=True):
    """What a model's tokens cost, in US dollars for a million.

    cached: of the input tokens that the engine had in its cache; None takes input's.
    """

    input: UsdPerMillion
    output: UsdPerMillion
    cached: UsdPerMillion | None = None


class Model(Section, frozen=True, kw_only=True):
    """A model as clients name it.

    price: what it costs until the price book says otherwise; None leaves it to the book.
    """

    targets: Annotated[tuple[Target, ...], Meta(min_length=1)]
    aliases: tuple[Name, ...] = ()
    policy: Policy = "round_robin"
    timeouts: Timeouts = Timeouts()
    price: Price | None = None


class Limits(Section, frozen=True, kw_only=True):
    """Bounds on what a client or an upstream may send, in bytes.

    body_bytes: a request's body. event_bytes: one server-sent event of an answer.
    header_bytes: a request's header block.
    """

    body_bytes: Annotated[int, Meta(ge=1024, le=1024 * MIB)] = 10 * MIB
    event_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB)] = MIB
    header_bytes: Annotated[int, Meta(ge=4096, le=MIB)] = 64 * 1024


class PromptLogs(Section, frozen=True, kw_only=True):
    """How logged prompts and answers are kept. Who is logged is a setting of accounts and keys.

    keys: for encryption, by name: base64 of 32 bytes each. Old ones stay as long as logs need them.
    active: the name of the key for what is written from now on; None logs no contents.
    max_bytes: of a request and of an answer, each; what is over is cut off.
    patterns: regular expressions, in the syntax of Rust's regex; what fits one is blotted out, as
        keys, e-mail addresses and card numbers are without them.
    retention_days: days (UTC) after which logs are deleted.
    """

    keys: dict[Name, str] = {}
    active: Name | None = None
    max_bytes: Annotated[int, Meta(ge=1, le=MIB)] = 64 * 1024
    patterns: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=1000)], ...], Meta(max_length=100)
    ] = ()
    retention_days: Annotated[int, Meta(ge=1, le=36_500)] = 30


class Log(Section, frozen=True, kw_only=True):
    """What is logged, and whether as JSON lines or for people."""

    level: LogLevel = "info"
    format: LogFormat = "json"


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


class Config(Section, frozen=True, kw_only=True):
    """Everything `forebay serve` needs to know.

    database_url: ``postgresql://…``; None runs without keys and usage records.
    redis_url: ``redis://…``; None keeps limits to this machine.
    expected_nodes: machines that share limits, until the store of `redis_url` tells.
    node: this machine's name in usage records; None takes the host's.
    drain_s: seconds that running requests get to finish after SIGTERM.
    workers: processes that serve, on one address and with one table of limits.
    """

    listen: Listen = Listen()
    database_url: str | None = None
    redis_url: str | None = None
    expected_nodes: Annotated[int, Meta(ge=1, le=100_000)] = 1
    upstreams: dict[Name, Upstream] = {}
    models: dict[Name, Model] = {}
    limits: Limits = Limits()
    node: Name | None = None
    spool: Spool = Spool()
    retention: Retention = Retention()
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    log: Log = Log()
    prompt_logs: PromptLogs = PromptLogs()


def json_schema() -> dict[str, Any]:
    """The schema as a JSON Schema (2020-12) document, for editors and checks."""
    schema = msgspec.json.schema(Config)
    for field in schema["$defs"]["Price"]["properties"].values():
        for variant in field.get("anyOf", [field]):
            # msgspec has them as strings, which is how JSON carries them; YAML may have numbers.
            if variant.get("format") == "decimal":
                variant["type"] = ["string", "number"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_MASK = "***"


def to_public(config: Config) -> dict[str, Any]:
    """The configuration as plain data with every secret replaced by ``***``."""
    public: dict[str, Any] = msgspec.to_builtins(config)
    for upstream in public["upstreams"].values():
        if upstream["api_key"] is not None:
            upstream["api_key"] = _MASK
    public["prompt_logs"]["keys"] = dict.fromkeys(config.prompt_logs.keys, _MASK)
    if config.database_url is not None:
        public["database_url"] = mask_url(config.database_url)
    if config.redis_url is not None:
        public["redis_url"] = mask_url(config.redis_url)
    return public


def mask_url(url: str) -> str:
    """The URL with its password replaced by ``***``, in the authority and in the query."""
    parts = urlsplit(url)
    netloc = parts.netloc
    user_info, at, host = netloc.rpartition("@")
    user, colon, password = user_info.partition(":")
    if at and colon and password:
        netloc = f"{user}:{_MASK}@{host}"
    query = re.sub(r"(^|&)((?:ssl)?password)=[^&]*", rf"\1\2={_MASK}", parts.query)
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` (every interface).

    Raises: ValueError, with a reason fit for the user.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError(f"expected HOST:PORT, got {text!r}")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65_535:
        raise ValueError(f"port must be 0 to 65535, got {port_text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets: [{host}]:{port_text}")
    if any(c.isspace() or c in "/@[]" for c in host):
        raise ValueError(f"bad host {host!r}")
    return Address(host or "0.0.0.0", int(port_text))


def normal_url(text: str) -> str:
    """Check an upstream's address and take off a trailing ``/`` and ``/v1``.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"bad URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("URL must start with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("URL must not carry credentials; use api_key")
    if not parts.hostname or any(c.isspace() or c == "\\" for c in text):
        raise ValueError("URL has no valid host")
    if port == 0:
        raise ValueError("URL has port 0")
    if parts.query or parts.fragment:
        raise ValueError("URL must not have a query or fragment")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


_MICRO = Decimal("0.000001")
_MAX_PRICE = Decimal(1_000_000)


def check_price(price: Decimal) -> None:
    """Accept 0 to 1,000,000 with at most six decimal places.

    Raises: ValueError, with a reason fit for the user.
    """
    if not (price.is_finite() and 0 <= price <= _MAX_PRICE):
        raise ValueError("must be 0 to 1000000 dollars for a million tokens")
    try:
        exact = price.quantize(_MICRO, context=Context(prec=20)) == price
    except InvalidOperation:
        exact = False
    if not exact:
        raise ValueError("must not have more than 6 decimal places")


LOG_KEY_BYTES = 32


def decode_log_key(text: str) -> bytes:
    """The bytes of one of ``prompt_logs.keys``.

    Raises: ValueError, with a reason that does not repeat the key.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64") from None
    if len(key) != LOG_KEY_BYTES:
        raise ValueError(f"must be base64 of {LOG_KEY_BYTES} bytes, has {len(key)}")
    return key


REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")


def check_redis_url(text: str) -> None:
    """Accept ``redis://`` and ``rediss://`` (TLS), each with ``+cluster`` for a Redis Cluster.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("bad URL") from None
    if parts.scheme not in REDIS_SCHEMES:
        raise ValueError(f"must start with {', '.join(f'{s}://' for s in REDIS_SCHEMES)}")
    if not parts.hostname or any(c.isspace() for c in text):
        raise ValueError("URL has no valid host")


def check_database_url(text: str) -> None:
    """Accept ``postgresql://`` and ``postgres://`` addresses.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("bad URL") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("must start with postgresql://")
    if any(c.isspace() for c in text):
        raise ValueError("must not contain spaces")

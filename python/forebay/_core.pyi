"""The Rust core. Hand-written; `mypy.stubtest` checks it against the extension."""

from asyncio import AbstractEventLoop, Future
from os import PathLike
from typing import Any, Literal, final

__all__ = [
    "WAYS",
    "Core",
    "Exchange",
    "Lease",
    "Leases",
    "Limiter",
    "PriceBook",
    "SharedLimits",
    "Spool",
    "SpoolBatch",
    "SpoolSource",
    "SseDecoder",
    "__version__",
    "bad_pattern",
    "grpc_table",
    "grpc_to_json",
    "json_to_grpc",
    "peek",
    "sign_v4",
    "translate_answer",
    "translate_request",
]

__version__: str

WAYS: tuple[str, ...]
"""The paths of the ways in, by the index that `Core.admit` takes; of gRPC, the methods'."""

_Answer = tuple[int, list[tuple[bytes, bytes]], bytes, bool]
"""Status, headers, body, and whether more of the body follows."""

_Call = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], bytes, bool]
"""Initial metadata, trailing metadata, the message, and whether more messages follow."""

_Headers = list[tuple[bytes, bytes]]

_GrpcStatus = tuple[int, str, bytes]
"""A status code of gRPC's, the message, and a `google.rpc.Status` in its wire form."""

@final
class Core:
    """The gateway of one process: its keys, configuration, limits, upstreams and runtime."""

    def __new__(cls, *, limits_fd: int | None = None, worker: int = 0) -> Core:
        """limits_fd: the `SharedLimits.fd` to attach to as its worker number `worker`; None keeps
        limits in a table of this process.

        Raises: OSError, ValueError if the descriptor is no such table or has no such worker.
        """

    def attach(self, event_loop: AbstractEventLoop) -> None:
        """Deliver results on this event loop from now on. Once per process."""

    def drain(self) -> None:
        """Resolve every future whose result is ready. The event loop calls it."""

    def listen(
        self,
        host: str,
        port: int,
        *,
        app: str | PathLike[str],
        body_bytes: int,
        upload_bytes: int,
        header_bytes: int,
        header_read_s: float,
        keep_alive_s: float,
        body_read_s: float,
        websockets: int,
        websocket_idle_s: float,
        reuse_port: bool = False,
    ) -> tuple[str, int]:
        """Listen on an IP address; port 0 takes a free one. Returns the address.

        Inference is served by the core itself, all else by the application's Unix socket `app`.
        reuse_port: other processes of this user may listen there too, if they say so as well.
        Bounds are in bytes and seconds. Raises: OSError, ValueError.
        """

    def close_door(self, idle_s: float) -> None:
        """Take no more connections; close idle ones after `idle_s` seconds. Blocks for 25 ms."""

    @property
    def expecting(self) -> int:
        """Connections that may bring another inference request, or have one that runs."""

    def stop_listening(self, grace_s: float) -> bool:
        """Accept no more; wait up to `grace_s` seconds for running requests. Blocks.

        Returns whether all had ended.
        """

    def configure(self, snapshot: bytes) -> None:
        """Take a new configuration in, whole.

        snapshot: JSON as `forebay.gateway.snapshot` makes it.
        Raises: ValueError; then nothing has changed.
        """

    def report_upstream(
        self,
        name: str,
        state: Literal["warm", "loading", "cold", "draining", "down"],
        load: bytes | None,
    ) -> bool:
        """Tell what a probe found of an upstream. Returns whether there is one of that name.

        load: what the engine said of itself, JSON with ``running`` and ``waiting`` (requests) and
            ``tokens`` (in its cache); None if it said nothing.
        Raises: ValueError.
        """

    def report_agent(self, name: str, answers: bool) -> bool:
        """Tell whether an upstream's agent answers. Returns whether there is one of that name."""

    def describe_upstream(self, name: str, said: bytes) -> None:
        """Tell what an upstream says of its models, in place of what it said before.

        said: JSON, ``{"models": {name there: {"embedding": …, "vocab_size": …}}}``, each null where
            it is not known; see `forebay.upstreams.describe`.
        Raises: ValueError.
        """

    def drain_upstream(self, name: str, draining: bool) -> bool:
        """Let an upstream take no new requests, or take them again; what runs goes on.

        Returns whether there is one of that name.
        """

    def upstreams(self) -> bytes:
        """All upstreams as they stand in this process: a JSON list, by name.

        Each has ``name``, ``kind``, ``state`` (what probes found), ``agent`` (``answers`` or
        ``away``; None: it has none, or was not asked yet), ``availability``, ``share`` (0
        to 1), ``draining``, ``in_flight``, ``waiting``, ``limit`` (None: any number), ``load``
        (with ``age_s``), ``first_token_ms``, ``successes``, ``failures``, ``backs_off_s``,
        ``ejections`` (how many) and ``ejection`` (``reason``, ``ends_in_s``, ``streak``). None in
        ``load``, ``first_token_ms``, ``backs_off_s`` and ``ejection``: there is none.
        """

    def take_wanted(self) -> list[str]:
        """The upstreams that requests have wanted awake since the last call."""

    def load_keys(self, records: bytes, replace: bool) -> int:
        """Take key records in; with `replace`, keys that are not among them go.

        records: JSON as `forebay.store.keys.encode_records` makes it.
        Returns how many keys there are. Raises: ValueError.
        """

    def load_limits(self, records: bytes) -> None:
        """Take the limits of all accounts and models in; those not among them have none.

        records: JSON, a list of objects with ``scope`` (``account`` or ``model``), ``id``, the
            limit fields and, of accounts, ``weight``.
        Raises: ValueError; then nothing has changed.
        """

    def load_prices(self, records: bytes) -> None:
        """Take the price book in, whole.

        records: JSON as `forebay.store.price_records.encode_prices` makes it.
        Raises: ValueError; then nothing has changed.
        """

    def set_spent(self, records: bytes) -> None:
        """Raise what was spent of budgets to what is known of all nodes.

        records: JSON, a list of objects with ``scope``, ``id``, ``model`` (of ``key_model``),
            ``period_start`` (Unix seconds) and ``spent_nano`` (nano-USD).
        Raises: ValueError.
        """

    def key_limits(self, key_id: str) -> bytes | None:
        """Every limit that applies to the key, as it stands: a JSON list; None without that key.

        Each has ``scope``, ``subject``, ``model``, ``dimension``, ``period``, ``limit``, ``burst``,
        ``remaining`` (units, or nano-USD of budgets) and ``reset_s`` (seconds).
        """

    @property
    def shares_limits(self) -> bool: ...
    def leases(self, expected: int) -> Leases:
        """Share limits with other processes from now on: `expected` of them, until the store tells.

        Raises: OSError.
        """

    def admit(
        self,
        way: int,
        headers: _Headers,
        body: bytes,
        *,
        front: Literal["http", "ws", "grpc"] = "http",
        deadline_s: float | None = None,
    ) -> Exchange:
        """Decide a request and start it. Never raises for what a client sent.

        way: where it came in, by its index in `WAYS`. headers: as ASGI gives them.
        front: how its client is connected. deadline_s: seconds that its client waits for all of it.
        """

    def asks(self) -> list[tuple[int, str, bytes]] | Future[list[tuple[int, str, bytes]]]:
        """What the store is asked: (ticket, kind, payload) each, or a future of it.

        Raises: RuntimeError while an earlier future is awaited.
        """

    def reply(self, ticket: int, payload: bytes | None) -> None:
        """Answer what the store was asked. None: the store has failed."""

    def set_credentials(self, upstream: str, credentials: bytes) -> None:
        """Hand an upstream's credentials over. They replace what it had, while requests run too.

        credentials: JSON, ``{"headers": [[name, value], …]}``, sent with every request; or, of an
            upstream whose requests are signed, ``{"access_key", "secret_key", "session_token"}``.
        They stay through `configure` while the upstream's name, kind, address and signing do.
        Raises: ValueError, that quotes nothing of them.
        """

    def fetch(
        self,
        upstream: str,
        path: str,
        limit_s: float,
        *,
        method: str = "GET",
        body: bytes | None = None,
        agent: bool = False,
    ) -> Exchange:
        """Ask an upstream, or its agent, for `path` within `limit_s` seconds; not booked as usage.

        Where no answer came, the error's answer has the header ``x-forebay-error``: its kind.
        body: JSON. Raises: ValueError on a limit or a method that is none, and without an agent.
        """

    def authenticate(self, headers: _Headers, *, way: int | None = None) -> _Answer | None:
        """None if the request's key is good, else the refusal, as `error` tells it."""

    def authenticate_admin(self, headers: _Headers) -> _Answer | None:
        """None if the request's key is a good admin key, else the refusal."""

    def account(self, headers: _Headers) -> str | _Answer:
        """The account of the request's key, or the refusal: of an admin key and in a drain too."""

    def grpc_refusal(self, headers: _Headers, *, admin: bool = False) -> _GrpcStatus | None:
        """None if the request's key is good, with `admin` an admin key; else the refusal."""

    def models(self, headers: _Headers) -> list[str] | _Answer:
        """The models that the request's key may use, or the refusal."""

    def error(
        self,
        kind_name: str,
        message: str,
        *,
        headers: _Headers | None = None,
        param: str | None = None,
        code: str | None = None,
        cause: str | None = None,
        way: int | None = None,
    ) -> _Answer:
        """An error's answer, as told where the request came in; without a way in OpenAI's shape.

        headers: the request's, for its id. Raises: ValueError if no kind has that name.
        """

    def grpc_error(
        self,
        kind_name: str,
        message: str,
        *,
        headers: _Headers | None = None,
        param: str | None = None,
        code: str | None = None,
        cause: str | None = None,
    ) -> _GrpcStatus:
        """An error as gRPC has it. headers: the request's, for its id.

        Raises: ValueError if no kind has that name.
        """

    def take_usage(self, limit: int) -> list[tuple[Any, ...]]:
        """Up to `limit` finished requests, oldest first, in the usage table's column order, then
        the cost in pico-USD (None without a price) and the id of the price."""

    def open_spool(
        self,
        root: str,
        *,
        node: str,
        segment_bytes: int,
        max_bytes: int,
        durability: Literal["process", "machine"],
        on_full: Literal["refuse", "serve_unmetered"],
    ) -> Spool:
        """From now on what is admitted is recorded in a spool in the folder `root`.

        Once a core. Raises: OSError; RuntimeError if there is a spool already.
        """

    def take_failures(
        self,
    ) -> list[tuple[str, str, str, str, tuple[str, int, str, int | None, float] | None]]:
        """What the log should be told: (kind, message, private cause, request id, attempt) each.

        attempt: of an attempt that failed, (upstream, number, why it was made, the upstream's
        status, milliseconds).
        """

    def trace(self, sample: float) -> None:
        """From now on requests are traced: those of clients that say so, and of the others a share.

        Once a core: a second share is dropped.
        """

    def take_traces(self, limit: int) -> bytes | None:
        """Up to `limit` traced requests that have ended, oldest first, as a JSON array."""

    def drop_traces(self, count: int) -> None:
        """Counts traced requests that could not be exported."""

    @property
    def usage_backlog(self) -> int:
        """Finished requests that were not taken yet."""

    @property
    def in_flight(self) -> int:
        """Admitted requests that have not ended."""

    def metrics(self) -> str:
        """All metrics in the Prometheus text format."""

    def keys_current(self, current: bool) -> None:
        """Whether the keys are those of the database now: while not, unknown ones get a 503."""

    def halt(self) -> None:
        """End what still runs: with an error event where an answer has begun, else with a 503."""

    def leave(self) -> None:
        """Let each answer be its connection's last from now on; requests are taken."""

    def begin_drain(self) -> None:
        """Let WebSockets end, too, with what runs on them; requests are taken."""

    def refuse(self) -> None:
        """Refuse new requests from now on; running ones go on."""

    def close(self) -> None:
        """End the runtime: what still runs is dropped and booked. Blocks for up to 1 s."""

@final
class Exchange:
    """One request's answer. Dropping it before the end cancels the request."""

    def start(self) -> _Answer | Future[_Answer | None] | None:
        """The answer's start at once if it is there, else a future; None if it was cancelled."""

    def start_call(self) -> _Call | Future[_Call | None] | None:
        """As `start`, for gRPC: metadata instead of headers, and the message bare."""

    def next_messages(self) -> list[bytes] | Future[list[bytes] | None] | None:
        """As `next`, of an answer in gRPC's frames: the messages that are ready.

        Raises: RuntimeError where the frames are broken.
        """

    def failure(self, request_id: str = "") -> _GrpcStatus | None:
        """Why the answer, or what is left of it, is an error; None while it is none.

        request_id: told in the details.
        """

    def next(self) -> bytes | Future[bytes | None] | None:
        """All bytes that are ready, None at the end, or a future of either."""

    def cancel(self, *_args: object) -> None:
        """Stop the engine and book what was delivered. Takes anything, as a done-callback must."""

@final
class PriceBook:
    """A price book by itself, for what is to be rated as the core does it."""

    def __new__(cls, records: bytes) -> PriceBook:
        """records: as `Core.load_prices` takes them. Raises: ValueError."""

    def rate(
        self,
        model: str,
        account: str,
        upstream: str,
        admitted_us: int,
        *,
        prompt: int = 0,
        cached: int = 0,
        cache_write: int = 0,
        completion: int = 0,
        reasoning: int = 0,
        duration_us: int = 0,
    ) -> tuple[int, int] | None:
        """The price that holds for a request, and its cost by it; None without a price.

        admitted_us: Unix microseconds. Counts are tokens; prompt includes cached and cache_write,
            completion includes reasoning.
        Returns the id of the price's row, and pico-USD, exact up to 2^63 - 1 and never more.
        """

_Calls = list[tuple[int, list[str], list[str]]]
"""Calls of the script: a number for the reply, keys, arguments after the participant's name."""

@final
class Leases:
    """The shared limits of a process, for the syncer that speaks to their store."""

    @property
    def fd(self) -> int:
        """Becomes readable when `collect` should be called before the time it named."""

    def collect(self) -> tuple[_Calls, float]:
        """What to send now, and the seconds until the next look.

        Every call must be answered. While the store is lost it is one heartbeat, as a probe.
        """

    def farewell(self) -> _Calls:
        """The last calls of a process that ends: everything unused goes back."""

    def answer(self, number: int, reply: list[int] | None) -> None:
        """The reply to a call, or None if it failed. Raises: ValueError if it is not open."""

    def store_lost(self) -> None:
        """Spend shares from now on."""

    def store_back(self) -> None:
        """The store answers again."""

    @property
    def live(self) -> int:
        """Participants alive, as far as is known."""

    def __len__(self) -> int: ...
    def rate(
        self, id: str, tag: str, *, units: int, period_s: float, burst: int, deny: bool = False
    ) -> Lease:
        """The lease of a rate: `units` per `period_s` seconds. Raises: ValueError."""

    def permits(self, id: str, tag: str, *, capacity: int, deny: bool = False) -> Lease:
        """The lease of a limit on concurrency."""

    def money(self, id: str, tag: str, *, capacity: int, deny: bool = False) -> Lease:
        """The lease of a budget, in nano-USD."""

@final
class Lease:
    """One shared limit by itself: for tests, benches and tools."""

    def take(self, cost: int) -> int:
        """-1 taken, -2 the store must be asked, -3 no wait cures it, else the wait in ns."""

    def request(self, cost: int) -> int:
        """Have the store asked for `cost`, after -2; a number for `is_answered`."""

    def is_answered(self, ticket: int) -> bool:
        """Whether the store has answered that, or failed."""

    def settle(self, taken: int, used: int) -> None:
        """Replace what was taken by what was used. Of permits, nothing is used."""

    @property
    def remaining(self) -> int:
        """Whole units that could be had now, as far as is known."""

    @property
    def in_share(self) -> bool:
        """Whether it spends its share, as the store is lost."""

@final
class Limiter:
    """Limits of many keys, all alike, by number. Times are monotonic nanoseconds.

    limits_fd, worker: as of `Core`.
    """

    def __new__(
        cls,
        *,
        rpm: int | None = None,
        rpm_burst: int | None = None,
        tpm: int | None = None,
        tpm_burst: int | None = None,
        concurrency: int | None = None,
        limits_fd: int | None = None,
        worker: int = 0,
    ) -> Limiter: ...
    def admit(self, key: int, tokens: int, now: int) -> int:
        """0 if allowed, else the wait in nanoseconds, or -1 if no wait cures it."""

    def settle(self, key: int, reserved: int, used: int) -> None:
        """End a request: `used` tokens of `reserved` are kept, its permit comes back."""

    def state(self, key: int, now: int) -> tuple[int | None, int | None, int]:
        """Remaining requests, remaining tokens, requests in flight."""

    def __len__(self) -> int: ...

@final
class SharedLimits:
    """A memory-mapped table of limits that the workers of one machine share.

    Raises: OSError on no workers, more than 256, or when the system has no memory for it.
    """

    def __new__(cls, workers: int, rows: int = 1 << 20) -> SharedLimits: ...
    @property
    def fd(self) -> int:
        """The descriptor that a worker attaches to; child processes may inherit it."""

    def reclaim(self, worker: int) -> None:
        """Give back what a dead worker held: its permits and the money that it had reserved.

        Only for a worker that is known to be dead. Raises: ValueError if there is no such worker.
        """

@final
class SseDecoder:
    """An event-stream decoder (WHATWG HTML section 9.2)."""

    def __new__(cls, max_event_bytes: int = 1_048_576) -> SseDecoder: ...
    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes. Raises: ValueError if one is too large."""

def peek(body: bytes) -> dict[str, Any]:
    """What admission reads of a request body. Raises: ValueError that names the byte offset."""

_Dialect = Literal["open_ai", "anthropic", "gemini", "converse"]

def translate_request(
    source: _Dialect,
    target: _Dialect,
    body: bytes,
    *,
    model: str,
    stream: bool = False,
    drop_params: bool = False,
    max_output_tokens: int = 4096,
) -> tuple[bytes, list[str]]:
    """A request in another dialect, and the fields that are not in it.

    model: its name at the upstream. max_output_tokens: asked for where `target` wants a bound and
    the request has none.
    Raises: ValueError(message, kind, field at fault or None).
    """

def grpc_to_json(method: str, message: bytes, *, answer: bool = False) -> bytes:
    """A message of a method of `forebay.v1` as JSON: a request's as engines get it, or an answer's.

    method: its path, `/forebay.v1.InferenceService/ChatCompletion`.
    Raises: ValueError(message, kind, field at fault or None).
    """

def json_to_grpc(method: str, json: bytes, *, answer: bool = False) -> bytes:
    """JSON as a message of a method of `forebay.v1`: an answer's as clients get it, or a request's.

    Raises: ValueError(message, kind, None).
    """

def grpc_table() -> bytes:
    """Which field of `forebay.v1` is which member of OpenAI's JSON, as JSON.

    `methods` by path: `request`, `answer`. `messages` by name: `form`, `extra`, `fixed`,
    `fields` with `name`, `number`, `json`, `alias`, `kind`, `of`, `shape`. `enums` by name: the
    names from 1 on.
    """

def translate_answer(
    source: _Dialect, target: _Dialect, body: bytes, *, id: str, model: str, created: int
) -> bytes:
    """A whole answer in another dialect.

    created: Unix time, seconds. Raises: ValueError(message, kind, None); also of the kind that an
    error in the answer's place has.
    """

def bad_pattern(patterns: list[str]) -> tuple[int | None, str] | None:
    """What is wrong with patterns for the prompt log: which one, from 0, and why.

    Which one: None where all together are too large. None: nothing is wrong.
    """

def sign_v4(
    method: str,
    host: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: list[bytes],
    *,
    access_key: str,
    secret_key: str,
    session_token: str | None,
    region: str,
    service: str,
    unix_s: int,
) -> list[tuple[str, str]]:
    """The headers that AWS Signature Version 4 adds to a request, as the core signs its own.

    path, query: as they are sent. headers: more to sign, names in lower case.
    body: its pieces, in order. unix_s: when it is signed, seconds since 1970.
    """

@final
class Spool:
    """What was admitted, until the database has it. Made by `Core.open_spool`."""

    @property
    def usage(self) -> SpoolSource:
        """Usage that waits for the database."""

    @property
    def logs(self) -> SpoolSource:
        """Prompt logs that wait for the database."""

    def adopt(self) -> int:
        """Take over what processes that have gone left in the folder. Gives how many spools.

        Blocks. Raises: OSError.
        """

    @property
    def size(self) -> tuple[int, int]:
        """Bytes of usage on the disk, and the most that there may be."""

    @property
    def full(self) -> bool:
        """Nothing more is taken in."""

    @property
    def trouble(self) -> str | None:
        """Why the disk does not take what it should; None while it does."""

    def finish(self) -> None:
        """Wait until the prompt logs that are being made are in the spool. Blocks, up to 2 s."""

    def close(self) -> None:
        """End recording: what is not shipped waits for the next process. Blocks."""

@final
class SpoolSource:
    """Rows that wait for the database."""

    def batch(self, limit: int) -> SpoolBatch | None:
        """Up to `limit` rows of one spool, None if none waits; the same again until `done`."""

    def done(self, batch: SpoolBatch) -> None:
        """The rows are in the database for good."""

    @property
    def waiting(self) -> int:
        """How many rows wait."""

    @property
    def lag_s(self) -> float:
        """Seconds since the request ended whose usage has waited longest; 0 if none waits."""

@final
class SpoolBatch:
    """Rows of one spool, in the order in which they were written."""

    def __len__(self) -> int: ...
    @property
    def boot(self) -> bytes:
        """The spool's id, 16 bytes."""

    @property
    def node(self) -> str:
        """The machine that wrote them."""

    @property
    def position(self) -> int:
        """How many of the spool's rows are shipped once these are."""

    def copy(self, start: int, stop: int) -> bytes:
        """A complete binary COPY of the rows from `start` to before `stop`."""

    def json(self, index: int) -> str:
        """One row as a JSON object. Raises: ValueError if there is no such row."""

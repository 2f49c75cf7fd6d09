"""Routes: from a request to its answer."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, unquote

from forebay_engine.sim import errors, faults, metrics, render, requests
from forebay_engine.sim.beside import Beside, Trouble
from forebay_engine.sim.engine import Engine
from forebay_engine.sim.errors import Refused, dump
from forebay_engine.sim.history import MAX_BODY, History, Record
from forebay_engine.sim.jobs import JOBS, new_id
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.stream import send_unary
from forebay_engine.sim.text import token_ids
from forebay_engine.sim.wire import Exchange

Route = Callable[[Exchange], None]

OPEN_PREFIXES = ("/health", "/ready", "/metrics", "/sim/")
"""Paths that need no API key; `/sim/` is the simulator's own."""
_TEXT = b"text/plain; charset=utf-8"
_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
_FLUSHED = (
    b"Cache flushed.\nPlease check backend logs for more details. (When there are running or "
    b"waiting requests, the operation will not be performed.)\n"
)
_NOT_EMBEDDING = (
    "This model does not appear to be an embedding model by default. Please add "
    "`--is-embedding` when launching the server or try another model."
)


class App:
    """One simulated server.

    warm: the server's own warm-up request is done. draining: SIGTERM has come.
    """

    def __init__(self, options: SimOptions) -> None:
        self.options = options
        self.engine = Engine(options)
        self.history = History()
        self.faults = faults.FaultPlan(options.faults, options.seed)
        self.warm = True
        self.draining = False
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._routes = self._table()
        self.beside = Beside("sglang", frozenset({"rerank", "score", "transcriptions"}), None)

    def __call__(self, exchange: Exchange) -> None:
        """Answer a request."""
        path = exchange.path
        if exchange.method == "OPTIONS" and exchange.header(b"access-control-request-method"):
            self._preflight(exchange)
            return
        if not self._authorized(exchange):
            exchange.respond(401, errors.UNAUTHORIZED, vary=False)
            return
        if self.beside.api(path.removeprefix("/v1")) is not None and path.startswith("/v1/"):
            self._answer_beside(exchange)
            return
        methods = self._routes.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": self._model}
        if methods is None:
            exchange.respond(404, errors.NOT_FOUND)
            return
        handler = methods.get(exchange.method)
        if handler is None:
            allow = b"allow: %s\r\n" % ", ".join(methods).encode()
            exchange.respond(405, errors.WRONG_METHOD, before=allow)
            return
        try:
            handler(exchange)
        except Refused as refused:
            exchange.respond(refused.status, refused.body)

    def loading(self) -> bool:
        """Whether the fault `loading` holds for the whole server."""
        return self.faults.loading(self._loop.time() - self._started)

    def _table(self) -> dict[str, dict[str, Route]]:
        get: dict[str, Route] = {
            "/": lambda x: x.respond(200, b'"SGLang is running"'),
            "/health": self._health,
            "/health_generate": self._health,
            "/ready": self._ready,
            "/ping": self._ping,
            "/v1/models": self._models,
            "/model_info": self._model_info,
            "/get_model_info": self._model_info,
            "/server_info": self._server_info,
            "/get_server_info": self._server_info,
            "/v1/loads": self._loads,
            "/metrics": self._metrics,
            "/metrics/": self._metrics,
            "/sim/requests": self._requests,
        }
        post: dict[str, Route] = {
            "/v1/chat/completions": self._infer,
            "/v1/completions": self._infer,
            "/generate": self._infer,
            "/v1/embeddings": self._embed,
            "/v1/tokenize": self._tokenize,
            "/tokenize": self._tokenize,
            "/v1/messages/count_tokens": self._count_tokens,
            "/abort_request": self._abort,
            "/flush_cache": self._flush,
            "/slow_down": self._slow_down,
            "/pause_generation": self._pause,
            "/continue_generation": self._continue,
            "/release_memory_occupation": _null,
            "/resume_memory_occupation": _null,
            "/sim/reset": self._reset,
            "/sim/faults": self._set_faults,
        }
        table: dict[str, dict[str, Route]] = {path: {"GET": route} for path, route in get.items()}
        for path, route in post.items():
            table.setdefault(path, {})["POST"] = route
        table["/flush_cache"]["GET"] = self._flush
        return table

    def _authorized(self, exchange: Exchange) -> bool:
        key = self.options.api_key
        if key is None or exchange.path.startswith(OPEN_PREFIXES):
            return True
        given = exchange.header(b"authorization") or b""
        return hmac.compare_digest(given, b"Bearer " + key.encode())

    def _preflight(self, exchange: Exchange) -> None:
        before = (
            b"access-control-allow-methods: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY\r\n"
            b"access-control-max-age: 600\r\n"
        )
        exchange.respond(200, b"OK", _TEXT, before)

    # State

    def _health(self, exchange: Exchange) -> None:
        def answer() -> None:
            exchange.respond(200 if self._up() else 503)

        if self._up() and self.options.health_delay_s > 0:
            self._loop.call_later(self.options.health_delay_s, answer)
        else:
            answer()

    def _up(self) -> bool:
        return self.warm and not self.draining and not self.loading()

    def _ready(self, exchange: Exchange) -> None:
        ready = self._up() and not self.engine.scheduler.paused
        exchange.respond(200 if ready else 503)

    def _ping(self, exchange: Exchange) -> None:
        exchange.respond(200 if self.warm and not self.loading() else 503)

    def _model_fields(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "sglang",
            "root": name,
            "parent": None,
            "max_model_len": self.options.context_length,
        }

    @property
    def _names(self) -> tuple[str, ...]:
        return self.options.models + self.options.embedding_models

    def _models(self, exchange: Exchange) -> None:
        data = [self._model_fields(name) for name in self._names]
        exchange.respond(200, dump({"object": "list", "data": data}))

    def _model(self, exchange: Exchange) -> None:
        name = unquote(exchange.path.removeprefix("/v1/models/"))
        if name in self._names:
            exchange.respond(200, dump(self._model_fields(name)))
        else:
            exchange.respond(404, errors.model_not_found(name))

    def _identity(self, info: dict[str, Any]) -> dict[str, Any]:
        name = self._names[0]
        return {**info, "model_path": name, "served_model_name": name, "tokenizer_path": name}

    def _model_info(self, exchange: Exchange) -> None:
        info = self._identity(_recorded("model_info.json"))
        info["is_generation"] = bool(self.options.models)
        exchange.respond(200, dump(info))

    def _server_info(self, exchange: Exchange) -> None:
        limits, context = self.options.limits, self.options.context_length
        info = self._identity(_recorded("server_info.json"))
        info |= {
            "host": self.options.host,
            "port": self.options.port,
            "context_length": context,
            "is_embedding": not self.options.models,
            "max_running_requests": limits.max_running,
            "max_queued_requests": limits.max_queued,
            "max_total_tokens": limits.kv_tokens,
            "max_total_num_tokens": limits.kv_tokens,
            "random_seed": self.options.seed,
            "enable_memory_saver": self.options.memory_saver,
        }
        for state in info["internal_states"]:
            state["effective_max_running_requests_per_dp"] = limits.max_running
            state["last_gen_throughput"] = self.engine.metrics.throughput(self._loop.time())
        exchange.respond(200, dump(info))

    def _loads(self, exchange: Exchange) -> None:
        query = parse_qs(exchange.query)
        core = query.get("include", [""])[0] == "core"
        entry = self.engine.metrics.load(self.engine.scheduler, self._loop.time(), core=core)
        if query.get("format", [""])[0] == "prometheus":
            exchange.respond(200, metrics.loads_prometheus(entry), _PROMETHEUS)
        else:
            exchange.respond(200, dump(metrics.loads(entry)))

    def _metrics(self, exchange: Exchange) -> None:
        engine = self.engine
        body = engine.metrics.render(
            engine.scheduler, self._names[0], self.options.context_length, self._loop.time()
        )
        exchange.respond(200, body, _PROMETHEUS)

    # Inference

    def _record(self, exchange: Exchange) -> Record:
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in exchange.headers]
        record = Record(exchange.path, headers, exchange.body[:MAX_BODY], time.time())
        self.history.add(record)
        return record

    def _fault(self, exchange: Exchange, body: dict[str, Any]) -> faults.Fault | None:
        header = exchange.header(b"x-sim-fault")
        given: object = header.decode("latin-1") if header else body.pop("sim_fault", None)
        if given is None or not self.options.request_faults:
            return self.faults.pick()
        try:
            fault = faults.parse(str(given))
        except faults.BadFault as error:
            raise errors.bad_request(str(error)) from None
        if fault.kind in faults.OF_PROVIDERS and self.options.kind == "sglang":
            raise errors.bad_request(f"fault {fault.kind!r}: not for this kind")
        return fault if fault.probability > 0 else None

    def _early(self, exchange: Exchange, record: Record, fault: faults.Fault | None) -> bool:
        """Do the faults that strike before there is an answer. True: the request is done with."""
        record.fault = fault.kind if fault is not None else None
        if fault is not None and fault.kind == "empty":
            _end(record, "fault:empty")
            exchange.close()
            return True
        if fault is not None and fault.kind == "status":
            after = b""
            if fault.retry_after_s is not None:
                after = b"retry-after: %d\r\n" % fault.retry_after_s
            body = errors.flat("Simulated failure.", str(fault.status), fault.status)
            _end(record, "fault:status")
            exchange.respond(fault.status, body, before=after)
            return True
        if (fault is not None and fault.kind == "loading") or self.loading():
            record.fault = "loading"
            _end(record, "fault:loading")
            exchange.respond(503, errors.unavailable("The server is still loading the model."))
            return True
        return False

    def _infer(self, exchange: Exchange) -> None:
        record = self._record(exchange)
        path = exchange.path
        try:
            if path == "/generate":
                body = requests.load_json(path, exchange.body)
            else:
                body = requests.load(path, exchange.header(b"content-type"), exchange.body)
            fault = self._fault(exchange, body)
            if self._early(exchange, record, fault):
                return
            if path == "/v1/chat/completions":
                self._check_rank(exchange)
                request = requests.chat(path, body, self.options)
            elif path == "/v1/completions":
                self._check_rank(exchange)
                request = requests.completion(path, body, self.options)
            else:
                request = requests.generate(path, body, self.options)
        except Refused as refused:
            _end(record, f"error:{refused.status}")
            raise
        except requests.BeyondVocabulary:
            self._die(exchange, record)
            return
        if request.model in self.options.embedding_models or not self.options.models:
            # The real engine process dies of this request.
            self._die(exchange, record)
            return
        job = JOBS[path, request.stream](self.engine, exchange, record, request, fault)
        if not self.engine.reserve(job):
            _end(record, "error:400")
            raise errors.bad_request(f"Duplicate request ID detected: {job.rid}")
        if fault is not None and fault.kind == "slow-first-token":
            self._loop.call_later(fault.seconds, self.engine.submit, job)
        else:
            self.engine.submit(job)

    def _answer_beside(self, exchange: Exchange) -> None:
        record = self._record(exchange)
        fault = self.faults.pick()
        if self._early(exchange, record, fault):
            return

        def failed(status: int, why: Trouble, message: str, param: str | None) -> None:
            if why == "model":
                exchange.respond(404, errors.model_not_found(message))
            elif why == "path":
                exchange.respond(405, errors.WRONG_METHOD)
            else:
                exchange.respond(status, errors.flat(message, str(status), status))

        path = exchange.path.removeprefix("/v1")
        self.beside.answer(exchange, path, record, fault, failed)

    def _die(self, exchange: Exchange, record: Record) -> None:
        _end(record, "error:died")
        exchange.close()

    def _check_rank(self, exchange: Exchange) -> None:
        given = exchange.header(b"x-data-parallel-rank")
        if given is None:
            return
        text = given.decode("latin-1")
        try:
            rank = int(text)
        except ValueError:
            message = f"Invalid X-Data-Parallel-Rank header: must be an integer, got '{text}'"
            raise Refused(400, errors.flat(message, "400")) from None
        if rank != 0:
            raise errors.bad_request(f"routed_dp_rank={rank} out of range [0, 1)")

    def _embed(self, exchange: Exchange) -> None:
        record = self._record(exchange)
        try:
            body = requests.load(exchange.path, exchange.header(b"content-type"), exchange.body)
            fault = self._fault(exchange, body)
            if self._early(exchange, record, fault):
                return
            model = str(body.get("model") or "")
            known = self.options.embedding_models
            if not self.options.embed_any:
                if not known or model in self.options.models:
                    raise errors.bad_request(_NOT_EMBEDDING)
                model = model if model in known else known[0]
            prompts = requests.embedding_inputs(exchange.path, body, self.options)
            if body.get("dimensions") is not None:
                raise errors.bad_request(
                    f"Model '{model}' does not support matryoshka representation, changing "
                    "output dimensions will lead to poor results."
                )
        except Refused as refused:
            _end(record, f"error:{refused.status}")
            raise
        except requests.BeyondVocabulary:
            self._die(exchange, record)
            return
        record.model, record.rid = model, new_id()
        record.prompt_tokens = sum(prompt.tokens for prompt in prompts)
        seed, size = self.options.seed, self.options.embedding_dim
        vectors = [render.vector(prompt.text, seed, size) for prompt in prompts]
        as_base64 = body.get("encoding_format") == "base64"
        answer = render.embeddings(vectors, model, record.prompt_tokens, as_base64)

        def send() -> None:
            sent = send_unary(exchange, answer, fault, seed)
            _end(record, "stop" if sent or fault is None else f"fault:{fault.kind}")

        rate = self.options.limits.prefill_rate
        delay = record.prompt_tokens / rate if rate > 0 else 0.0
        if fault is not None and fault.kind == "slow-first-token":
            delay += fault.seconds
        if delay > 0.0005:
            self._loop.call_later(delay, send)
        else:
            send()

    def _tokenize(self, exchange: Exchange) -> None:
        body = requests.load(exchange.path, exchange.header(b"content-type"), exchange.body)
        prompt = body.get("prompt", "")
        many = isinstance(prompt, list)
        size = self.options.bytes_per_token
        ids = [token_ids(str(item), size) for item in (prompt if many else [prompt])]
        counts = [len(item) for item in ids]
        answer = {
            "tokens": ids if many else ids[0],
            "count": counts if many else counts[0],
            "max_model_len": self.options.context_length,
        }
        exchange.respond(200, dump(answer))

    def _count_tokens(self, exchange: Exchange) -> None:
        body = requests.load(exchange.path, exchange.header(b"content-type"), exchange.body)
        tokens = requests.count_messages(exchange.path, body, self.options)
        exchange.respond(200, dump({"input_tokens": tokens}))

    # Control

    def _abort(self, exchange: Exchange) -> None:
        body = requests.load_json(exchange.path, exchange.body or b"{}")
        jobs = self.engine.jobs
        if body.get("abort_all"):
            chosen = list(jobs.values())
        else:
            job = jobs.get(str(body.get("rid")))
            chosen = [job] if job is not None else []
        exchange.respond(200)
        for job in chosen:
            self.engine.abort(job)

    def _flush(self, exchange: Exchange) -> None:
        if self.engine.flush_cache():
            exchange.respond(200, _FLUSHED, None)
        else:
            exchange.respond(400, b"Flush cache failed.\n", None)

    def _slow_down(self, exchange: Exchange) -> None:
        body = requests.load_json(exchange.path, exchange.body)
        seconds = body.get("forward_sleep_time")
        valid = isinstance(seconds, int | float) and seconds >= 0
        self.engine.scheduler.extra_step_s = float(seconds) if valid and seconds else 0.0
        exchange.respond(200, b"null")

    def _pause(self, exchange: Exchange) -> None:
        body = requests.load_json(exchange.path, exchange.body or b"{}")
        if body.get("mode", "abort") == "abort":
            for job in list(self.engine.jobs.values()):
                self.engine.abort(job)
        self.engine.scheduler.pause()
        self.engine.wake()
        answer = {"message": "Generation paused successfully.", "status": "ok"}
        exchange.respond(200, dump(answer))

    def _continue(self, exchange: Exchange) -> None:
        self.engine.scheduler.resume(self._loop.time())
        self.engine.wake()
        answer = {"message": "Generation continued successfully.", "status": "ok"}
        exchange.respond(200, dump(answer))

    # The simulator's own

    def _requests(self, exchange: Exchange) -> None:
        query = parse_qs(exchange.query)
        limit = query.get("limit", ["0"])[0]
        self.engine.note_running()
        shown = self.history.shown(
            query.get("rid", [None])[0],
            int(limit) if limit.isdigit() else None,
        )
        exchange.respond(200, dump({"requests": shown}))

    def _reset(self, exchange: Exchange) -> None:
        self.history.clear()
        self.faults.reset()
        self.engine.metrics = metrics.Metrics()
        exchange.respond(200, b"null")

    def _set_faults(self, exchange: Exchange) -> None:
        body = requests.load_json(exchange.path, exchange.body)
        given = body.get("faults")
        try:
            parsed = tuple(faults.parse(str(item)) for item in given or ())
        except faults.BadFault as error:
            raise errors.bad_request(str(error)) from None
        self.faults.reset(parsed)
        exchange.respond(200, b"null")


def _end(record: Record, outcome: str) -> None:
    record.outcome = outcome
    record.finished_at = time.time()


def _null(exchange: Exchange) -> None:
    exchange.respond(200, b"null")


_cache: dict[str, str] = {}


def _recorded(name: str) -> dict[str, Any]:
    """A recorded answer that ships with the package."""
    if name not in _cache:
        data = resources.files("forebay_engine.sim").joinpath("data", name)
        _cache[name] = data.read_text("utf-8")
    value: dict[str, Any] = json.loads(_cache[name])
    return value

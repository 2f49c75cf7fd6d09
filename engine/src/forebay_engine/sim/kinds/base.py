"""What all kinds but SGLang share: from a request to a job, faults and cold starts on the way."""

from __future__ import annotations

import hmac
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from forebay_engine.sim import requests
from forebay_engine.sim.app import App
from forebay_engine.sim.errors import NOT_FOUND, Refused
from forebay_engine.sim.faults import Fault
from forebay_engine.sim.history import Record
from forebay_engine.sim.kinds.failure import SIMULATED, Failure, Problem, invalid, why_of
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.jobs import make_job
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.wire import Exchange

Cancels = Literal["always", "streams", "never"]
Filters = Literal["refuse", "answer", "none"]
ColdWay = Literal["never", "refuse", "unavailable", "wait"]
_OVERFLOW = re.compile(r"\((\d+) tokens\)|total of (\d+) tokens")


@dataclass(frozen=True, slots=True)
class Call:
    """What a path asks for.

    api: chat, completions, embeddings or the kind's own. model, stream: where the path says it.
    """

    api: str
    model: str | None = None
    stream: bool | None = None


class KindApp(App, ABC):
    """One simulated server of a kind.

    cancels: what of a client that hangs up is stopped, after `hang_up_s`; the rest goes on.
    cold_way: what a cold start looks like. `refuse`: the port does; `unavailable`: an error;
        `wait`: the request does.
    comment, comment_s: the bytes that keep an idle stream open, and how often; `comment_first`:
        the first at once.
    any_model: the request's model is not looked at.
    filters: what a filter does with a prompt that has `/filter` in it: the request is refused, with
        `filter_status`; the answer says so; or there is no filter.
    """

    cancels: ClassVar[Cancels] = "always"
    hang_up_s: ClassVar[float] = 0.1
    cold_way: ClassVar[ColdWay] = "never"
    comment: ClassVar[bytes] = b":\n\n"
    comment_s: ClassVar[float] = 0.0
    comment_first: ClassVar[bool] = False
    any_model: ClassVar[bool] = False
    stream_headers: ClassVar[bytes] = b""
    cuts_on_error: ClassVar[bool] = False
    """An error within a stream is a connection that closes."""
    loading_status: ClassVar[int] = 503
    quota_status: ClassVar[int] = 429
    filters: ClassVar[Filters] = "refuse"
    filter_status: ClassVar[int] = 400

    def __init__(self, options: SimOptions) -> None:
        super().__init__(options)
        self.state: Literal["cold", "loading", "warm"] = "warm"
        if options.cold_s is not None and self.cold_way in ("unavailable", "wait"):
            self.state = "cold"
        self._waiting: list[Callable[[], None]] = []

    # What a kind says

    @abstractmethod
    def call(self, exchange: Exchange) -> Call | None:
        """What is asked for; None: there is nothing at this path."""

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        """What answers a request that is not for inference."""
        return None

    def is_open(self, exchange: Exchange) -> bool:
        """Whether a path needs no credentials."""
        return False

    def authorized(self, exchange: Exchange) -> bool:
        """Whether the credentials are right; `options.api_key` is not None."""
        return self.same(exchange.header(b"authorization"), b"Bearer " + self.key)

    @abstractmethod
    def failure(self, problem: Problem) -> Failure:
        """A problem in the kind's own words."""

    @abstractmethod
    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        """What writes the answer."""

    @abstractmethod
    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        """Check a request. Raises Problem, Refused."""

    def overflow(self, tokens: int, limit: int) -> Problem:
        """The request does not fit."""
        return Problem(400, "overflow", "", tokens=tokens, limit=limit)

    def headers(self, record: Record) -> bytes:
        """Header lines of a good answer."""
        return b""

    # The rest

    @property
    def key(self) -> bytes:
        """The key, as bytes."""
        return (self.options.api_key or "").encode()

    @staticmethod
    def same(given: bytes | None, wanted: bytes) -> bool:
        """Whether a header has the wanted value."""
        return hmac.compare_digest(given or b"", wanted)

    def __call__(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/sim/"):
            super().__call__(exchange)
            return
        if self.options.api_key is not None and not self.is_open(exchange):
            try:
                right = self.authorized(exchange)
            except Problem as problem:
                self.fail(exchange, problem)
                return
            if not right:
                self.fail(exchange, Problem(401, "auth", ""))
                return
        control = self.control(exchange)
        if control is not None:
            control()
            return
        call = self.call(exchange)
        if call is None:
            self.fail(exchange, Problem(404, "path", exchange.path))
        elif exchange.method != "POST":
            self.fail(exchange, Problem(405, "path", exchange.path))
        elif call.api == "embeddings":
            self._kind_embed(exchange, call)
        else:
            self.infer(exchange, call)

    def _authorized(self, exchange: Exchange) -> bool:
        return True

    def fail(self, exchange: Exchange, problem: Problem) -> None:
        """Answer with an error."""
        failure = self.failure(problem)
        exchange.respond(
            failure.status, failure.body, failure.content_type, failure.headers, vary=False
        )

    def reply(self, exchange: Exchange, body: bytes, headers: bytes = b"") -> None:
        """Answer with 200 and JSON."""
        exchange.respond(200, body, before=headers, vary=False)

    def load(self, exchange: Exchange) -> Body:
        """A request's JSON object. Raises Problem."""
        try:
            value = json.loads(exchange.body.decode())
        except (ValueError, RecursionError):
            raise invalid("We could not parse the JSON body of your request.") from None
        if not isinstance(value, dict):
            raise invalid("The body must be a JSON object.")
        return value

    def infer(self, exchange: Exchange, call: Call) -> None:
        """Answer a request for text."""
        record = self._record(exchange)
        fault: Fault | None = None
        try:
            body = self.load(exchange)
            fault = self._fault(exchange, body)
            if self._early_fault(exchange, record, fault):
                return
            request = self.checked(exchange, call, body)
            if any("/filter" in prompt.select for prompt in request.prompts):
                if self.filters == "refuse":
                    raise Problem(self.filter_status, "filter", "")
                if self.filters == "answer":
                    fault = Fault("filter", after=0)
        except (Problem, Refused) as error:
            problem = self._problem(error)
            ended(record, f"error:{self.failure(problem).status}")
            self.fail(exchange, problem)
            return
        form = self.form(exchange, call, body, request)

        def go() -> None:
            self.start(exchange, record, request, fault, form)

        record.model, record.stream = request.model, request.stream
        self.when_warm(exchange, record, go)

    def checked(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        """Read a request and check its model. Raises Problem, Refused."""
        request = self.read(exchange, call, body)
        if not self.any_model and request.model not in self.options.models:
            raise Problem(404, "model", request.model, param="model")
        return request

    def generation(
        self, path: str, body: Body, model: str, *, completion: bool = False
    ) -> Generation:
        """A request in OpenAI's form, checked. `model`: as it was asked for."""
        plain = {**body, "model": self.options.models[0] if self.options.models else "x"}
        plain.pop("rid", None)
        read = requests.completion if completion else requests.chat
        try:
            request = read(path, plain, self.options)
        except requests.BeyondVocabulary:
            raise invalid("Token id is out of the vocabulary.", "prompt") from None
        return replace(request, model=model)

    def _problem(self, error: Problem | Refused) -> Problem:
        if isinstance(error, Problem):
            return error
        message = str(json.loads(error.body)["message"])
        if "context length" in message:
            found = _OVERFLOW.search(message)
            tokens = int(next(filter(None, found.groups()))) if found else 0
            return self.overflow(tokens, self.options.context_length)
        return invalid(message.partition("\n\n")[0], status=error.status)

    def _early_fault(self, exchange: Exchange, record: Record, fault: Fault | None) -> bool:
        record.fault = fault.kind if fault is not None else None
        if fault is not None and fault.kind == "empty":
            ended(record, "fault:empty")
            exchange.close()
            return True
        problem = None
        if fault is not None and fault.kind == "status":
            why = why_of(fault.status)
            problem = Problem(fault.status, why, SIMULATED, fault.retry_after_s)
        elif fault is not None and fault.kind == "quota":
            problem = Problem(self.quota_status, "quota", "")
        elif (fault is not None and fault.kind == "loading") or self.loading():
            record.fault = "loading"
            problem = Problem(self.loading_status, "loading", "")
        if problem is None:
            return False
        ended(record, f"fault:{record.fault}")
        self.fail(exchange, problem)
        return True

    def start(
        self,
        exchange: Exchange,
        record: Record,
        request: Generation,
        fault: Fault | None,
        form: Form,
    ) -> None:
        """Queue a request."""
        job = make_job(self, exchange, record, request, fault, form)
        self.engine.reserve(job)
        exchange.on_disconnect = job.left_alone
        if exchange.disconnected:
            job.left_alone()
        if fault is not None and fault.kind == "slow-first-token":
            self._loop.call_later(fault.seconds, self.engine.submit, job)
        else:
            self.engine.submit(job)

    def _kind_embed(self, exchange: Exchange, call: Call) -> None:
        """Answer for embeddings, at kinds that have them."""
        raise Refused(404, NOT_FOUND)

    # Cold starts

    def wake(self) -> None:
        """Begin to load."""
        if self.state == "cold":
            self.state = "loading"
            self._loop.call_later(self.options.cold_s or 0.0, self._loaded)

    def _loaded(self) -> None:
        self.state = "warm"
        waiting, self._waiting = self._waiting, []
        for go in waiting:
            go()

    def when_warm(self, exchange: Exchange, record: Record, go: Callable[[], None]) -> None:
        """Do it once the server is loaded, or say that it is not."""
        if self.state == "warm":
            go()
            return
        self.wake()
        if self.cold_way == "unavailable":
            ended(record, f"error:{self.loading_status}")
            self.fail(exchange, Problem(self.loading_status, "loading", ""))
            return

        def later() -> None:
            if exchange.disconnected and self.cancels != "never":
                ended(record, "disconnected")
            elif not exchange.ended:
                go()

        self._waiting.append(later)


def ended(record: Record, outcome: str) -> None:
    """Note how a request ended."""
    record.outcome = outcome
    record.finished_at = time.time()


def header(name: str, value: object) -> bytes:
    """A header line."""
    return f"{name}: {value}\r\n".encode("latin-1")

"""Anthropic's Messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from forebay_engine.sim.errors import dump
from forebay_engine.sim.history import Record
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import Call, KindApp, header
from forebay_engine.sim.kinds.canonical import arguments, items, known, message, schema_format, tool
from forebay_engine.sim.kinds.failure import SIMULATED, Failure, Problem, invalid
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.jobs import Answer
from forebay_engine.sim.kinds.openai_form import retry_after
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.text import Delta
from forebay_engine.sim.wire import Exchange

_FIELDS = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "system",
        "stop_sequences",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "tools",
        "tool_choice",
        "thinking",
        "metadata",
        "output_config",
        "service_tier",
        "container",
        "context_management",
        "cache_control",
        "mcp_servers",
        "inference_geo",
    ]
)
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "abort": "end_turn",
}
COUNT_TOKENS = "/v1/messages/count_tokens"
SIGNATURE = "c2ltdWxhdGVkLXNpZ25hdHVyZQ=="


def named(value: dict[str, Any]) -> bytes:
    """An event with its name."""
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), dump(value))


class MessagesForm(Form):
    """Writes a message, or its events."""

    begins = True

    def __init__(self, request: Generation, *, caches: bool) -> None:
        self.id = f"msg_{new_id()[:24]}"
        self.request = request
        self._caches = caches
        self._begun = False
        self._open: str | None = None
        self._block = -1

    def _usage(self, answer: Answer, output: int) -> dict[str, Any]:
        count = answer.count()
        fresh = count.prompt - count.cached
        written = fresh if self._caches else 0
        return {
            "input_tokens": fresh - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": count.cached,
            "output_tokens": output,
            "service_tier": "standard",
        }

    def _shell(self, answer: Answer) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": answer.model}

    def begin(self, answer: Answer, index: int) -> list[bytes]:
        self._begun = True
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        shell = {**self._shell(answer), **empty, "usage": self._usage(answer, 1)}
        return [named({"type": "message_start", "message": shell})]

    def _switch(self, block: str, start: dict[str, Any]) -> list[bytes]:
        events = self._close()
        self._block += 1
        self._open = block
        opened = {"type": "content_block_start", "index": self._block, "content_block": start}
        events.append(named(opened))
        if self._block == 0:
            events.append(named({"type": "ping"}))
        return events

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        events = []
        if self._open == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        self._open = None
        return [*events, named({"type": "content_block_stop", "index": self._block})]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named({"type": "content_block_delta", "index": self._block, "delta": delta})

    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        events: list[bytes] = []
        if delta.kind == "content":
            if self._open != "text":
                events = self._switch("text", {"type": "text", "text": ""})
            return [*events, self._delta({"type": "text_delta", "text": delta.text})]
        if delta.kind == "reasoning":
            if self._open != "thinking":
                start = {"type": "thinking", "thinking": "", "signature": ""}
                events = self._switch("thinking", start)
            return [*events, self._delta({"type": "thinking_delta", "thinking": delta.text})]
        if delta.kind == "tool_name":
            use = {"type": "tool_use", "id": tool_id(), "name": delta.text, "input": {}}
            events = self._switch("tool_use", use)
            return [*events, self._delta({"type": "input_json_delta", "partial_json": ""})]
        # Arguments come in pieces.
        half = len(delta.text) // 2
        pieces = (delta.text[:half], delta.text[half:])
        return [self._delta({"type": "input_json_delta", "partial_json": p}) for p in pieces]

    def _stop(self, answer: Answer, reason: str) -> dict[str, Any]:
        stopped = answer.stop_string(answer.sequences[0]) if reason == "stop" else None
        said = "stop_sequence" if stopped is not None else _REASONS[reason]
        return {"stop_reason": said, "stop_sequence": stopped}

    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        events = [] if self._begun else self.begin(answer, index)
        usage = {} if answer.no_usage else {"output_tokens": answer.count().completion}
        end = {"type": "message_delta", "delta": self._stop(answer, reason), "usage": usage}
        return [*events, *self._close(), named(end)]

    def done(self, answer: Answer) -> list[bytes]:
        return [named({"type": "message_stop"})]

    def error(self, answer: Answer) -> list[bytes]:
        problem = {"type": "overloaded_error", "message": SIMULATED}
        return [named({"type": "error", "error": problem, "request_id": f"req_{self.id[4:]}"})]

    def broken(self) -> bytes:
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"de\n\n'

    def whole(self, answer: Answer) -> bytes:
        sequence = answer.sequences[0]
        made = answer.made(sequence)
        blocks: list[dict[str, Any]] = []
        thought = "".join(d.text for d in made if d.kind == "reasoning")
        text = "".join(d.text for d in made if d.kind == "content")
        if thought:
            blocks.append({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
        if text:
            blocks.append({"type": "text", "text": text})
        names = [d.text for d in made if d.kind == "tool_name"]
        given = [d.text for d in made if d.kind == "tool_args"]
        for name, text in zip(names, given, strict=False):
            block = {"type": "tool_use", "id": tool_id(), "name": name}
            blocks.append({**block, "input": arguments(text)})
        stop: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}
        if not answer.no_finish:
            stop = self._stop(answer, answer.reason(sequence))
        value: dict[str, Any] = {**self._shell(answer), "content": blocks, **stop}
        if not answer.no_usage:
            value["usage"] = self._usage(answer, answer.count().completion)
        return dump(value)

    def whole_error(self, answer: Answer) -> bytes:
        return dump({"type": "error", "error": {"type": "api_error", "message": SIMULATED}})


def tool_id() -> str:
    """The id of a tool use."""
    return f"toolu_{os.urandom(12).hex()}"


class Anthropic(KindApp):
    """api.anthropic.com."""

    cancels = "streams"
    filters = "answer"  # the stop reason is `refusal`
    stream_headers = b"cache-control: no-cache\r\n"

    def call(self, exchange: Exchange) -> Call | None:
        return Call("messages") if exchange.path == "/v1/messages" else None

    def control(self, exchange: Exchange) -> Callable[[], None] | None:
        path = exchange.path
        if exchange.method == "GET" and path == "/v1/models":
            data = [{"type": "model", "id": name, "display_name": name} for name in self._names]
            value = {"data": data, "has_more": False, "first_id": None, "last_id": None}
            return lambda: self.reply(exchange, dump(value))
        if exchange.method == "POST" and path == COUNT_TOKENS:
            return lambda: self._count(exchange)
        return None

    def _count(self, exchange: Exchange) -> None:
        try:
            body = {"max_tokens": 1, **self.load(exchange)}
            request = self.read(exchange, Call("messages"), body)
        except Problem as problem:
            self.fail(exchange, problem)
            return
        self.reply(exchange, dump({"input_tokens": request.prompt_tokens}))

    def authorized(self, exchange: Exchange) -> bool:
        given = exchange.header(b"x-api-key")
        if given is None and exchange.header(b"authorization") is None:
            raise Problem(401, "auth", "x-api-key header is required")
        return self.same(given, self.key) or super().authorized(exchange)

    def headers(self, record: Record) -> bytes:
        return (
            header("request-id", f"req_{new_id()[:24]}")
            + b"anthropic-ratelimit-requests-limit: 4000\r\n"
            + b"anthropic-ratelimit-requests-remaining: 3999\r\n"
            + b"anthropic-ratelimit-requests-reset: 2030-01-01T00:00:00Z\r\n"
        )

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        return MessagesForm(request, caches=b'"cache_control"' in exchange.body)

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        if exchange.header(b"anthropic-version") is None:
            raise invalid("anthropic-version: header is required")
        known(body, _FIELDS, "{}: Extra inputs are not permitted")
        for name in ("model", "messages", "max_tokens"):
            if name not in body:
                raise invalid(f"{name}: Field required", name)
        temperature = body.get("temperature")
        if isinstance(temperature, int | float) and not 0 <= temperature <= 1:
            raise invalid("temperature: range: 0..1", "temperature")
        plain: Body = {"messages": messages_of(body), "max_tokens": body["max_tokens"]}
        plain |= {k: body[k] for k in ("stream", "temperature", "top_p") if k in body}
        plain["stop"] = body.get("stop_sequences")
        if body.get("tools"):
            plain["tools"] = [
                tool(item.get("name"), item.get("description"), item.get("input_schema"))
                for item in items(body["tools"], "tools")
            ]
        choice = body.get("tool_choice")
        if isinstance(choice, dict):
            kinds = {"any": "required", "auto": "auto", "none": "none"}
            chosen: Any = kinds.get(str(choice.get("type")))
            if choice.get("type") == "tool":
                chosen = {"type": "function", "function": {"name": choice.get("name")}}
            if chosen is None:
                raise invalid("tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'")
            plain["tool_choice"] = chosen
        output = body.get("output_config")
        if isinstance(output, dict) and isinstance(output.get("format"), dict):
            plain["response_format"] = schema_format(output["format"].get("schema"))
        last = plain["messages"][-1]
        if last["role"] == "assistant":
            plain["continue_final_message"] = True
        return self.generation(exchange.path, plain, str(body["model"]))

    def failure(self, problem: Problem) -> Failure:
        text, why, status = problem.message, problem.why, problem.status
        if why == "auth":
            text = text or "invalid x-api-key"
        elif why == "overflow":
            text = f"prompt is too long: {problem.tokens} tokens > {problem.limit} maximum"
        elif why == "quota":
            status = 400
            text = "Your credit balance is too low to access the Anthropic API. Please go to Plans "
            text += "& Billing to upgrade or purchase credits."
        elif why == "model" and status == 404:
            text = f"model: {text}"
        elif why == "path":
            text = "Not Found"
        elif why in ("full", "loading"):
            status, text = 529, "Overloaded"
        kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        request = f"req_{new_id()[:24]}"
        error = {"type": kind, "message": text}
        body = dump({"type": "error", "error": error, "request_id": request})
        return Failure(status, body, header("request-id", request) + retry_after(problem))


def _text(block: dict[str, Any]) -> str:
    content = block.get("text", block.get("content", ""))
    if isinstance(content, list):
        return "".join(_text(item) for item in content if isinstance(item, dict))
    return content if isinstance(content, str) else ""


def messages_of(body: Body) -> list[dict[str, Any]]:
    """The messages in OpenAI's form. Raises Problem, which names the field."""
    made: list[dict[str, Any]] = []
    system = body.get("system")
    if isinstance(system, str):
        made.append(message("system", system))
    elif system is not None:
        made += [message("system", _text(item)) for item in items(system, "system")]
    open_calls: set[object] = set()
    for index, item in enumerate(items(body["messages"], "messages")):
        role, content = item.get("role"), item.get("content")
        where = f"messages.{index}"
        if role not in ("user", "assistant"):
            raise invalid(f"{where}.role: Input should be 'user' or 'assistant'")
        if isinstance(content, str):
            made.append(message(role, content))
            continue
        blocks = items(content, f"{where}.content")
        for block in blocks:
            if block.get("type") == "tool_use":
                if not isinstance(block.get("input"), dict):
                    raise invalid(f"{where}.content: tool_use.input: Input should be an object")
                open_calls.add(block.get("id"))
            elif block.get("type") == "tool_result":
                if block.get("tool_use_id") not in open_calls:
                    raise invalid(f"{where}.content: unexpected `tool_use_id` in tool_result")
                made.append(message("tool", _text(block)))
        texts = [_text(block) for block in blocks if block.get("type") == "text"]
        if texts or role == "assistant":
            made.append(message(role, "".join(texts)))
    return made

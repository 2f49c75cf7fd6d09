"""OpenAI's chat, completions and embeddings, and what others change about them."""

from __future__ import annotations

import base64
import os
import struct
from abc import abstractmethod
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

from forebay_engine.sim import render, requests
from forebay_engine.sim.beside import Beside
from forebay_engine.sim.errors import Refused, dump
from forebay_engine.sim.jobs import new_id
from forebay_engine.sim.kinds.base import Call, KindApp, ended
from forebay_engine.sim.kinds.failure import SIMULATED, Failure, Problem, Why, invalid
from forebay_engine.sim.kinds.form import Form
from forebay_engine.sim.kinds.jobs import Answer
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.others import Style
from forebay_engine.sim.requests import Body, Generation
from forebay_engine.sim.text import Delta
from forebay_engine.sim.wire import Exchange

DONE = b"data: [DONE]\n\n"
APIS = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
}


def event(value: object) -> bytes:
    """One event of a stream."""
    return b"data: %s\n\n" % dump(value)


def call_id() -> str:
    """The id of a tool call."""
    return f"call_{os.urandom(12).hex()}"


class OpenAIForm(Form):
    """Writes chat answers; its members say how a kind's differ from OpenAI's.

    usage_when: `asked` by `include_usage`, or `always`. usage_in: an event of its own with empty
    choices, or the finish chunk.
    usage_null: other chunks say `"usage": null` where it was asked for.
    reasoning: the field for it; None: it is counted and not shown.
    role_first: a chunk with the role precedes the text; role_always: each chunk has it.
    """

    usage_when: ClassVar[Literal["asked", "always"]] = "asked"
    usage_in: ClassVar[Literal["own", "finish"]] = "own"
    usage_null: ClassVar[bool] = False
    reasoning: ClassVar[str | None] = "reasoning_content"
    role_first: ClassVar[bool] = True
    role_always: ClassVar[bool] = False
    id_prefix: ClassVar[str] = "chatcmpl-"
    done_at_end: ClassVar[bool] = True
    done_after_error: ClassVar[bool] = True

    def __init__(self, app: OpenAIApp, request: Generation) -> None:
        self.app = app
        self.request = request
        self.id = self.id_prefix + new_id()
        self._calls: dict[tuple[int, int], str] = {}

    # What kinds change

    def extra(self) -> dict[str, Any]:
        """Further fields of answers and chunks."""
        return {}

    def choice_extra(self, reason: str | None) -> dict[str, Any]:
        """Further fields of a choice."""
        return {"logprobs": None}

    def delta_extra(self) -> dict[str, Any]:
        """Further fields of each chunk's end."""
        return {}

    def message_extra(self) -> dict[str, Any]:
        """Further fields of a whole message."""
        return {}

    def numbers(self, answer: Answer) -> dict[str, Any]:
        """The usage."""
        count = answer.count()
        return {
            "prompt_tokens": count.prompt,
            "completion_tokens": count.completion,
            "total_tokens": count.total,
            "prompt_tokens_details": {"cached_tokens": count.cached},
            "completion_tokens_details": {"reasoning_tokens": count.reasoning},
        }

    def reason(self, reason: str) -> str:
        """A finish reason as it is said here."""
        return reason

    def error_value(self) -> dict[str, Any]:
        """The JSON of an error within an answer."""
        value: dict[str, Any] = self.app.error_value(Problem(500, "stream", SIMULATED))
        return value

    # Chunks

    def _chunk(self, answer: Answer, choices: list[dict[str, Any]], **more: Any) -> bytes:
        value: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": self.app.shown_model(answer.model),
            **self.extra(),
            "choices": choices,
        }
        if self.usage_null and self.request.include_usage:
            value["usage"] = None
        return event({**value, **more, **self.delta_extra()})

    def _delta(
        self, answer: Answer, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        if self.role_always:
            delta = {"role": "assistant", **delta}
        extra = self.choice_extra(reason)
        return {"index": index, "delta": delta, **extra, "finish_reason": reason}

    def begin(self, answer: Answer, index: int) -> list[bytes]:
        if not self.role_first:
            return []
        return [self._chunk(answer, [self._delta(answer, index, self.role_delta())])]

    def role_delta(self) -> dict[str, Any]:
        """The first chunk's delta."""
        return {"role": "assistant", "content": ""}

    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        if delta.kind == "content":
            fields: dict[str, Any] = {"content": delta.text}
        elif delta.kind == "reasoning":
            if self.reasoning is None:
                return []
            fields = {self.reasoning: delta.text}
        else:
            fields = {"tool_calls": [self._call(index, delta)]}
        more: dict[str, Any] = {}
        if self.request.continuous_usage and self.app.continuous:
            more["usage"] = self.numbers(answer)
        return [self._chunk(answer, [self._delta(answer, index, fields)], **more)]

    def _call(self, index: int, delta: Delta) -> dict[str, Any]:
        if delta.kind == "tool_args":
            return {"index": delta.call, "function": {"arguments": delta.text}}
        made = self._calls[index, delta.call] = call_id()
        function = {"name": delta.text, "arguments": ""}
        return {"index": delta.call, "id": made, "type": "function", "function": function}

    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        choice = self._delta(answer, index, {}, self.reason(reason))
        more: dict[str, Any] = {}
        if self.usage_in == "finish" and self._has_usage(answer):
            more["usage"] = self.numbers(answer)
        return [self._chunk(answer, [choice], **more)]

    def _has_usage(self, answer: Answer) -> bool:
        wanted = self.usage_when == "always" or self.request.include_usage
        return wanted and not answer.no_usage

    def usage(self, answer: Answer) -> list[bytes]:
        if self.usage_in != "own" or not self._has_usage(answer):
            return []
        return [self._chunk(answer, [], usage=self.numbers(answer))]

    def done(self, answer: Answer) -> list[bytes]:
        return [DONE] if self.done_at_end else []

    def error(self, answer: Answer) -> list[bytes]:
        end = [DONE] if self.done_after_error else []
        return [event(self.error_value()), *end]

    # Whole

    def message(self, answer: Answer, made: list[Delta]) -> dict[str, Any]:
        """The message of a whole answer."""
        text = "".join(d.text for d in made if d.kind == "content")
        thought = "".join(d.text for d in made if d.kind == "reasoning")
        calls = whole_calls(made)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        message |= self.message_extra()
        if thought and self.reasoning is not None:
            message[self.reasoning] = thought
        if calls:
            message["tool_calls"] = calls
        return message

    def whole(self, answer: Answer) -> bytes:
        choices = []
        for sequence in answer.sequences:
            reason = None if answer.no_finish else self.reason(answer.reason(sequence))
            choice = {
                "index": sequence.index,
                "message": self.message(answer, answer.made(sequence)),
            }
            choices.append({**choice, **self.choice_extra(reason), "finish_reason": reason})
        return self._whole("chat.completion", answer, choices)

    def _whole(self, kind: str, answer: Answer, choices: list[dict[str, Any]]) -> bytes:
        value: dict[str, Any] = {
            "id": self.id,
            "object": kind,
            "created": answer.created,
            "model": self.app.shown_model(answer.model),
            **self.extra(),
            "choices": choices,
        }
        if not answer.no_usage:
            value["usage"] = self.numbers(answer)
        return dump(value)

    def whole_error(self, answer: Answer) -> bytes:
        return dump(self.error_value())


class CompletionForm(OpenAIForm):
    """Completions, in the form of the kind's chat."""

    def _text(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    def _chunk(self, answer: Answer, choices: list[dict[str, Any]], **more: Any) -> bytes:
        value = {
            "id": self.id.replace("chatcmpl", "cmpl"),
            "object": "text_completion",
            "created": answer.created,
            "model": self.app.shown_model(answer.model),
            "choices": choices,
        }
        return event({**value, **more})

    def begin(self, answer: Answer, index: int) -> list[bytes]:
        return []

    def delta(self, answer: Answer, index: int, delta: Delta) -> list[bytes]:
        return [self._chunk(answer, [self._text(index, delta.text, None)])]

    def finish(self, answer: Answer, index: int, reason: str) -> list[bytes]:
        return [self._chunk(answer, [self._text(index, "", self.reason(reason))])]

    def whole(self, answer: Answer) -> bytes:
        choices = []
        for sequence in answer.sequences:
            reason = None if answer.no_finish else self.reason(answer.reason(sequence))
            text = "".join(delta.text for delta in answer.made(sequence))
            choices.append(self._text(sequence.index, text, reason))
        return self._whole("text_completion", answer, choices)


def whole_calls(made: list[Delta]) -> list[dict[str, Any]]:
    """The tool calls of a whole answer."""
    names = [delta.text for delta in made if delta.kind == "tool_name"]
    given = [delta.text for delta in made if delta.kind == "tool_args"]
    return [
        {"id": call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in zip(names, given, strict=False)
    ]


class OpenAIApp(KindApp):
    """A server that speaks OpenAI's API.

    base: what precedes `/chat/completions`; `apis`: what is served below it.
    chat_form: what writes chat answers. continuous: knows `continuous_usage_stats`.
    known_fields: fields that a chat request may have; None: any.
    beside_apis: what it has beside text, and in whose shapes (beside_style).
    """

    base: ClassVar[str] = "/v1"
    apis: ClassVar[tuple[str, ...]] = ("chat", "completions", "embeddings")
    chat_form: ClassVar[type[OpenAIForm]] = OpenAIForm
    completion_form: ClassVar[type[CompletionForm]] = CompletionForm
    continuous: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    known_fields: ClassVar[frozenset[str] | None] = None
    beside_apis: ClassVar[frozenset[str]] = frozenset()
    beside_style: ClassVar[Style] = "openai"

    def __init__(self, options: SimOptions) -> None:
        super().__init__(options)
        self.beside = Beside(
            self.beside_style, self.beside_apis, None if self.any_model else self._names
        )

    def below(self, path: str) -> str | None:
        """What follows the base in a path; None: it is not below it."""
        return path.removeprefix(self.base) if path.startswith(self.base + "/") else None

    def call(self, exchange: Exchange) -> Call | None:
        api = APIS.get(self.below(exchange.path) or "")
        return Call(api) if api in self.apis and api is not None else None

    def control(self, exchange: Exchange) -> Any:
        rest = self.below(exchange.path)
        if rest is not None and self.beside.api(rest) is not None:
            return lambda: self._beside(exchange, rest)
        if exchange.method == "GET" and rest == "/models":
            return lambda: self.reply(exchange, dump(self.model_list()))
        if exchange.method == "GET" and rest is not None and rest.startswith("/models/"):
            name = unquote(rest.removeprefix("/models/"))
            if name in self._names:
                return lambda: self.reply(exchange, dump(self.model_entry(name)))
            return lambda: self.fail(exchange, Problem(404, "model", name, param="model"))
        return None

    def _beside(self, exchange: Exchange, path: str) -> None:
        record = self._record(exchange)
        fault = self.faults.pick()
        if self._early_fault(exchange, record, fault):
            return

        def failed(status: int, why: Why, message: str, param: str | None) -> None:
            self.fail(exchange, Problem(status, why, message, param=param))

        def go() -> None:
            self.beside.answer(exchange, path, record, fault, failed)

        self.when_warm(exchange, record, go)

    def model_entry(self, name: str) -> dict[str, Any]:
        """One entry of the list of models."""
        return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "system"}

    def model_list(self) -> Any:
        """The list of models."""
        return {"object": "list", "data": [self.model_entry(name) for name in self._names]}

    def shown_model(self, model: str) -> str:
        """The model's name as answers have it."""
        return model

    def form(self, exchange: Exchange, call: Call, body: Body, request: Generation) -> Form:
        chosen = self.completion_form if call.api == "completions" else self.chat_form
        return chosen(self, request)

    def read(self, exchange: Exchange, call: Call, body: Body) -> Generation:
        model = call.model if call.model is not None else body.get("model")
        if not isinstance(model, str) or not model:
            if not self.any_model:
                raise invalid("you must provide a model parameter", "model")
            model = self.options.models[0] if self.options.models else ""
        if self.known_fields is not None and call.api == "chat":
            for name in body:
                if name not in self.known_fields:
                    raise self.unknown_field(name)
        plain = dict(body)
        if not self.continues:
            plain.pop("continue_final_message", None)
        return self.generation(exchange.path, plain, model, completion=call.api == "completions")

    def unknown_field(self, name: str) -> Problem:
        """A field that is not known."""
        return invalid(f"Unknown parameter: '{name}'.", name)

    @abstractmethod
    def error_value(self, problem: Problem) -> dict[str, Any]:
        """The JSON of an error."""

    def failure(self, problem: Problem) -> Failure:
        return Failure(problem.status, dump(self.error_value(problem)), retry_after(problem))

    def _kind_embed(self, exchange: Exchange, call: Call) -> None:
        record = self._record(exchange)
        try:
            body = self.load(exchange)
            fault = self._fault(exchange, body)
            if self._early_fault(exchange, record, fault):
                return
            model = call.model if call.model is not None else body.get("model")
            if model not in self.options.embedding_models:
                raise Problem(404, "model", str(model), param="model")
            prompts = requests.embedding_inputs(exchange.path, body, self.options)
        except (Problem, Refused) as error:
            problem = self._problem(error)
            ended(record, f"error:{self.failure(problem).status}")
            self.fail(exchange, problem)
            return
        except requests.BeyondVocabulary:
            ended(record, "error:400")
            self.fail(exchange, invalid("Token id is out of the vocabulary.", "input"))
            return
        tokens = sum(prompt.tokens for prompt in prompts)
        record.model, record.prompt_tokens = str(model), tokens
        size, seed = self.options.embedding_dim, self.options.seed
        packed = body.get("encoding_format") == "base64"
        data = []
        for index, prompt in enumerate(prompts):
            values: Any = render.vector(prompt.text, seed, size)
            if packed:
                values = base64.b64encode(struct.pack(f"<{size}f", *values)).decode()
            data.append({"object": "embedding", "index": index, "embedding": values})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        self.when_warm(exchange, record, lambda: self._embedded(exchange, record, answer))

    def _embedded(self, exchange: Exchange, record: Any, answer: dict[str, Any]) -> None:
        self.reply(exchange, dump(answer), self.headers(record))
        ended(record, "stop")


def retry_after(problem: Problem) -> bytes:
    """The header that says how long to wait."""
    after = problem.retry_after_s
    return b"" if after is None else b"retry-after: %d\r\n" % after

"""Request bodies: checked as SGLang checks them, and turned into plans."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from forebay_engine.sim import errors, text
from forebay_engine.sim.options import SimOptions

Body = dict[str, Any]


@dataclass(slots=True)
class Prompt:
    """One prompt. tokens: its length. select: what picks the script. prefix: text to go on from."""

    text: str
    tokens: int
    select: str
    prefix: str = ""


@dataclass(slots=True)
class Generation:
    """A checked request for text. limit: tokens each answer may have."""

    model: str
    rid: str | None
    stream: bool
    prompts: list[Prompt]
    limit: int
    plans: list[text.Plan]
    n: int = 1
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    echo: bool = False
    tool_calls: bool = False
    separate_reasoning: bool = True

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(prompt.tokens for prompt in self.prompts)


def load(path: str, content_type: bytes | None, body: bytes) -> Body:
    """Parse a JSON object. Raises Refused."""
    if (content_type or b"").split(b";")[0].strip().lower() != b"application/json":
        raise errors.wrong_content_type()
    return load_json(path, body)


def load_json(path: str, body: bytes) -> Body:
    """Parse a JSON object whatever the content type says. Raises Refused."""
    try:
        value = json.loads(body.decode())
    except UnicodeDecodeError:
        reason = "str is not valid UTF-8: surrogates not allowed"
        raise errors.bad_json(path, 0, reason) from None
    except json.JSONDecodeError as error:
        end = error.pos >= len(error.doc)
        reason = "unexpected end of data" if end else "unexpected character"
        raise errors.bad_json(path, error.pos, reason) from None
    except RecursionError:
        raise errors.bad_json(path, 0, "Recursion limit reached") from None
    except ValueError:  # A number of more digits than Python reads.
        raise errors.bad_json(path, 0, "invalid number") from None
    if not isinstance(value, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        problem = errors.field_problem("model_attributes_type", (), message, value)
        raise errors.invalid(path, problem)
    return value


def chat(path: str, body: Body, options: SimOptions) -> Generation:
    """Check a chat request. Raises Refused."""
    shown = dict(body)
    shown.setdefault("tool_choice", "auto" if body.get("tools") else "none")
    if "messages" not in body:
        problem = errors.field_problem("missing", ("messages",), "Field required", shown)
        raise errors.invalid(path, problem)
    messages = body["messages"]
    if not isinstance(messages, list):
        message = "Input should be a valid list"
        problem = errors.field_problem("list_type", ("messages",), message, messages)
        raise errors.invalid(path, problem)
    for index, item in enumerate(messages):
        if not isinstance(item, dict):
            message = "Input should be a valid dictionary"
            problem = errors.field_problem("dict_type", ("messages", index), message, item)
            raise errors.invalid(path, problem)
        role = item.get("role")
        known = isinstance(role, str) and (role == "user" or role.lower() in errors.ROLES)
        if not known:
            raise errors.bad_role(path, index, role)
    if not messages:
        raise errors.bad_request("Messages cannot be empty.")
    prefix = ""
    last = messages[-1]
    if body.get("continue_final_message") and last.get("role") == "assistant":
        prefix = text.content_text(last.get("content"))
        messages = messages[:-1]
    tools = body.get("tools") if isinstance(body.get("tools"), list) else None
    rendered, specials = text.render_chat(messages, tools)
    size = options.bytes_per_token
    tokens = text.count_bytes(rendered, size) + specials + text.count_bytes(prefix, size)
    select = text.content_text(messages[-1].get("content")) if messages else ""
    prompt = Prompt(rendered, tokens, select, prefix)
    given = body.get("max_completion_tokens")
    given = body.get("max_tokens") if given is None else given
    request = _generation(path, body, options, [prompt], given)
    request.logprobs = bool(body.get("logprobs"))
    request.top_logprobs = _int(path, body, "top_logprobs", 0)
    request.separate_reasoning = body.get("separate_reasoning", True) is not False
    choice = body.get("tool_choice")
    names = _tool_names(tools) if choice != "none" else ()
    request.tool_calls = bool(names)
    _plan(request, body, options, names, _forced(choice, names))
    return request


def count_messages(path: str, body: Body, options: SimOptions) -> int:
    """Tokens of the input of a request of Anthropic's Messages. Raises Refused."""
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": body["system"]})
    for item in body.get("messages") or []:
        blocks: Any = item.get("content") if isinstance(item, dict) else None
        listed = isinstance(blocks, list)
        results = [b for b in blocks if b.get("type") == "tool_result"] if listed else []
        messages += [{"role": "tool", "content": block.get("content")} for block in results]
        if listed:
            blocks = [block for block in blocks if block not in results]
        if blocks:
            messages.append({"role": item.get("role"), "content": blocks})
    plain: Body = {"model": body.get("model"), "messages": messages, "max_tokens": 1}
    if body.get("tools"):
        plain["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.get("name"),
                    "description": tool.get("description"),
                    "parameters": tool.get("input_schema"),
                },
            }
            for tool in body["tools"]
        ]
    return chat(path, plain, options).prompt_tokens


def completion(path: str, body: Body, options: SimOptions) -> Generation:
    """Check a completion request. Raises Refused."""
    if "prompt" not in body:
        problem = errors.field_problem("missing", ("prompt",), "Field required", body)
        raise errors.invalid(path, problem)
    prompts = _prompts(path, "prompt", body["prompt"], options.bytes_per_token)
    if not prompts:
        raise errors.bad_request("Prompt cannot be empty")
    given = body.get("max_tokens")
    request = _generation(path, body, options, prompts, 16 if given is None else given)
    request.echo = bool(body.get("echo"))
    request.logprobs = body.get("logprobs") is not None
    request.top_logprobs = _int(path, body, "logprobs", 0)
    _plan(request, body, options, (), None)
    return request


def generate(path: str, body: Body, options: SimOptions) -> Generation:
    """Check a native request. Raises Refused."""
    params = body.get("sampling_params")
    params = params if isinstance(params, dict) else {}
    given = body.get("text") if body.get("text") is not None else body.get("input_ids")
    if given is None:
        raise errors.bad_request("Either text, input_ids or input_embeds should be provided.")
    prompts = _prompts(path, "text", given, options.bytes_per_token)[:1]
    limit = params.get("max_new_tokens", 128)
    merged = {**params, "model": body.get("model"), "rid": body.get("rid")}
    merged["stream"] = body.get("stream")
    request = _generation(path, merged, options, prompts, limit)
    _plan(request, merged, options, (), None)
    return request


def embedding_inputs(path: str, body: Body, options: SimOptions) -> list[Prompt]:
    """The inputs of an embedding request. Raises Refused."""
    if "input" not in body:
        problem = errors.field_problem("missing", ("input",), "Field required", body)
        raise errors.invalid(path, problem)
    given = body["input"]
    if given in ("", []):
        raise errors.bad_request("Input cannot be empty")
    prompts = _prompts(path, "input", given, options.bytes_per_token)
    if any(not prompt.text for prompt in prompts):
        raise errors.bad_request("Input cannot be empty")
    for prompt in prompts:
        _check_context(prompt.tokens, options.context_length)
    return prompts


def _prompts(path: str, name: str, given: object, size: int) -> list[Prompt]:
    """A string, strings, token ids, or lists of token ids."""
    items = given if isinstance(given, list) else [given]
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    prompts = []
    for item in items:
        if isinstance(item, str):
            prompts.append(Prompt(item, text.count_bytes(item, size), item))
        elif isinstance(item, list) and item and all(isinstance(i, int) for i in item):
            if not all(0 <= i < text.VOCAB_SIZE for i in item):
                raise BeyondVocabulary
            prompts.append(Prompt(repr(item), len(item), ""))
        else:
            problem = errors.field_problem(
                "string_type", (name,), "Input should be a valid string", item
            )
            raise errors.invalid(path, problem)
    return prompts


class BeyondVocabulary(Exception):
    """A token id that the real engine dies of; the connection closes without a byte."""


def _check_context(tokens: int, context: int) -> None:
    if tokens >= context:
        message = (
            f"The input ({tokens} tokens) is longer than the model's context length "
            f"({context} tokens)."
        )
        raise errors.bad_request(message)


def _generation(
    path: str, body: Body, options: SimOptions, prompts: list[Prompt], given: object
) -> Generation:
    model = body.get("model")
    if model is None:
        model = "default"
    if not isinstance(model, str):
        problem = errors.field_problem(
            "string_type", ("model",), "Input should be a valid string", model
        )
        raise errors.invalid(path, problem)
    stream = _bool(path, body, "stream")
    n = _int(path, body, "n", 1)
    if not 1 <= n <= 128:
        raise errors.bad_request(f"n must be between 1 and 128, got {n}.")
    _check_sampling(path, body)
    _check_bias(body)
    limit = _limit(path, given, prompts, options.context_length)
    if ":" in model and model not in options.models:
        adapter = model.partition(":")[2]
        raise errors.bad_request(
            f"LoRA adapter '{adapter}' was requested, but LoRA is not enabled. Please launch the "
            "server with --enable-lora flag and preload adapters using --lora-paths or "
            "/load_lora_adapter endpoint."
        )
    usage = body.get("stream_options")
    usage = usage if isinstance(usage, dict) and stream else {}
    rid = body.get("rid")
    return Generation(
        model=model,
        rid=rid if isinstance(rid, str) and rid else None,
        stream=stream,
        prompts=prompts,
        limit=limit,
        plans=[],
        n=n,
        include_usage=bool(usage.get("include_usage")),
        continuous_usage=bool(usage.get("continuous_usage_stats")),
    )


def _check_sampling(path: str, body: Body) -> None:
    temperature = _number(path, body, "temperature")
    if temperature is not None and not (temperature >= 0 and math.isfinite(temperature)):
        raise errors.bad_request(
            f"temperature must be a non-negative finite number, got {temperature}."
        )
    top_p = _number(path, body, "top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise errors.bad_request(f"top_p must be in (0, 1], got {top_p}.")
    for name in ("frequency_penalty", "presence_penalty"):
        value = _number(path, body, name)
        if value is not None and not -2 <= value <= 2:
            raise errors.bad_request(f"{name} must be in [-2, 2], got {value}.")


def _check_bias(body: Body) -> None:
    bias = body.get("logit_bias")
    for key in bias if isinstance(bias, dict) else ():
        if not (key.lstrip("-").isdigit() and 0 <= int(key) < text.VOCAB_SIZE):
            raise errors.bad_request(
                f"logit_bias must has keys in [0, {text.VOCAB_SIZE - 1}], got {key}."
            )


def _limit(path: str, given: object, prompts: list[Prompt], context: int) -> int:
    longest = max(prompt.tokens for prompt in prompts)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        problem = errors.field_problem(
            "int_type", ("max_tokens",), "Input should be a valid integer", given
        )
        raise errors.invalid(path, problem)
    _check_context(longest, context)
    if given is None:
        return context - longest
    if given < 0:
        raise errors.bad_request(f"max_new_tokens must be at least 0, got {given}.")
    if longest + given > context:
        raise errors.bad_request(
            f"Requested token count exceeds the model's maximum context length of {context} "
            f"tokens. You requested a total of {longest + given} tokens: {longest} tokens from "
            f"the input messages and {given} tokens for the completion. Please reduce the number "
            "of tokens in the input messages or the completion to fit within the limit."
        )
    return int(given)


def _plan(
    request: Generation,
    body: Body,
    options: SimOptions,
    tools: tuple[str, ...],
    forced: str | None,
) -> None:
    stop = body.get("stop")
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else ()
    seed = body.get("seed")
    seed = seed if isinstance(seed, int) else 0
    shape = body.get("response_format")
    schema: object = None
    if isinstance(shape, dict) and shape.get("type") in ("json_schema", "json_object"):
        wrapped = shape.get("json_schema")
        schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
        schema = {"properties": {"answer": {}}} if schema is None else schema
    for prompt in request.prompts:
        ask = text.Ask(
            prompt=prompt.text,
            select=prompt.select,
            seed=options.seed * 1_000_003 + seed,
            max_tokens=request.limit,
            prefix=prompt.prefix,
            stops=tuple(item for item in stops if isinstance(item, str) and item),
            ignore_eos=bool(body.get("ignore_eos")),
            tools=tools,
            force_tool=forced,
            reasoning=request.separate_reasoning,
            schema=schema,
            chars_per_token=options.bytes_per_token,
        )
        request.plans.extend([text.plan(ask)] * request.n)


def _tool_names(tools: object) -> tuple[str, ...]:
    if not isinstance(tools, list):
        return ()
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return tuple(name for name in names if isinstance(name, str))


def _forced(choice: object, names: tuple[str, ...]) -> str | None:
    if choice == "required" and names:
        return names[0]
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        return name if name in names else None
    return None


def _number(path: str, body: Body, name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = "Input should be a valid number"
        raise errors.invalid(path, errors.field_problem("float_type", (name,), message, value))
    return float(value)


def _int(path: str, body: Body, name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int):
        message = "Input should be a valid integer"
        raise errors.invalid(path, errors.field_problem("int_type", (name,), message, value))
    return int(value)


def _bool(path: str, body: Body, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        message = "Input should be a valid boolean"
        raise errors.invalid(path, errors.field_problem("bool_type", (name,), message, value))
    return value

"""Error bodies as SGLang 0.5.23 writes them: several shapes, told apart by where they arise."""

from __future__ import annotations

import json

_FILE = "/opt/sglang-env/lib/python3.11/site-packages/sglang/srt/entrypoints/http_server.py"
_HANDLERS = {
    "/v1/chat/completions": (1870, "openai_v1_chat_completions"),
    "/v1/completions": (1860, "openai_v1_completions"),
    "/v1/embeddings": (1882, "openai_v1_embeddings"),
}
NOT_FOUND = b'{"detail":"Not Found"}'
WRONG_METHOD = b'{"detail":"Method Not Allowed"}'
UNAUTHORIZED = b'{"error":"Unauthorized"}'
ROLES = ("system", "assistant", "tool", "function", "developer", "latest_reminder", "root")


class Refused(Exception):
    """A request that is answered with an error. `body` is JSON."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


def dump(value: object) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def flat(message: str, kind: str = "BadRequestError", code: int = 400) -> bytes:
    """The usual body."""
    fields = {"object": "error", "message": message, "type": kind, "param": None, "code": code}
    return dump(fields)


def bad_request(message: str) -> Refused:
    """400 of the serving layer."""
    return Refused(400, flat(message))


def unavailable(message: str) -> bytes:
    """Body of a 503 that is not in a stream."""
    return flat(message, "503", 503)


def stream_error(message: str, code: int = 503, kind: str = "SERVICE_UNAVAILABLE") -> bytes:
    """The event of an error inside a 200 stream; this one has spaces in its JSON."""
    fields = {"object": "error", "message": message, "type": kind, "param": None, "code": code}
    return b"data: %s\n\n" % json.dumps({"error": fields}, ensure_ascii=False).encode()


def model_not_found(model: str) -> bytes:
    """Body of 404 on `/v1/models/{model}`: OpenAI's nested shape."""
    return dump(
        {
            "error": {
                "message": f"The model '{model}' does not exist",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        }
    )


def invalid(path: str, *problems: dict[str, object]) -> Refused:
    """400 of the schema layer. It quotes the client's input and the server's own file path."""
    count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:"
    line, handler = _HANDLERS.get(path, (1800, "handler"))
    listed = "\n".join(f"  {problem}" for problem in problems)
    where = f'  File "{_FILE}", line {line}, in {handler}\n    POST {path}'
    message = f"{count}\n{listed}\n\n{where} {list(problems)}"
    return Refused(400, flat(message, "Bad Request"))


def wrong_content_type() -> Refused:
    """400 for anything but JSON."""
    problem = {
        "loc": ["header", "content-type"],
        "msg": "Unsupported Media Type: Only 'application/json' is allowed",
        "type": "value_error",
    }
    return Refused(400, flat(f"1 validation error:\n  {problem} {[problem]}", "Bad Request"))


def bad_json(path: str, at: int, reason: str) -> Refused:
    """400 for a body that is not JSON. `at`: offset in the body."""
    problem: dict[str, object] = {
        "type": "json_invalid",
        "loc": ("body", at),
        "msg": "JSON decode error",
        "input": {},
        "ctx": {"error": reason},
    }
    return invalid(path, problem)


def field_problem(
    kind: str, loc: tuple[object, ...], message: str, given: object
) -> dict[str, object]:
    """One problem of `invalid`."""
    return {"type": kind, "loc": ("body", *loc), "msg": message, "input": given}


def bad_role(path: str, index: int, role: object) -> Refused:
    """400 for a role that no message may have."""
    allowed = ", ".join(f"'{name}'" for name in ROLES)
    reason = f"'role' must be one of {allowed} (case-insensitive)."
    prefix = "function-after[validate_thinking_parts_role(), ChatCompletionMessage"
    generic: dict[str, object] = {
        "type": "value_error",
        "loc": ("body", "messages", index, f"{prefix}GenericParam]", "role"),
        "msg": f"Value error, {reason}",
        "input": role,
        "ctx": {"error": ValueError(reason)},
    }
    user: dict[str, object] = {
        "type": "literal_error",
        "loc": ("body", "messages", index, f"{prefix}UserParam]", "role"),
        "msg": "Input should be 'user'",
        "input": role,
        "ctx": {"expected": "'user'"},
    }
    return invalid(path, generic, user)

"""What clients get wrong, and the exact answer to each."""

import http.client
import json
import time
from pathlib import Path
from typing import Any

import pytest
from forebay.cli import main

from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until
from tests.support.wire import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Answer,
    Client,
    call,
    chat,
    request,
)

BAD = "invalid_request_error"
Brief = tuple[int, str, str | None, str | None]


@pytest.fixture(autouse=True)
def untouched(upstream: ScriptedUpstream) -> Any:
    """Nothing in this file may reach the engine, unless a test says so by emptying the list."""
    yield
    assert upstream.requests == []


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def post(gateway: Gateway, key: Key | None, body: Any, **options: Any) -> Answer:
    secret = None if key is None else key.secret
    return gateway.call(CHAT, body, key=secret, **options)


# Keys


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_no_key(gateway: Gateway, path: str) -> None:
    answer = gateway.call(path, chat())
    assert answer.brief() == (401, BAD, "missing_api_key", None)
    assert "Authorization: Bearer" in answer.error()["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny"])
def test_no_key_for_the_models(gateway: Gateway, path: str) -> None:
    assert gateway.call(path).brief() == (401, BAD, "missing_api_key", None)


def test_wrong_key(gateway: Gateway, key: Key) -> None:
    """Well formed, checksum and all, but nobody's."""
    from forebay.store import generate

    unknown = generate("inference").key
    same_id = generate("inference", key.id).key
    for secret in (unknown, same_id):
        answer = post(gateway, Key("", secret), chat())
        assert answer.brief() == (401, BAD, "invalid_api_key", None)
        assert secret not in answer.body.decode()


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "Bearer sk-0123456789",
        "Bearer fb-",
        "Basic dXNlcjpwYXNz",
        "Bearer fb-i" + "a" * 50,
        "Bearer \xff\xfe",
        "Bearer " + "fb-" * 1000,
    ],
)
def test_malformed_key(gateway: Gateway, value: str) -> None:
    answer = gateway.call(CHAT, chat(), headers=[("authorization", value)])
    assert answer.brief() == (401, BAD, "invalid_api_key", None)


def test_one_mistyped_character(gateway: Gateway, key: Key) -> None:
    last = "a" if key.secret[-1] != "a" else "b"
    answer = post(gateway, Key("", key.secret[:-1] + last), chat())
    assert answer.brief() == (401, BAD, "invalid_api_key", None)


def test_a_revoked_key_stops_within_a_second(gateway: Gateway) -> None:
    key = gateway.key()
    assert gateway.call("/v1/models", key=key.secret).status == 200
    assert main(["keys", "revoke", key.id, "--database-url", gateway.database_url]) == 0
    done = time.monotonic()
    until(lambda: gateway.call("/v1/models", key=key.secret).status == 401, "refusal")
    assert time.monotonic() - done < 1.0
    answer = post(gateway, key, chat())
    assert answer.brief() == (401, BAD, "api_key_revoked", None)


def test_a_rotated_keys_old_secret(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key()
    _, new = gateway.with_keys(lambda keys: keys.rotate(key.id))
    until(lambda: gateway.call("/v1/models", key=new).status == 200, "the new secret")
    assert post(gateway, key, chat()).brief() == (401, BAD, "invalid_api_key", None)


def test_an_expired_key(gateway: Gateway) -> None:
    key = gateway.new_key(expires_in_s=1.0)
    expired = (401, BAD, "api_key_expired", None)

    def refused() -> bool:
        answer = gateway.call("/v1/models", key=key.secret)
        return answer.status == 401 and answer.brief() == expired

    until(refused, "expiry")
    assert post(gateway, key, chat()).brief() == expired


def test_an_admin_key(gateway: Gateway) -> None:
    key = gateway.key(kind="admin")
    answer = post(gateway, key, chat())
    assert answer.brief() == (403, "permission_error", "permission_denied", None)


def test_a_key_for_some_models(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    key = gateway.key(models=["plain"])
    answer = post(gateway, key, chat("tiny"))
    assert answer.brief() == (403, "permission_error", "model_not_allowed", "model")
    listed = gateway.call("/v1/models", key=key.secret).json()["data"]
    assert [model["id"] for model in listed] == ["plain"]
    assert gateway.call("/v1/models/tiny", key=key.secret).status == 404
    assert post(gateway, key, chat("plain")).status == 200
    upstream.requests.clear()


# Bodies

BODIES: dict[str, tuple[bytes, Brief, str]] = {
    "empty": (b"", (400, BAD, "invalid_json", None), "byte 0"),
    "cut": (b'{"model": "tiny", "messages": [', (400, BAD, "invalid_json", None), "byte 31"),
    "trailing comma": (b'{"model": "tiny",}', (400, BAD, "invalid_json", None), "byte 17"),
    "two values": (b'{"model":"tiny"} {}', (400, BAD, "invalid_json", None), "byte 17"),
    "not a number": (b'{"temperature": NaN}', (400, BAD, "invalid_json", None), "byte 16"),
    "byte order mark": (b"\xef\xbb\xbf{}", (400, BAD, "invalid_json", None), "byte 0"),
    "array": (b"[1, 2]", (400, BAD, "invalid_json", None), "byte 0"),
    "string": (b'"hello"', (400, BAD, "invalid_json", None), "byte 0"),
    "null": (b"null", (400, BAD, "invalid_json", None), "byte 0"),
    "utf-8": (b'{"model": "t\xff"}', (400, BAD, "invalid_json", None), "byte 12"),
    "utf-16": ("{}".encode("utf-16"), (400, BAD, "invalid_json", None), "byte 0"),
    "model a number": (
        json.dumps({**chat(), "model": 7}).encode(),
        (400, BAD, "invalid_type", "model"),
        "model",
    ),
    "model null": (
        json.dumps({**chat(), "model": None}).encode(),
        (400, BAD, "invalid_type", "model"),
        "must be a string",
    ),
    "model missing": (
        json.dumps({"messages": chat()["messages"]}).encode(),
        (400, BAD, "missing_required_parameter", "model"),
        "model",
    ),
    "model unknown": (
        json.dumps(chat("no-such-model")).encode(),
        (404, BAD, "model_not_found", "model"),
        "'no-such-model' does not exist",
    ),
    "messages missing": (
        b'{"model":"tiny"}',
        (400, BAD, "missing_required_parameter", "messages"),
        "messages",
    ),
    "messages empty": (
        b'{"model":"tiny","messages":[]}',
        (400, BAD, "empty_array", "messages"),
        "at least one",
    ),
    "stream a string": (
        json.dumps(chat(stream="yes")).encode(),
        (400, BAD, "invalid_type", "stream"),
        "stream",
    ),
    "max_tokens negative": (
        json.dumps(chat(max_tokens=-1)).encode(),
        (400, BAD, "invalid_value", "max_tokens"),
        "max_tokens",
    ),
    "max_completion_tokens a fraction": (
        json.dumps(chat(max_completion_tokens=1.5)).encode(),
        (400, BAD, "invalid_type", "max_completion_tokens"),
        "max_completion_tokens",
    ),
    "n zero": (json.dumps(chat(n=0)).encode(), (400, BAD, "invalid_value", "n"), "n"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_body(gateway: Gateway, key: Key, name: str) -> None:
    body, brief, text = BODIES[name]
    answer = post(gateway, key, body)
    assert answer.brief() == brief, answer.body
    assert text in answer.error()["message"]


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_is_bounded(gateway: Gateway, key: Key, opening: bytes) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    body = b'{"model":"tiny","messages":' + opening * 10_000 + b"1" + closing * 10_000 + b"}"
    answer = post(gateway, key, body)
    assert answer.brief() == (400, BAD, "invalid_json", None)
    assert "byte " in answer.error()["message"]
    assert "deep" in answer.error()["message"]


def test_of_a_duplicate_key_the_last_counts_everywhere(
    gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """Else a key could be checked against one model and served by another."""
    key = gateway.key(models=["plain"])
    messages = json.dumps(chat()["messages"])
    body = f'{{"model":"plain","model":"tiny","messages":{messages}}}'.encode()
    assert post(gateway, key, body).brief()[0] == 403
    body = f'{{"model":"plain","mo\\u0064el":"tiny","messages":{messages}}}'.encode()
    assert post(gateway, key, body).brief()[0] == 403
    body = f'{{"model":"tiny","model":"plain","messages":{messages}}}'.encode()
    assert post(gateway, key, body).status == 200
    assert upstream.only().json()["model"] == "tiny"  # what `plain` is called there
    upstream.requests.clear()


def test_wrong_content_type(gateway: Gateway, key: Key) -> None:
    for value in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = post(gateway, key, chat(), content_type=value)
        assert answer.brief() == (400, BAD, "unsupported_content_type", "content-type")


@pytest.mark.parametrize(
    "value", [None, "application/json; charset=utf-8", "Application/JSON", "application/json"]
)
def test_good_content_type(
    gateway: Gateway, upstream: ScriptedUpstream, key: Key, value: str | None
) -> None:
    assert post(gateway, key, chat(), content_type=value).status == 200
    assert upstream.only().header("content-type") == "application/json"
    upstream.requests.clear()


# Size

BIG = b'{"model":"tiny","messages":[{"role":"user","content":"' + b"x" * 20_000_000 + b'"}]}'
TOO_LARGE = (413, BAD, "request_too_large", None)


def test_a_body_too_large_is_refused_readably(gateway: Gateway, key: Key) -> None:
    """By http.client, which sends everything before it reads."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        headers = {"authorization": f"Bearer {key.secret}", "content-type": "application/json"}
        connection.request("POST", CHAT, BIG, headers)
        response = connection.getresponse()
        body = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 413
    assert body["error"]["code"] == "request_too_large"
    assert "10485760 bytes" in body["error"]["message"]


def test_a_body_too_large_in_one_write(gateway: Gateway, key: Key) -> None:
    assert call(gateway.port, request(CHAT, BIG, key=key.secret)).brief() == TOO_LARGE


def test_a_body_too_large_in_many_writes(gateway: Gateway, key: Key) -> None:
    data = request(CHAT, BIG, key=key.secret)
    with Client(gateway.port) as client:
        for start in range(0, len(data), 400_000):
            client.send(data[start : start + 400_000])
            time.sleep(0.002)
        assert client.answer().brief() == TOO_LARGE


def test_a_chunked_body_too_large(gateway: Gateway, key: Key) -> None:
    head = request(CHAT, headers=[("transfer-encoding", "chunked")], key=key.secret, method="POST")
    with Client(gateway.port) as client:
        client.send(head)
        for start in range(0, len(BIG), 1_000_000):
            part = BIG[start : start + 1_000_000]
            client.send(b"%x\r\n%s\r\n" % (len(part), part))
        client.send(b"0\r\n\r\n")
        assert client.answer().brief() == TOO_LARGE


def test_a_body_too_large_without_a_key(gateway: Gateway) -> None:
    assert call(gateway.port, request(CHAT, BIG)).brief() == (401, BAD, "missing_api_key", None)


def test_a_body_just_small_enough(gateway: Gateway, upstream: ScriptedUpstream, key: Key) -> None:
    frame = len(json.dumps(chat(content="")))
    body = json.dumps(chat(content="x" * (10 * 1024 * 1024 - frame))).encode()
    assert len(body) == 10 * 1024 * 1024
    assert post(gateway, key, body).status == 200
    assert upstream.only().json()["messages"][0]["content"].strip("x") == ""
    upstream.requests.clear()
    assert post(gateway, key, body + b" ").brief() == TOO_LARGE


# Methods and paths


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_wrong_method(gateway: Gateway, key: Key, method: str, path: str) -> None:
    answer = gateway.call(path, method=method, key=key.secret)
    assert answer.brief() == (405, BAD, "method_not_supported", None)
    assert answer.header("allow") == "POST"


def test_wrong_method_for_models(gateway: Gateway, key: Key) -> None:
    answer = gateway.call("/v1/models", {}, method="POST", key=key.secret)
    assert answer.brief() == (405, BAD, "method_not_supported", None)
    assert "GET" in (answer.header("allow") or "")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nope", "/v1/chat/completions/x", "//v1/models"])
def test_unknown_path(gateway: Gateway, key: Key, path: str) -> None:
    answer = gateway.call(path, key=key.secret)
    assert answer.brief() == (404, BAD, "unknown_url", None)
    assert path in answer.error()["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/abort_request",
        "/flush_cache",
        "/pause_generation",
        "/release_memory_occupation",
        "/update_weights_from_disk",
        "/load_lora_adapter",
        "/generate",
        "/server_info",
        "/v1/load_lora_adapter",
        "/slow_down",
    ],
)
def test_an_engine_is_not_controlled_through_the_gateway(
    gateway: Gateway, key: Key, path: str
) -> None:
    answer = gateway.call(path, {}, method="POST", key=key.secret)
    assert answer.brief() == (404, BAD, "unknown_url", None)


def test_unknown_model_by_path(gateway: Gateway, key: Key) -> None:
    answer = gateway.call("/v1/models/nope", key=key.secret)
    assert answer.brief() == (404, BAD, "model_not_found", "model")


def test_no_refusal_says_what_stands_behind(gateway: Gateway, key: Key) -> None:
    answers = [post(gateway, key, body) for body, _, _ in BODIES.values()]
    answers += [gateway.call(path, key=key.secret) for path in ("/nope", CHAT)]
    for answer in answers:
        shown = (repr(answer.headers) + answer.body.decode()).lower()
        for word in ("sglang", "127.0.0.1", "traceback", "uvicorn", "granian", "rust", ".py"):
            assert word not in shown
        assert key.secret not in shown

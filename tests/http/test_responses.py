"""`/v1/responses/{id}`: stored responses are read, listed and deleted in OpenAI's shape."""

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import openai
import pytest
from forebay.config.schema import PromptLogs
from forebay.store import Database
from forebay.store.prompt_cipher import PromptCipher
from forebay.store.responses import NewResponse, ResponseStore

from tests.support.databases import run_apart
from tests.support.processes import Gateway, Key
from tests.support.upstream import ScriptedUpstream

ITEMS = [
    {"role": "user", "content": "first"},
    {"type": "message", "role": "assistant", "id": "msg_2", "content": []},
    {"role": "user", "content": "third"},
]


@pytest.fixture(scope="module")
def shelf(
    tmp_path_factory: pytest.TempPathFactory, session_database_url: str, scripted: ScriptedUpstream
) -> Iterator[Gateway]:
    """A gateway of its own."""
    config = {
        "upstreams": {"raw": {"kind": "sglang", "url": scripted.url}},
        "models": {"tiny": {"targets": [{"upstream": "raw"}]}},
    }
    process = Gateway(tmp_path_factory.mktemp("shelf"), config, session_database_url)
    process.start()
    yield process
    assert process.stop() == 0, process.log()
    assert "Traceback (most recent" not in process.log(), process.log()


@pytest.fixture(scope="module")
def owner(shelf: Gateway) -> Key:
    return shelf.key(account="shelf")


def saved(gateway: Gateway, account: str = "shelf") -> str:
    """The id of a response of that account."""
    response_id = f"resp_{uuid4().hex}"
    content = {"type": "output_text", "text": "hello", "annotations": []}
    output = {
        "type": "message",
        "id": "msg_9",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }
    response: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": "tiny",
        "output": [output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    new = NewResponse(
        *(response_id, account, "k", "tiny", None, response["created_at"]),
        *(json.dumps(response).encode(), json.dumps(ITEMS).encode()),
    )

    async def save() -> None:
        async with await Database.connect(gateway.database_url, max_size=1) as database:
            await ResponseStore(database, PromptCipher(PromptLogs())).save(new, ttl_s=3600)

    run_apart(save)
    return response_id


def client(gateway: Gateway, key: Key) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=key.secret, max_retries=0)


def test_openais_client(shelf: Gateway, owner: Key) -> None:
    response_id = saved(shelf)
    with client(shelf, owner) as api:
        found = api.responses.retrieve(response_id)
        assert (found.id, found.output_text) == (response_id, "hello")
        items = list(api.responses.input_items.list(response_id, limit=2, order="asc"))
        assert [item.id for item in items][1] == "msg_2"
        assert len(items) == 3
        newest = api.responses.input_items.list(response_id, limit=1)
        assert newest.has_more
        assert newest.data[0].content[0].text == "third"  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            api.responses.cancel(response_id)
        with pytest.raises(openai.BadRequestError, match="events"):
            list(api.responses.retrieve(response_id, stream=True))
        api.responses.delete(response_id)
        with pytest.raises(openai.NotFoundError):
            api.responses.retrieve(response_id)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")],
)
def test_whose_it_is(shelf: Gateway, owner: Key, method: str, path: str) -> None:
    response_id = saved(shelf)
    url = f"/v1/responses/{response_id}{path}"
    body = None if method == "GET" else {}
    stranger = shelf.key(account="stranger")
    missing = (404, "invalid_request_error", "response_not_found", "response_id")
    got = shelf.call(url, body, key=stranger.secret, method=method)
    assert got.brief() == missing
    odd = f"/v1/responses/a%00b{path}"
    assert shelf.call(odd, body, key=owner.secret, method=method).brief() == missing
    assert shelf.call(url, body, method=method).error()["code"] == "missing_api_key"
    admin = shelf.key(kind="admin")
    assert shelf.call(url, body, key=admin.secret, method=method).status == 403
    assert shelf.call(f"/v1/responses/{response_id}", key=owner.secret).status == 200


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=%C2%B2", "limit"),
        ("order=up", "order"),
        ("after=nobody", "after"),
        ("before=msg_2", "before"),
    ],
)
def test_bad_pages(shelf: Gateway, owner: Key, query: str, param: str) -> None:
    got = shelf.call(f"/v1/responses/{saved(shelf)}/input_items?{query}", key=owner.secret)
    assert (got.status, got.error()["param"]) == (400, param)


def test_the_wrong_method(shelf: Gateway, owner: Key) -> None:
    got = shelf.call(f"/v1/responses/{saved(shelf)}", {}, key=owner.secret, method="PUT")
    assert got.status == 405

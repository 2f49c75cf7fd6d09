"""The core's asks about responses, and what is listed of them."""

import json
from typing import Any

import msgspec
import pytest
from forebay.config import Responses
from forebay.config.schema import PromptLogs
from forebay.gateway.asks import Unanswerable
from forebay.gateway.stored_responses import StoredResponses, UnknownItem, listed, page
from forebay.store import Database
from forebay.store.prompt_cipher import PromptCipher
from forebay.store.responses import ResponseStore
from hypothesis import given
from hypothesis import strategies as st

SAVE: dict[str, Any] = {
    "account": "acme",
    "key_id": "k",
    "id": "resp_1",
    "model": "m",
    "previous_response_id": None,
    "created_at": 4_000_000_000,
    "input": [{"role": "user", "content": "hi"}],
    "response": {"id": "resp_1", "object": "response", "output": []},
}

ODD = '{"type": "x", "a": 1e999, "b": [123456789012345678901234567890]}'


async def asked(shelf: StoredResponses, kind: str, **what: Any) -> Any:
    return json.loads(await shelf.handlers[f"response.{kind}"](json.dumps(what).encode()))


async def test_what_the_core_saves_it_gets_back(database: Database) -> None:
    store = ResponseStore(database, PromptCipher(PromptLogs()))
    shelf = StoredResponses(lambda: store, Responses)
    assert await asked(shelf, "load", account="acme", id="resp_1") == {}
    assert await asked(shelf, "save", **SAVE) == {"saved": True}
    found = await asked(shelf, "load", account="acme", id="resp_1")
    assert found == {"input": SAVE["input"], "response": SAVE["response"]}
    assert await asked(shelf, "load", account="other", id="resp_1") == {}
    with pytest.raises(Unanswerable):
        await asked(shelf, "save", **{**SAVE, "account": "other"})


async def test_numbers_are_listed_as_they_were(database: Database) -> None:
    store = ResponseStore(database, PromptCipher(PromptLogs()))
    shelf = StoredResponses(lambda: store, Responses)
    payload = json.dumps({**SAVE, "input": ["HERE"]}).replace('"HERE"', ODD)
    await shelf.handlers["response.save"](payload.encode())
    found = await shelf.items("acme", "resp_1", after=None, limit=9, order="asc")
    assert found is not None
    shown = msgspec.json.encode(found.items)
    assert b"1e999" in shown
    assert b"123456789012345678901234567890" in shown


async def test_half_a_surrogate_pair_is_not_kept() -> None:
    shelf = StoredResponses(lambda: None, Responses)
    with pytest.raises(Unanswerable, match="cannot be kept"):
        await asked(shelf, "save", **{**SAVE, "input": [{"content": "\ud800"}]})


async def test_without_a_database_nothing_is_said() -> None:
    shelf = StoredResponses(lambda: None, Responses)
    for kind, what in (("load", {"account": "a", "id": "b"}), ("save", SAVE)):
        with pytest.raises(Unanswerable):
            await asked(shelf, kind, **what)


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (
            {"role": "user", "content": "hi"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "hi"}],
                "type": "message",
                "status": "completed",
            },
        ),
        (
            {"role": "assistant", "content": "hi", "id": "msg_1"},
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "hi", "annotations": []}],
                "type": "message",
                "status": "completed",
                "id": "msg_1",
            },
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
        ),
    ],
)
def test_items_as_they_are_listed(item: dict[str, Any], shown: dict[str, Any]) -> None:
    raw = msgspec.json.decode(json.dumps(item), type=dict[str, msgspec.Raw])
    got = json.loads(msgspec.json.encode(listed("resp_1", 0, raw)))
    if "id" not in shown:
        assert got["id"] == listed("resp_1", 0, raw)["id"]
        assert got["id"] != listed("resp_1", 1, raw)["id"] != listed("resp_2", 1, raw)["id"]
        shown = {**shown, "id": got["id"]}
    assert got == shown


@given(st.integers(0, 30), st.integers(1, 10), st.sampled_from(["asc", "desc"]))
def test_pages_have_every_item_once(count: int, limit: int, order: Any) -> None:
    items = [{"id": f"i{n}"} for n in range(count)]
    got: list[dict[str, Any]] = []
    after = None
    while True:
        some = page(items, after=after, limit=limit, order=order)
        got += some.items
        if not some.has_more:
            break
        assert len(some.items) == limit
        after = some.items[-1]["id"]
    assert got == (items if order == "asc" else items[::-1])
    with pytest.raises(UnknownItem):
        page(items, after="nobody", limit=limit, order=order)

"""Responses that are kept, as the core and the front ends ask for them."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import msgspec

from forebay.config import Responses
from forebay.gateway.asks import Unanswerable
from forebay.gateway.port import Handler
from forebay.store import StoreUnavailable
from forebay.store.errors import LogKeyMissing, LogUnreadable, ResponseExists
from forebay.store.responses import NewResponse, ResponseStore

Order = Literal["asc", "desc"]

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "item_reference": "ref",
}


class _Load(msgspec.Struct, frozen=True, kw_only=True):
    """Which response the core wants."""

    account: str
    id: str


class _Save(msgspec.Struct, frozen=True, kw_only=True):
    """A response that is complete. created_at: Unix seconds. input: what the model was given."""

    account: str
    key_id: str
    id: str
    model: str
    previous_response_id: str | None
    created_at: int
    input: msgspec.Raw
    response: msgspec.Raw


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What the core asked for."""

    input: msgspec.Raw
    response: msgspec.Raw


class Page(NamedTuple):
    """Some of a response's items; whether there are more in that direction."""

    items: list[dict[str, Any]]
    has_more: bool


class UnknownItem(Exception):
    """The response has no item of that id."""


class StoredResponses:
    """What is kept of `/v1/responses`.

    store: where; None while there is no database. settings: those in force now.

    Methods that read raise Unanswerable where it cannot be said whether there is one.
    """

    def __init__(
        self, store: Callable[[], ResponseStore | None], settings: Callable[[], Responses]
    ) -> None:
        self._source = store
        self._settings = settings

    @property
    def handlers(self) -> dict[str, Handler]:
        """By kind of ask."""
        return {"response.load": self._load, "response.save": self._save}

    async def response(self, account: str, response_id: str) -> bytes | None:
        """The JSON of a response of the account; None: it has none of that id."""
        try:
            return await self._store().response(account, response_id)
        except (StoreUnavailable, LogKeyMissing, LogUnreadable) as error:
            raise Unanswerable(str(error)) from error

    async def delete(self, account: str, response_id: str) -> bool:
        """Whether there was one."""
        try:
            return await self._store().delete(account, response_id)
        except StoreUnavailable as error:
            raise Unanswerable(str(error)) from error

    async def items(
        self, account: str, response_id: str, *, after: str | None, limit: int, order: Order
    ) -> Page | None:
        """Items that the model was given, from the one after `after`; None: no such response.

        Raises: UnknownItem; Unanswerable.
        """
        try:
            found = await self._store().items(account, response_id)
        except (StoreUnavailable, LogKeyMissing, LogUnreadable) as error:
            raise Unanswerable(str(error)) from error
        if found is None:
            return None
        try:
            given = msgspec.json.decode(found, type=list[dict[str, msgspec.Raw]])
        except msgspec.DecodeError as error:
            raise Unanswerable(f"the items of a response cannot be read: {error}") from None
        return page(
            [listed(response_id, index, item) for index, item in enumerate(given)],
            after=after,
            limit=limit,
            order=order,
        )

    async def _load(self, payload: bytes) -> bytes:
        ask = msgspec.json.decode(payload, type=_Load)
        try:
            found = await self._store().load(ask.account, ask.id)
        except (StoreUnavailable, LogKeyMissing, LogUnreadable) as error:
            raise Unanswerable(str(error)) from error
        if found is None:
            return b"{}"
        response, items = found
        return msgspec.json.encode(
            _Stored(input=msgspec.Raw(items), response=msgspec.Raw(response))
        )

    async def _save(self, payload: bytes) -> bytes:
        try:
            ask = msgspec.json.decode(payload, type=_Save)
        except msgspec.DecodeError as error:
            # A client may write half of a surrogate pair, which is no text.
            raise Unanswerable(f"the response cannot be kept: {error}") from None
        new = NewResponse(
            *(ask.id, ask.account, ask.key_id, ask.model, ask.previous_response_id),
            *(ask.created_at, bytes(ask.response), bytes(ask.input)),
        )
        try:
            await self._store().save(new, ttl_s=self._settings().ttl_s)
        except (StoreUnavailable, ResponseExists) as error:
            raise Unanswerable(str(error)) from error
        return b'{"saved":true}'

    def _store(self) -> ResponseStore:
        store = self._source()
        if store is None:
            raise Unanswerable("the database has not been reached yet")
        return store


def listed(response_id: str, index: int, item: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    """An item as a list has it: with an id, which stays the same, a type, and content in parts.

    What need not be read stays as it was: a number may be larger than any here.
    """
    kind = _text(item, "type") or "message"
    known = _text(item, "id")
    if not known:
        made = sha256(f"{response_id}:{index}".encode()).hexdigest()[:48]
        known = f"{_PREFIXES.get(kind, 'item')}_{made}"
    full: dict[str, Any] = {**item, "id": known, "type": kind}
    if kind == "message":
        full.setdefault("status", "completed")
        content = _text(item, "content")
        if content is not None:
            said = _text(item, "role") == "assistant"
            text = {"type": "output_text", "text": content, "annotations": []}
            full["content"] = [text if said else {"type": "input_text", "text": content}]
    return full


def _text(item: Mapping[str, msgspec.Raw], name: str) -> str | None:
    """A member that is a text, else None."""
    raw = item.get(name)
    if raw is None or not bytes(raw).startswith(b'"'):
        return None
    return msgspec.json.decode(raw, type=str)


def page(items: list[dict[str, Any]], *, after: str | None, limit: int, order: Order) -> Page:
    """Up to `limit` items from the one after `after`, in that order.

    Raises: UnknownItem.
    """
    if order == "desc":
        items = items[::-1]
    start = 0
    if after is not None:
        place = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise UnknownItem(after)
        start = place + 1
    return Page(items[start : start + limit], len(items) > start + limit)

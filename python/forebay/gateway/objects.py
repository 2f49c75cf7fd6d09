"""Whose the files and batches at an upstream are, as the core asks for it."""

from collections.abc import Callable

import msgspec

from forebay.gateway.asks import Unanswerable
from forebay.gateway.port import Handler
from forebay.store import StoreUnavailable
from forebay.store.objects import Claimed, Kind, ObjectStore


class _Object(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    kind: Kind
    object: msgspec.Raw = msgspec.Raw()


class _Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What the core asks. objects: of what is claimed, checked or forgotten; else of a page."""

    account: str
    upstream: str
    kind: Kind
    objects: tuple[_Object, ...] = ()
    after: str | None = None
    purpose: str | None = None
    limit: int = 0
    ascending: bool = False


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """What of an object is looked at."""

    purpose: object = None


class _Verdict(msgspec.Struct, frozen=True):
    ok: bool


class _Page(msgspec.Struct, frozen=True):
    objects: list[msgspec.Raw]
    has_more: bool


class Objects:
    """Answers the core's asks about files and batches.

    store: where they are; None while the database has never been reached.
    """

    def __init__(self, store: Callable[[], ObjectStore | None]) -> None:
        self._source = store

    @property
    def handlers(self) -> dict[str, Handler]:
        """What answers each kind of ask."""
        return {
            "object.claim": self._claim,
            "object.check": self._check,
            "object.forget": self._forget,
            "object.list": self._list,
        }

    def _store(self) -> ObjectStore:
        store = self._source()
        if store is None:
            raise Unanswerable("there is no database")
        return store

    async def _claim(self, payload: bytes) -> bytes:
        ask = msgspec.json.decode(payload, type=_Ask)
        claimed = [Claimed(one.kind, one.id, *_told(one)) for one in ask.objects]
        try:
            ok = await self._store().claim(ask.upstream, ask.account, claimed)
        except StoreUnavailable as error:
            raise Unanswerable(str(error)) from error
        return msgspec.json.encode(_Verdict(ok))

    async def _check(self, payload: bytes) -> bytes:
        ask = msgspec.json.decode(payload, type=_Ask)
        try:
            ok = await self._store().owns(ask.upstream, ask.account, ask.kind, _ids(ask))
        except StoreUnavailable as error:
            raise Unanswerable(str(error)) from error
        return msgspec.json.encode(_Verdict(ok))

    async def _forget(self, payload: bytes) -> bytes:
        ask = msgspec.json.decode(payload, type=_Ask)
        try:
            await self._store().forget(ask.upstream, ask.account, ask.kind, _ids(ask))
        except StoreUnavailable as error:
            raise Unanswerable(str(error)) from error
        return msgspec.json.encode(_Verdict(True))

    async def _list(self, payload: bytes) -> bytes:
        ask = msgspec.json.decode(payload, type=_Ask)
        try:
            found, has_more = await self._store().page(
                *(ask.upstream, ask.account, ask.kind),
                limit=ask.limit,
                after=ask.after,
                purpose=ask.purpose,
                ascending=ask.ascending,
            )
        except StoreUnavailable as error:
            raise Unanswerable(str(error)) from error
        return msgspec.json.encode(_Page([msgspec.Raw(text) for text in found], has_more))


def _ids(ask: _Ask) -> list[str]:
    return [one.id for one in ask.objects]


def _told(one: _Object) -> tuple[bytes | None, str | None]:
    """An object's JSON, and its purpose."""
    text = bytes(one.object)
    if not text:
        return None, None
    purpose = msgspec.json.decode(text, type=_File).purpose
    return text, purpose if isinstance(purpose, str) else None

"""Operations on the price book."""

from typing import Annotated

import msgspec
from msgspec import Meta

from forebay.http.admin.operation import Call
from forebay.store.errors import BadValue, PriceNotFound
from forebay.store.price_records import Moment, NewPrice, Price, Selection
from forebay.store.prices import PriceStore

MAX_PAGE = 1000
MAX_IMPORT = 1000


class PriceQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which prices to list: by default all that hold now or will.

    at: only those that hold then. history: past and superseded ones too. after: the last id of
    the page before.
    """

    model: str | None = None
    upstream: str | None = None
    account: str | None = None
    at: Moment | None = None
    history: bool = False
    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class PricePage(msgspec.Struct, frozen=True, kw_only=True):
    """Prices by id. next: `after` of the next page; null at the end."""

    data: list[Price]
    next: int | None


class PriceImport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices to set, all or none."""

    prices: Annotated[list[NewPrice], Meta(min_length=1, max_length=MAX_IMPORT)]


class Ending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """effective_to: when a price ends; null for now."""

    effective_to: Moment | None = None


class PriceList(msgspec.Struct, frozen=True, kw_only=True):
    """The prices that hold now in place of others."""

    data: list[Price]


def _price_id(call: Call) -> int:
    given = call.path["price_id"]
    if not (given.isascii() and given.isdigit() and len(given) < 20):
        raise PriceNotFound(f"no price has the id {given!r}")
    return int(given)


def _check_model(call: Call, model: str, field: str = "model") -> None:
    own = call.aliased(model)
    if own is not None:
        raise BadValue(field, f"is an alias; prices hold under the model's own name, {own}")


async def list_prices(call: Call) -> PricePage:
    """By id."""
    query: PriceQuery = call.query
    select = Selection(
        model=query.model,
        upstream=query.upstream,
        account=query.account,
        at=query.at,
        history=query.history,
    )
    store = PriceStore(call.database)
    found = await store.list(select, after=query.after, limit=query.limit + 1)
    page = found[: query.limit]
    return PricePage(data=page, next=page[-1].id if len(found) > query.limit else None)


async def set_price(call: Call) -> Price:
    """The price of the same subject until then ends where this one begins."""
    new: NewPrice = call.body
    _check_model(call, new.model)
    return await PriceStore(call.database).set(new)


async def import_prices(call: Call) -> PriceList:
    """In the order of their times."""
    body: PriceImport = call.body
    for number, new in enumerate(body.prices):
        _check_model(call, new.model, f"prices[{number}].model")
    return PriceList(data=await PriceStore(call.database).import_(body.prices))


async def get_price(call: Call) -> Price:
    """One price."""
    return await PriceStore(call.database).get(_price_id(call))


async def end_price(call: Call) -> Price:
    """What is less specific holds from then on."""
    ending: Ending = call.body
    return await PriceStore(call.database).end(_price_id(call), ending.effective_to)


async def correct_price(call: Call) -> PriceList:
    """Requests rated already keep their cost until they are rated anew."""
    store = PriceStore(call.database)
    return PriceList(data=await store.correct(_price_id(call), call.body))

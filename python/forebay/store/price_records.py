"""What prices are: those to set, those that are set, and those for the core."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from forebay.store.accounts import check_account_id
from forebay.store.currency import check_currency
from forebay.store.errors import BadValue
from forebay.store.limits import check_name
from forebay.store.money import from_numeric, text

MAX_AMOUNT = 1_000_000
"""The largest price for 10^6 tokens, for a request, or for a second."""
AMOUNTS = ("input", "cached", "cache_write", "output", "reasoning", "request", "second")
"""The fields of a price that are money, in the order of statements."""
SUBJECT = ("model", "upstream", "account")
"""The fields that say what a price is for."""

Amount = Annotated[str, Meta(description="Money, a decimal number with at most 6 places.")]
Moment = Annotated[float, Meta(description="Unix seconds.")]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(2200, 1, 1, tzinfo=UTC)
_AMOUNT = re.compile(r"(-?)([0-9]{1,20})(?:\.([0-9]{1,40}))?")


class NewPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price to set.

    model: by its own name. upstream: null for wherever no price of an upstream's own holds.
    account: null for everyone without a price of their own. input, cached, cache_write, output,
    reasoning: money for 10^6 tokens; null costs what it is a part of, input or output. request:
    money for a request. second: money for a second of a request's duration. effective_from:
    null for now. effective_to: null for good.
    """

    model: str
    upstream: str | None = None
    account: str | None = None
    currency: str = "USD"
    input: Amount
    cached: Amount | None = None
    cache_write: Amount | None = None
    output: Amount
    reasoning: Amount | None = None
    request: Amount = "0"
    second: Amount = "0"
    effective_from: Moment | None = None
    effective_to: Moment | None = None


class Correction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to correct of a price; what is not given stays.

    effective_from, effective_to: the part of the price's time that was wrong; null for all of it.
    """

    currency: str | UnsetType = UNSET
    input: Amount | UnsetType = UNSET
    cached: Amount | UnsetType = UNSET
    cache_write: Amount | UnsetType = UNSET
    output: Amount | UnsetType = UNSET
    reasoning: Amount | UnsetType = UNSET
    request: Amount | UnsetType = UNSET
    second: Amount | UnsetType = UNSET
    effective_from: Moment | None = None
    effective_to: Moment | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a price, as `NewPrice` has it, completed.

    superseded_at: when it was corrected, Unix seconds; null if it never was. supersedes: the id
    of the price that this one corrects. created_by: who set it.
    """

    id: int
    model: str
    upstream: str | None
    account: str | None
    currency: str
    input: Amount
    cached: Amount
    cache_write: Amount
    output: Amount
    reasoning: Amount
    request: Amount
    second: Amount
    effective_from: Moment
    effective_to: Moment | None
    superseded_at: Moment | None
    supersedes: int | None
    created_at: Moment
    created_by: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which prices to list: those of a model, an upstream, an account; None for any.

    at: those that hold then, Unix seconds. history: past and superseded ones too.
    """

    model: str | None = None
    upstream: str | None = None
    account: str | None = None
    at: float | None = None
    history: bool = False


def to_price(row: Any) -> Price:
    """One row of the table."""
    values: dict[str, Any] = {name: row[name] for name in Price.__struct_fields__}
    values |= {name: text(from_numeric(row[name])) for name in AMOUNTS}
    for name in ("effective_from", "effective_to", "superseded_at", "created_at"):
        values[name] = None if row[name] is None else row[name].timestamp()
    return Price(**values)


def encode_prices(prices: Iterable[Price]) -> bytes:
    """Encode for the core: a JSON list of objects.

    Each has id, model, upstream, account, from_us and to_us (Unix microseconds), tokens' prices in
    pico-dollars a token, request in pico-dollars, second in pico-dollars a microsecond.
    """
    return msgspec.json.encode(
        [
            {
                "id": price.id,
                **{name: getattr(price, name) for name in SUBJECT},
                "from_us": _micros(price.effective_from),
                "to_us": None if price.effective_to is None else _micros(price.effective_to),
                **{
                    # 10^-6 of a currency's unit for 10^6 tokens are 10^-12 for one.
                    name: int(Decimal(getattr(price, name)).scaleb(12 if name == "request" else 6))
                    for name in AMOUNTS
                },
            }
            for price in prices
        ]
    )


def checked_price(new: NewPrice) -> dict[str, Any]:
    """The columns of a new price.

    Raises: BadValue.
    """
    check_name("model", new.model)
    if new.upstream is not None:
        check_name("upstream", new.upstream)
    if new.account is not None:
        check_account_id("account", new.account)
    values: dict[str, Any] = {name: getattr(new, name) for name in SUBJECT}
    for name in ("currency", *AMOUNTS):
        given = getattr(new, name)
        values[name] = None if given is None else checked_value(name, given, new.account)
    for name in ("effective_from", "effective_to"):
        moment = getattr(new, name)
        values[name] = None if moment is None else checked_moment(name, moment)
    return values


def checked_value(name: str, given: str, account: str | None) -> Any:
    if name == "currency":
        check_currency("currency", given)
        if given != "USD" and account is None:
            raise BadValue("currency", "must be USD where the price is not an account's own")
        return given
    match = _AMOUNT.fullmatch(given)
    if match is None:
        raise BadValue(name, f"is no amount of money such as 0.15: {given!r}")
    sign, _, places = match.groups(default="")
    value = Decimal(given)
    if sign and value:
        raise BadValue(name, "must not be negative")
    if len(places.rstrip("0")) > 6:
        raise BadValue(name, "must not have more than 6 decimal places")
    if value > MAX_AMOUNT:
        raise BadValue(name, f"must be at most {MAX_AMOUNT}")
    return abs(value)


def checked_moment(field: str, unix_s: float) -> datetime:
    if not 0 <= unix_s <= _LAST.timestamp():
        raise BadValue(field, "must be a time from 1970 to 2199, in Unix seconds")
    return _EPOCH + timedelta(microseconds=_micros(unix_s))


def _micros(unix_s: float) -> int:
    # Exact: up to the year 2200 a float tells microseconds apart.
    return round(unix_s * 1e6)


def spelled(moment: datetime | None) -> str:
    return "further notice" if moment is None else moment.isoformat()

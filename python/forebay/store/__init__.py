"""PostgreSQL: connections, migrations, accounts, API keys, limits, and the watch over them.

Imports are lazy, so that reading a key's format does not load the database driver.
"""

from typing import TYPE_CHECKING, Any

from forebay.store.errors import (
    AccountExists,
    AccountNotFound,
    BadValue,
    KeyNotFound,
    KeyRevoked,
    MigrationChanged,
    NotFound,
    PriceNotFound,
    StoreError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from forebay.store.accounts import Account, AccountChanges, AccountStore
    from forebay.store.database import Database
    from forebay.store.embedded import EmbeddedPostgres
    from forebay.store.key_format import KeyKind, MalformedKey, NewKey, ParsedKey, generate, parse
    from forebay.store.keys import KeyChanges, KeyRecord, KeyStore, PublicKey, encode_records
    from forebay.store.limits import (
        LimitChanges,
        Limits,
        LimitStore,
        Subject,
        SubjectLimits,
        encode_limits,
    )
    from forebay.store.price_records import (
        Correction,
        NewPrice,
        Price,
        Selection,
        encode_prices,
    )
    from forebay.store.price_seed import seed_prices
    from forebay.store.prices import PriceStore
    from forebay.store.spend import Spent, encode_spent
    from forebay.store.watch import KeyWatcher

_HOMES = {
    "Account": "accounts",
    "AccountChanges": "accounts",
    "AccountStore": "accounts",
    "Correction": "price_records",
    "Database": "database",
    "EmbeddedPostgres": "embedded",
    "KeyChanges": "keys",
    "KeyKind": "key_format",
    "KeyRecord": "keys",
    "KeyStore": "keys",
    "KeyWatcher": "watch",
    "LimitChanges": "limits",
    "LimitStore": "limits",
    "Limits": "limits",
    "MalformedKey": "key_format",
    "NewKey": "key_format",
    "NewPrice": "price_records",
    "ParsedKey": "key_format",
    "Price": "price_records",
    "PriceStore": "prices",
    "PublicKey": "keys",
    "Selection": "price_records",
    "Spent": "spend",
    "Subject": "limits",
    "SubjectLimits": "limits",
    "encode_limits": "limits",
    "encode_prices": "price_records",
    "encode_records": "keys",
    "encode_spent": "spend",
    "generate": "key_format",
    "parse": "key_format",
    "seed_prices": "price_seed",
}

__all__ = [
    "Account",
    "AccountChanges",
    "AccountExists",
    "AccountNotFound",
    "AccountStore",
    "BadValue",
    "Correction",
    "Database",
    "EmbeddedPostgres",
    "KeyChanges",
    "KeyKind",
    "KeyNotFound",
    "KeyRecord",
    "KeyRevoked",
    "KeyStore",
    "KeyWatcher",
    "LimitChanges",
    "LimitStore",
    "Limits",
    "MalformedKey",
    "MigrationChanged",
    "NewKey",
    "NewPrice",
    "NotFound",
    "ParsedKey",
    "Price",
    "PriceNotFound",
    "PriceStore",
    "PublicKey",
    "Selection",
    "Spent",
    "StoreError",
    "StoreUnavailable",
    "Subject",
    "SubjectLimits",
    "encode_limits",
    "encode_prices",
    "encode_records",
    "encode_spent",
    "generate",
    "parse",
    "seed_prices",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"forebay.store.{_HOMES[name]}"), name)

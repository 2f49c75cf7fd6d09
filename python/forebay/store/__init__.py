"""PostgreSQL: connections, migrations, API keys and the watch for their changes.

Imports are lazy, so that reading a key's format does not load the database driver.
"""

from typing import TYPE_CHECKING, Any

from forebay.store.errors import (
    KeyNotFound,
    KeyRevoked,
    MigrationChanged,
    StoreError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from forebay.store.database import Database
    from forebay.store.embedded import EmbeddedPostgres
    from forebay.store.keys import (
        KeyRecord,
        KeyStore,
        MalformedKey,
        NewKey,
        ParsedKey,
        encode_records,
        generate,
        parse,
    )
    from forebay.store.watch import KeyWatcher

_HOMES = {
    "Database": "database",
    "EmbeddedPostgres": "embedded",
    "KeyRecord": "keys",
    "KeyStore": "keys",
    "KeyWatcher": "watch",
    "MalformedKey": "keys",
    "NewKey": "keys",
    "ParsedKey": "keys",
    "encode_records": "keys",
    "generate": "keys",
    "parse": "keys",
}

__all__ = [
    "Database",
    "EmbeddedPostgres",
    "KeyNotFound",
    "KeyRecord",
    "KeyRevoked",
    "KeyStore",
    "KeyWatcher",
    "MalformedKey",
    "MigrationChanged",
    "NewKey",
    "ParsedKey",
    "StoreError",
    "StoreUnavailable",
    "encode_records",
    "generate",
    "parse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"forebay.store.{_HOMES[name]}"), name)
